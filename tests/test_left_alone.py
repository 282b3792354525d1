"A comparison that can be left alone: faults, kills, other processes, odd data and odd terminals, through the real command."
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.mixup import MixUp as FastaisMixUp
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from PIL import Image
from torch import nn

from fastmix.all import CutMix, MixUp
from fastmix.compare import images
from fastmix.compare.cli import main
from fastmix.compare.images import describe, learner_maker
from fastmix.compare.report import batch_pictures
from fastmix.compare.results import held, read_results, write_file
from fastmix.compare.run import compare
from fastmix.data import InputError, digit_images, folder_images, image_dls

root = Path(__file__).parent.parent
small = dict(arch='small', epochs=1, size=16, bs=8, mixes='none,mixup', jobs=1)


def options(**given):
    return [o for name, value in given.items() for o in ([f'--{name}'] if value is True else [f'--{name}', str(value)])]


def environment(**given):
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONWARNINGS', 'MPLBACKEND', 'COLUMNS')}
    return env | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1') | given


def here(*words, **given):
    "What the command prints in this process"
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            main([*map(str, words), *options(**given)])
            code = 0
        except SystemExit as e: code = e.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def command(*words, env=None, limit=None, **given):
    "What the command prints in a process of its own"
    prepare = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None
    return subprocess.run([sys.executable, '-m', 'fastmix', *words, *options(**given)], env=environment(**env or {}), capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, preexec_fn=prepare, timeout=300)


def save_images(folder, n=12, classes=('dark', 'light'), size=(30, 24)):
    rng = np.random.default_rng(0)
    for k, label in enumerate(classes):
        (folder/label).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(128*(k % 2), 128*(k % 2) + 128, (*size[::-1], 3), np.uint8)).save(folder/label/f'{i}.png')
    return folder


@pytest.fixture
def photos(tmp_path): return save_images(tmp_path/'photos')


def rows(folder): return pd.read_csv(folder/'results.csv')


def left_behind(folder): return sorted(path.name for path in folder.rglob('*') if path.name.endswith('.new'))


# ---- killed

def pairs(n=96):
    y = torch.arange(n) % 3
    return list(zip(torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + y[:, None, None, None], y))


dls = DataLoaders(DataLoader(pairs()[:72], bs=8, shuffle=True, drop_last=True), DataLoader(pairs()[72:], bs=24))


def make_learner():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, lr=.05)


def whole(folder):
    arms = {'none': None, 'MixUp': MixUp(), 'CutMix': CutMix(), 'peer': FastaisMixUp()}
    return compare(make_learner, arms, lambda learn: learn.fit_one_cycle(3, .05), seeds=4, folder=folder, progress=False)


def numbers(comparison):
    "All that must be the same again: what was trained, and not how long it took"
    runs = comparison.runs.drop(columns=['seconds', 'cpu_seconds']).sort_values(['seed', 'arm'], ignore_index=True)
    return runs, comparison.curves.sort_values(['seed', 'arm', 'epoch'], ignore_index=True)


def test_ten_kills_end_with_every_run_once_and_the_numbers_of_an_undisturbed_one(tmp_path):
    begun = time.perf_counter()
    undisturbed = whole(tmp_path/'undisturbed')
    seconds, context, rng, ended = time.perf_counter() - begun, multiprocessing.get_context('fork'), random.Random(), []
    for _ in range(10):
        process = context.Process(target=whole, args=(tmp_path/'killed',))
        process.start()
        time.sleep(rng.uniform(0, seconds/5))
        process.kill()
        process.join()
        ended.append(process.exitcode)
    assert set(ended) <= {-9, 0} and ended[0] == -9
    found = whole(tmp_path/'killed')
    assert len(found.runs) == 16 and not found.runs.duplicated(['arm', 'seed']).any()
    for one, other in zip(numbers(found), numbers(undisturbed)): pd.testing.assert_frame_equal(one, other, check_exact=True)
    for one, other in zip(numbers(read_results(tmp_path/'killed')), numbers(undisturbed)): pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert not left_behind(tmp_path/'killed')


# ---- data that have changed

def test_photos_that_have_changed_are_refused(photos, tmp_path):
    given = dict(data=photos, out=tmp_path/'out', **small)
    assert here(**given).returncode == 0
    before = (tmp_path/'out'/'results.csv').read_bytes()
    Image.new('RGB', (40, 40)).save(photos/'dark'/'3.png') # The number of images is the same
    done = here(**given, seeds=2)
    assert done.returncode == 2 and 'all arms: data: 20 + 4 samples' in done.stderr and done.stderr.count('\n') == 1
    assert (tmp_path/'out'/'results.csv').read_bytes() == before


# ---- two processes

@pytest.mark.parametrize('given', [{}, dict(force=True), dict(epochs=2)], ids=['same', 'force', 'other'])
def test_the_second_process_is_told_at_once_and_takes_nothing_away(photos, tmp_path, given):
    "This process writes to the folder, and another one would, too"
    out = dict(data=photos, out=tmp_path/'out', **small)
    assert here(**out).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path/'out').iterdir()}
    with held(tmp_path/'out'): done = command(**out | given)
    assert done.returncode == 2 and done.stdout == '' and done.stderr.count('\n') == 1
    assert f"another comparison is writing to {tmp_path/'out'}" in done.stderr and 'force' not in done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path/'out').iterdir()} == before
    assert command(**out).returncode == 0


# ---- a full disk

def test_where_the_report_cannot_be_written_the_table_is_there_first(photos, tmp_path):
    done = command(data=photos, out=tmp_path/'out', limit=20_000, **small) # bytes in a file, enough for the tables
    assert done.returncode == 2 and 'mixup against none:' in done.stdout and 'Traceback' not in done.stderr
    assert done.stderr == f"fastmix: [Errno 27] File too large: '{tmp_path/'out'/'report.html'}'\n"
    assert not left_behind(tmp_path/'out') and len(rows(tmp_path/'out')) == 2
    again = here(data=photos, out=tmp_path/'out', **small)
    assert again.returncode == 0 and '2 of 2 runs are in' in again.stdout and (tmp_path/'out'/'report.html').exists()


@pytest.mark.parametrize('what', [KeyboardInterrupt(), OSError(28, 'No space left on device')], ids=['Ctrl-C', 'disk full'])
def test_what_happens_while_a_file_is_written_is_told_as_it_is(tmp_path, monkeypatch, what):
    write_file(tmp_path/'results.csv', 'before')
    def fsync(_): raise what
    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(type(what)) as e: write_file(tmp_path/'results.csv', 'after')
    assert (tmp_path/'results.csv').read_text() == 'before' and not left_behind(tmp_path)
    assert isinstance(what, KeyboardInterrupt) or e.value.filename == str(tmp_path/'results.csv')


def test_where_a_run_cannot_be_written_those_before_it_are_shown(photos, tmp_path):
    given = dict(data=photos, out=tmp_path/'out', **small)
    assert here(**given).returncode == 0
    limit = (tmp_path/'out'/'results.csv').stat().st_size + 100
    done = command(limit=max(limit, (tmp_path/'out'/'settings.json').stat().st_size), seeds=9, **given)
    assert done.returncode == 2 and '-fi' not in done.stderr and 'mixup against none:' in done.stdout
    name = done.stderr.rpartition('/')[2].strip("'\n")
    assert name in ('results.csv', 'curves.csv', 'settings.json') and not left_behind(tmp_path/'out')
    assert not rows(tmp_path/'out').duplicated(['arm', 'seed']).any() and len(read_results(tmp_path/'out').finished) >= 2


# ---- what is no folder of classes

@pytest.mark.parametrize('others', [['annotations/trimaps'], ['trimaps'], ['annotations', 'masks'], []])
def test_the_root_of_a_data_set_is_refused(tmp_path, others):
    save_images(tmp_path/'pets', classes=['images', *others])
    with pytest.raises(InputError, match=f"looks like the root of a data set.*did you mean {tmp_path/'pets'/'images'}"): folder_images(tmp_path/'pets')


def test_the_root_of_the_pets(data):
    done = here(data=data/'oxford-pets-160', out='unused')
    assert done.returncode == 2 and done.stderr.endswith(f"did you mean {data/'oxford-pets-160'/'images'}?\n") and not Path('unused').exists()


def test_many_broken_files_are_told_in_a_line_each_reason(photos, tmp_path):
    for i in range(300): (photos/'dark'/f'faulty{i}.png').write_text('no image')
    (photos/'light'/'again').symlink_to(photos, target_is_directory=True)
    for i in range(2): (photos/f'cover{"ab"[i]}.png').write_bytes((photos/'dark'/'1.png').read_bytes())
    done = here(data=photos, out=tmp_path/'out', **small)
    said = [line for line in done.stdout.replace('\n  ', ' ').splitlines() if line.startswith('skipped')]
    assert len(said) == 2 and said[1].count('faulty') == 3 and said[1].endswith(', … (300 files, all in skipped.txt)')
    assert said[0].startswith('skipped, no class in its name: ') and said[0].count('cover') == 2
    told = (tmp_path/'out'/'skipped.txt').read_text().splitlines()
    assert len(told) == 302 and f"{photos/'dark'/'faulty7.png'}: unreadable" in told and not any('again' in line for line in told)
    assert '20 images to train on, 4 to validate on' in done.stdout and done.stdout.count('\n') < 30


@pytest.mark.parametrize('n_valid', [2, 9])
def test_few_images_to_validate_on_are_told(n_valid):
    digits = digit_images()
    digits.valid = digits.valid[:n_valid]
    settings = dict(labels_per_class=0, wrong_labels=0., test=False, arch='small', epochs=1, size=8, bs=8, lr=.1, seed=1, seeds=1)
    assert f'CAUTION: {n_valid} images to validate on are few' in describe(digits, settings) and f'{1/n_valid:.2g} of the accuracy hangs on' in describe(digits, settings)
    assert 'CAUTION' not in describe(digit_images(), settings)


# ---- before the import, and while it lasts

@pytest.mark.parametrize('words, code', [(['--help'], 0), (['--version'], 0), (['--epoch', 'many'], 2), (['--epochs', '0'], 2), (['--colour', 'red'], 2),
                                         (['show', '--help'], 0), (['--data', 'missing'], 2), (['--mixes', 'none,none'], 2)])
def test_what_needs_no_torch_is_answered_within_a_second(words, code):
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = command(*words)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code and (done.stderr.count('\n') == 1 if code else done.stdout)
    assert used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 1 and time.perf_counter() - begun < 10


def test_the_version(): assert command('--version').stdout == f"fastmix {__import__('fastmix').__version__}\n"


@pytest.mark.parametrize('module', ['fastcore.imports', 'numpy', 'torch._C', 'fastai.torch_core'])
def test_ctrl_c_while_modules_are_imported(tmp_path, module):
    "Python tells on stderr which module is there"
    with subprocess.Popen([sys.executable, '-X', 'importtime', '-m', 'fastmix', '--out', str(tmp_path/'out')], env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.rpartition('|')[2].strip() == module: break
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    said = [line for line in errors.splitlines() if line and not line.startswith('import time:')]
    assert process.returncode == 130 and len(said) == 1 and said[0].startswith('fastmix: stopped; ') and out == ''


def test_ctrl_c_prints_what_there_is(tmp_path):
    with subprocess.Popen([sys.executable, '-m', 'fastmix', *options(out=tmp_path/'out', mixes='none,mixup', epochs=6, seeds=3)], env=environment(),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        waited_for = {'none, seed 42', 'mixup, seed 42'} # In any order, as two are trained at once
        for line in process.stdout:
            waited_for.discard(line.partition(':')[0])
            if not waited_for: break
        process.send_signal(signal.SIGINT)
        rest, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130 and 'goes on from there' in errors and 'Traceback' not in errors
    assert 'mixup against none: no verdict with' in rest


# ---- sizes

def test_images_that_are_too_large_are_not_called_too_small(photos, tmp_path):
    begun = time.perf_counter()
    done = here(data=photos, out=tmp_path/'out', size=100_000, arch='resnet18', bs=64)
    assert done.returncode == 2 and time.perf_counter() - begun < 60
    assert done.stderr == 'fastmix: 64 images of 100000 pixels do not fit into the memory: give a smaller --size or --bs\n'


# ---- odd names, photos and terminals

@pytest.mark.parametrize('env', [dict(LC_ALL='C'), dict(PYTHONIOENCODING='ascii'), dict(LC_ALL='C.UTF-8')], ids=['C', 'ascii', 'UTF-8'])
def test_odd_names_and_huge_photos_in_a_narrow_pipe(tmp_path, env):
    folder = save_images(tmp_path/'photos', classes=('猫', '犬'))
    if env == dict(LC_ALL='C'): Image.new('L', (10_000, 9_500)).save(folder/'猫'/'huge.png') # Above what Pillow warns of
    done = command(data=folder, out=tmp_path/'out', verbose=True, seeds=2, env=env | dict(COLUMNS='60'), **small)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert '\r' not in done.stdout and '\\u2588' not in done.stdout and '█' not in done.stdout
    table = [line for line in done.stdout.splitlines() if line.lstrip().startswith(('arm ', 'none ', 'mixup ')) and 'against' not in line]
    assert len(table) >= 6 and all(len(line) <= 60 for line in table)
    assert [line.split() for line in table[-3:]][0] == ['arm', 'seeds', 'accuracy,', '%']
    if env != dict(PYTHONIOENCODING='ascii'): assert '2 classes: 犬 (10), 猫 (10)' in done.stdout
    assert '20 images to train on' in done.stdout # All of them, the huge one too: 24 or 25, a fifth held out


def test_a_single_epoch_has_an_axis_of_one_epoch():
    axes = compare(make_learner, {'none': None}, lambda learn: learn.fit(1), progress=False).plot()
    assert [list(ax.get_xticks()) for ax in axes] == [[1]]*3 and all(ax.get_xlim() == (.5, 1.5) for ax in axes)
    plt.close('all')


def test_whoever_reads_the_output_may_go(tmp_path):
    line = f'{sys.executable} -m fastmix --out {tmp_path/"out"} --epochs 1 --seeds 1 | head -1'
    done = subprocess.run(['bash', '-c', line], env=environment(), capture_output=True, text=True)
    assert done.stdout.startswith('1438 images to train on') and done.stderr == ''


def pixels_of(figure):
    "The brightness of the pictures in a figure, titles left aside"
    return np.concatenate([np.asarray(ax.images[0].make_image(figure.canvas.get_renderer())[0])[..., :3].mean(-1).ravel() for ax in figure.axes if ax.images])


def test_grey_images_look_alike_with_and_without_mixing():
    dls = image_dls(digit_images(), size=8, bs=32)
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), metrics=accuracy)
    pictures = batch_pictures(make, {'none': None, 'MixUp': MixUp(), 'peer': FastaisMixUp()}, 42)
    light = {arm: np.median(pixels_of(figure)) for arm, figure in pictures.items()}
    plt.close('all')
    assert all(value > 128 for value in light.values()), light # fastai draws a digit in dark ink


def test_fastais_mixup_is_shown_mixed():
    digits = digit_images()
    dls = image_dls(digits, size=8, bs=32)
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), metrics=accuracy)
    pictures = batch_pictures(make, {'none': None, 'peer': FastaisMixUp(20.)}, 42)
    plain, mixed = (pixels_of(figure) for figure in pictures.values())
    plt.close('all')
    assert (mixed < 255).mean() > (plain < 255).mean() # The ink of two digits


# ---- without training

def test_the_report_in_the_midst_of_a_comparison(tmp_path):
    given = dict(out=tmp_path/'out', mixes='none,mixup', epochs=1, seeds=90)
    with subprocess.Popen([sys.executable, '-m', 'fastmix', *options(**given)], env=environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('none, seed 42'): break
        done = command('--report', tmp_path/'out')
        assert process.poll() is None
        process.kill()
    assert done.returncode == 0 and 'none' in done.stdout and done.stderr == ''
    page = (tmp_path/'out'/'report.html').read_text()
    assert 'Samples of a training batch: none' in page and '<summary>All ' in page


def test_the_report_where_the_images_are_gone(photos, tmp_path):
    assert here(data=photos, out=tmp_path/'out', **small).returncode == 0
    photos.rename(tmp_path/'elsewhere')
    done = here('--report', tmp_path/'out')
    assert done.returncode == 0 and 'no pictures of the batches: no such folder' in done.stdout
    assert (tmp_path/'out'/'report.html').read_text().count('<img') == 3


def test_the_report_of_nothing(tmp_path):
    done = here('--report', tmp_path/'missing')
    assert done.returncode == 2 and done.stderr.startswith(f"fastmix: {tmp_path/'missing'} holds no results that can be read") and done.stderr.count('\n') == 1


def test_the_report_of_results_of_version_0_1(tmp_path):
    import shutil
    shutil.copytree(root/'nbs/experiments/results/fashion', tmp_path/'fashion')
    done = here('--report', tmp_path/'fashion')
    assert done.returncode == 0 and 'CutMix against none:' in done.stdout and (tmp_path/'fashion'/'report.html').exists()


def test_show(photos, tmp_path):
    done = here('show', data=photos, mixes='none,cutmix,mixup:1', out=tmp_path/'out')
    assert done.returncode == 0 and done.stdout == f"A batch of each mix: {tmp_path/'out'/'batches.html'}\n" and done.stderr == ''
    page = (tmp_path/'out'/'batches.html').read_text()
    assert page.count('<img') == 3 and '<figcaption>cutmix</figcaption>' in page and sorted(path.name for path in (tmp_path/'out').iterdir()) == ['batches.html']


# ---- the test split

def test_judged_by_the_test_split(tmp_path):
    for part, n in dict(train=12, valid=3, test=7).items(): save_images(tmp_path/'data'/part, n)
    done = here(data=tmp_path/'data', out=tmp_path/'out', test=True, **small)
    assert done.returncode == 0 and '24 images to train on, 14 to validate on' in done.stdout and 'validated on the test split that was given' in done.stdout
    assert rows(tmp_path/'out').data.str.startswith('24 + 14 samples').all()
    assert json.loads((tmp_path/'out'/'settings.json').read_text())['settings']['test'] is True
    assert 'test: True there, False now' in here(data=tmp_path/'data', out=tmp_path/'out', **small).stderr


@pytest.mark.parametrize('data', ['digits', 'photos'])
def test_there_is_no_test_split(photos, tmp_path, data):
    done = here(data=photos if data == 'photos' else 'digits', out=tmp_path/'out', test=True, **small)
    assert done.returncode == 2 and 'no test split' in done.stderr and not (tmp_path/'out').exists()


# ---- results of version 0.1

stored = sorted(path.parent for path in (root/'nbs/experiments/results').glob('*/settings.json') if 'made of' not in json.loads(path.read_text()))


@pytest.mark.parametrize('folder', stored, ids=[folder.name for folder in stored])
def test_results_of_version_0_1_are_read(folder):
    comparison = read_results(folder)
    assert len(comparison.finished) == len(comparison.runs) > 0 and comparison.is_old and comparison.settings['model']
    assert set(comparison.table().index) == set(comparison.runs.arm) and comparison.made_of == {}


def test_nothing_is_added_to_results_of_version_0_1(tmp_path):
    from fastmix.compare.run import OtherResults
    whole(tmp_path)
    runs = rows(tmp_path)
    runs.drop(columns=['steps', 'last_lr', 'data', 'order']).to_csv(tmp_path/'results.csv', index=False)
    (tmp_path/'settings.json').write_text(json.dumps(dict(model='Sequential', fit='fit_one_cycle 3 0.05', note='mine')))
    before = (tmp_path/'results.csv').read_bytes()
    arms = {'none': None, 'MixUp': MixUp()}
    def again(**given): return compare(make_learner, arms, lambda learn: learn.fit(1), folder=tmp_path, progress=False, **given)
    assert len(again(seeds=4).finished) == 8 and len(again(settings=dict(note='mine')).finished) == 2
    with pytest.raises(OtherResults, match='those of version 0.1.*nothing can be added. Give another folder'): again(seeds=5)
    with pytest.raises(OtherResults, match='note: mine there, yours now'): again(settings=dict(note='yours'))
    assert (tmp_path/'results.csv').read_bytes() == before


def test_a_learner_that_is_made_for_a_size():
    "What `learner_maker` refuses, it refuses by name"
    settings = dict(arch='alexnet', size=8, bs=8, seed=1, pretrained=False, labels_per_class=0, wrong_labels=0.)
    with pytest.raises(InputError, match='alexnet takes no images of 8 pixels: give a larger --size'): learner_maker(digit_images(), settings)
    assert images.known_archs()['alexnet']
