import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fastmix.all import all_mixers
from fastmix.compare import cli, images
from fastmix.compare.cli import complete, main
from fastmix.compare.images import check_out, known_archs, known_mixes, mixer_named, set_aside
from fastmix.compare.run import AllRunsFailed, OtherResults

options = {'mixes': 'none,mixup', 'epochs': 1, 'seeds': 1, 'labels-per-class': 0, 'wrong-labels': 0}


def fastmix(**given):
    "Run the command with `given` options"
    main([o for name, value in (options | dict(jobs=1) | given).items()
          for o in ([f'--{name}'] if value is True else [f'--{name}', str(value)])])


def error_of(capsys, **given):
    "The message of a command that must end with status 2 and one line on stderr"
    with pytest.raises(SystemExit) as e: fastmix(**given)
    assert e.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith('fastmix: ') and message.count('\n') == 1
    return message


def contents(folder): return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


@pytest.fixture
def untrained(monkeypatch):
    "Nothing may be trained"
    def compare(*args, **kwargs): pytest.fail('training began')
    monkeypatch.setattr(images, 'compare', compare)


def save_photos(folder):
    "Twelve dark and twelve light images"
    rng = np.random.default_rng(0)
    for label, low in dict(dark=0, light=128).items():
        (folder/label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(low, low + 128, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder/label/f'{i}.png')


@pytest.fixture
def photos(tmp_path):
    save_photos(tmp_path/'photos')
    return tmp_path/'photos'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    "The options of a finished run"
    folder = tmp_path_factory.mktemp('finished')
    save_photos(folder/'photos')
    given = dict(data=folder/'photos', arch='small', size=16, bs=8, out=folder/'results')
    fastmix(**given)
    return given


@pytest.fixture
def earlier(finished, tmp_path):
    "The options of a finished run, with a copy of its results, and what they hold"
    given = dict(finished, out=tmp_path/'earlier')
    shutil.copytree(finished['out'], given['out'])
    return given, contents(given['out'])


written = ['curves.csv', 'report.html', 'results.csv', 'settings.json']


def test_digits(tmp_path, capsys):
    out = tmp_path/'new'/'results'
    fastmix(out=out, mixes='none,mixup,cutmix,choice', bs=32)
    printed = capsys.readouterr().out
    assert '1438 images to train on, 359 to validate on: 0.0028 of the accuracy' in printed and '10 classes: eight (139), five (146)' in printed
    assert 'choice, seed 42: accuracy ' in printed and ' (run 3 of 4, about ' in printed and ' (run 4 of 4)\n' in printed and '█' not in printed and 'epoch' not in printed.splitlines()[4]
    assert 'cutmix against none: no verdict with 1 seed: it takes 3 (accuracy' in printed
    assert printed.endswith(f'The report, with curves and pictures of the batches: {out/"report.html"}\n')
    runs = pd.read_csv(out/'results.csv')
    assert list(runs.arm) == ['none', 'mixup', 'cutmix', 'choice'] and (runs.status == 'finished').all()
    assert (runs.accuracy > 0.5).all() and runs.train_loss.nunique() == 4
    settings = json.loads((out/'settings.json').read_text())
    assert settings['settings']['epochs'] == 1 and settings['made of']['mixup']['callbacks'].startswith('[MixUp(alpha=0.4')
    assert sorted(contents(out)) == written and (out/'report.html').read_text().count('<img') == 3 + 4


def test_the_demonstration_says_what_it_shows():
    settings = dict(data='digits', wrong_labels=.4)
    assert '40% of the labels to train on were made wrong' in images.lesson(settings) and 'fastmix --data FOLDER' in images.lesson(settings).replace('\n', ' ')
    assert images.lesson(settings | dict(wrong_labels=0)) == images.lesson(settings | dict(data='folder')) == ''


def test_every_method_can_be_named():
    for name, cls in all_mixers.items():
        if name in known_mixes() and 'alpha' in inspect.signature(cls).parameters: assert type(mixer_named(name)) is cls and mixer_named(f'{name}:.7').alpha == .7
    assert mixer_named('none') is None and [m.alpha for m in mixer_named('choice:.3').mixers] == [.3, .3] and set(known_mixes()) >= {'none', 'choice'}


def test_few_and_wrong_labels(photos, tmp_path, capsys):
    "Only those that are trained on, drawn by the seed, the same for all arms"
    fastmix(data=photos, out=tmp_path/'out', arch='small', size=16, bs=4, mixes='none,mixup:1', **{'labels-per-class': 6, 'wrong-labels': .5})
    printed = capsys.readouterr().out
    assert 'trained on 6 images of each class, 50% of their labels wrong, the same for all mixes; those to validate on keep their labels' in printed.replace('\n  ', ' ')
    settings = json.loads((tmp_path/'out'/'settings.json').read_text())
    settings = settings['settings']
    assert settings['wrong_labels'] == .5 and settings['labels_per_class'] == 6 and (pd.read_csv(tmp_path/'out'/'results.csv').data.str.startswith('12 + 4 samples')).all()
    learner = images.learner_maker(images.get_images(photos, 42), settings)()
    wrong = sum(path.parent.name != label for path, label in learner.dls.train.items)
    assert wrong == 6 and all(path.parent.name == label for path, label in learner.dls.valid.items)
    assert error_of(capsys, data=photos, out=tmp_path/'out', arch='small', size=16, bs=4, mixes='none,mixup:1', **{'labels-per-class': 6, 'wrong-labels': .25})


def test_the_defaults_of_the_digits_are_hard(tmp_path):
    given = {name: None for name in ('mixes', 'arch', 'epochs', 'size', 'bs', 'lr', 'seeds', 'labels_per_class', 'wrong_labels')} | dict(seed=1, pretrained=False, test=False)
    digits, photos = complete('digits', **given), complete(tmp_path, **given)
    assert (digits['labels_per_class'], digits['wrong_labels'], digits['seeds'], digits['mixes']) == (40, .4, 3, ['none', 'mixup:1', 'cutmix', 'choice:1'])
    assert (photos['labels_per_class'], photos['wrong_labels'], photos['seeds']) == (0, 0., 1)


def test_photographs(photos, tmp_path, capsys):
    (photos/'dark'/'broken.png').write_text('no image')
    (photos/'rare').mkdir()
    Image.new('RGB', (20, 20)).save(photos/'rare'/'1.png')
    fastmix(data=photos, out=tmp_path/'out', arch='small', size=16, epochs=4, bs=8, lr=0.01)
    printed = capsys.readouterr().out
    assert 'left out, as they have too few images: rare (1)' in printed and '2 classes: dark (10), light (10)' in printed
    assert f"skipped, unreadable: {photos/'dark'/'broken.png'}" in printed.replace('\n  ', ' ')
    assert (pd.read_csv(tmp_path/'out'/'results.csv').accuracy > 0.7).all()
    assert json.loads((tmp_path/'out'/'settings.json').read_text())['settings']['data'] == str(photos)


def test_a_test_split_is_announced(photos, tmp_path, capsys):
    (tmp_path/'split').mkdir()
    photos.rename(tmp_path/'split'/'train')
    (tmp_path/'split'/'test').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path/'split'/'test'/'1.png')
    fastmix(data=tmp_path/'split', out=tmp_path/'out', arch='small', size=16, mixes='none')
    assert '1 images of a test split are left alone (--test: be judged by them)' in capsys.readouterr().out


def test_networks_of_fastai_take_digits_and_photographs(photos):
    for data in ('digits', photos):
        given = dict(epochs=1, size=32, bs=8, lr=None, seed=1, seeds=1, pretrained=False, labels_per_class=None, wrong_labels=None, test=False)
        settings = complete(data, mixes='none', arch='resnet18', **given)
        learn = images.learner_maker(images.get_images(settings['data']), settings)()
        with learn.no_bar(), learn.no_logging(): learn.fit(1) if data != 'digits' else learn.validate()
        assert learn.model[1][-1].out_features == learn.dls.c


def test_pretrained_weights_are_fine_tuned():
    class Learner:
        def fine_tune(self, epochs, lr): self.called = ('fine_tune', epochs, lr)
        def fit_one_cycle(self, epochs, lr): self.called = ('fit_one_cycle', epochs, lr)
    learn = Learner()
    for pretrained, method in {True: 'fine_tune', False: 'fit_one_cycle'}.items():
        images.train(learn, epochs=3, lr=0.1, pretrained=pretrained, size=8)
        assert learn.called == (method, 3, 0.1)


def test_the_same_command_trains_nothing_again(earlier, capsys):
    given, before = earlier
    fastmix(**given)
    assert '2 of 2 runs are in' in capsys.readouterr().out
    after = contents(given['out'])
    assert {name: after[name] for name in written if name != 'report.html'} == {name: before[name] for name in written if name != 'report.html'}


def test_more_seeds_and_mixes_join(earlier, capsys):
    given, before = earlier
    fastmix(**given, seeds=2)
    fastmix(**given | dict(mixes='mixup,cutmix'))
    assert contents(given['out'])['results.csv'].startswith(before['results.csv'])
    runs = pd.read_csv(given['out']/'results.csv')
    assert list(zip(runs.arm, runs.seed)) == [('none', 42), ('mixup', 42), ('none', 43), ('mixup', 43), ('cutmix', 42)]
    assert 'mixup against none: ' in (printed := capsys.readouterr().out) and 'cutmix against mixup: ' in printed
    assert not runs.train_loss.duplicated().any()


def test_the_same_settings_give_the_same_results(finished, tmp_path):
    fastmix(**finished | dict(out=tmp_path/'again'))
    first, second = (pd.read_csv(out/'results.csv').drop(columns=['seconds', 'cpu_seconds']) for out in (finished['out'], tmp_path/'again'))
    assert first.equals(second)


def start(**given):
    "The command as a process of its own; its lines can be read one by one"
    env = dict(os.environ, PYTHONPATH=str(Path(cli.__file__).parents[2]), PYTHONWARNINGS='ignore')
    command = [sys.executable, '-m', 'fastmix', *(f'--{name}={value}' for name, value in (options | given).items())]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize('how, code', [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_command_is_completed_by_the_same_command(tmp_path, capsys, how, code):
    given = dict(out=tmp_path/'out', seeds=4, jobs=1)
    with start(**given) as process:
        for line in process.stdout:
            if line.startswith('none, seed 43'): break
        process.send_signal(how)
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == code
    assert how == signal.SIGKILL or errors.endswith('goes on from there\n')
    there = contents(tmp_path/'out')
    n_there = len(there['results.csv'].splitlines()) - 1
    assert 3 <= n_there < 8 and 'report.html' not in there
    fastmix(**given)
    assert f'{n_there} of 8 runs are in' in capsys.readouterr().out
    after = contents(tmp_path/'out')
    assert after['results.csv'].startswith(there['results.csv']) and after['curves.csv'].startswith(there['curves.csv'])
    runs = pd.read_csv(tmp_path/'out'/'results.csv')
    assert list(zip(runs.arm, runs.seed)) == [(arm, seed) for seed in range(42, 46) for arm in ('none', 'mixup')]
    assert (runs.status == 'finished').all() and sorted(after) == written


@pytest.mark.parametrize('given, message', [
    (dict(epochs=0), '--epochs must be at least 1, got 0'),
    (dict(epochs='many'), "argument --epochs: invalid int value: 'many' (fastmix --help lists the options)"),
    (dict(size=4), '--size must be at least 8, got 4'),
    (dict(bs=1), '--bs must be at least 2, got 1'),
    (dict(seed=-1), '--seed must be at least 0, got -1'),
    (dict(seed=2**32), '--seed must be below 2**32'),
    (dict(lr=0), '--lr must be a positive number, got 0.0'),
    (dict(lr='nan'), '--lr must be a positive number, got nan'),
    (dict(lr='inf'), '--lr must be a positive number, got inf'),
    (dict(margin=0), '--margin must be between 0 and 1, got 0.0'),
    (dict(margin='nan'), '--margin must be between 0 and 1, got nan'),
    (dict(mixes='none,mixcut'), "--mixes: unknown name 'mixcut'; known are none, mixup, cutmix, "),
    (dict(mixes='mixup:'), "--mixes: mixup:: could not convert string to float: ''"),
    (dict(mixes='mixup:0'), '--mixes: mixup:0: `alpha` must be a positive number'),
    (dict(mixes='none:1'), '--mixes: none has no alpha'),
    ({'labels-per-class': -1}, '--labels-per-class must be at least 0, got -1'),
    ({'wrong-labels': 1.5}, '--wrong-labels must be a share from 0 to 1, got 1.5'),
    (dict(mixes=''), "--mixes: unknown name ''; known are none"),
    (dict(mixes='mixup, mixup'), '--mixes names one twice: mixup,mixup'),
    (dict(arch='resnet19'), "--arch: unknown name 'resnet19'; known are small, xresnet18"),
    (dict(pretrained=True), '--pretrained: no weights for small: leave it out, or give --arch resnet18'),
    (dict(arch='xresnet18', pretrained=True), '--pretrained: no weights for xresnet18'),
    (dict(arch='vgg11_bn'), 'vgg11_bn takes no images of 8 pixels: give a larger --size'),
    (dict(data='missing'), 'no such folder'),
    (dict(colour='red'), 'unrecognized arguments: --colour red'),
])
def test_options_that_cannot_be_used(tmp_path, capsys, untrained, given, message):
    assert message in error_of(capsys, out=tmp_path/'out', **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_images(tmp_path, capsys, untrained):
    (tmp_path/'empty').mkdir()
    assert 'no images in' in error_of(capsys, data=tmp_path/'empty', out=tmp_path/'out')


def test_a_single_class(photos, tmp_path, capsys, untrained):
    for path in (photos/'light').iterdir(): path.unlink()
    assert 'a single class' in error_of(capsys, data=photos, out=tmp_path/'out')


def test_weights_without_a_network(photos, tmp_path, capsys, monkeypatch, untrained):
    def vision_learner(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr('fastai.vision.learner.vision_learner', vision_learner)
    message = error_of(capsys, data=photos, out=tmp_path/'out', pretrained=True)
    assert 'cannot download weights of resnet18 (no route to host): leave out --pretrained' in message


def test_out_that_cannot_be_written(tmp_path, capsys, untrained):
    (tmp_path/'file').write_text('mine')
    assert 'is a file' in error_of(capsys, out=tmp_path/'file')
    assert 'cannot write to' in error_of(capsys, out=tmp_path/'file'/'out')


def test_the_current_folder(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fastmix(**finished | dict(out='.', mixes='none'))
    assert sorted(contents(tmp_path)) == written


def test_results_of_other_settings_are_refused_before_training(earlier, capsys, untrained):
    given, before = earlier
    message = error_of(capsys, **given | dict(epochs=3, lr=0.5))
    assert 'results of other settings (epochs: 1 there, 3 now; lr: 0.001 there, 0.5 now)' in message
    assert message.endswith('give another folder as --out, or add --force\n')
    assert contents(given['out']) == before


def test_results_whose_other_settings_show_later(earlier, capsys):
    given, before = earlier
    path = given['out']/'settings.json'
    path.write_text(path.read_text().replace('alpha=0.4', 'alpha=9'))
    message = error_of(capsys, **given)
    assert 'mixup: callbacks: [MixUp(alpha=9' in message and message.endswith('give another folder as --out, or add --force\n')
    assert contents(given['out']) == before | {'settings.json': path.read_bytes()}


def test_force_sets_other_results_aside(earlier):
    (given, before), out = earlier, earlier[0]['out']
    (out/'notes.txt').write_text('mine')
    fastmix(**given | dict(mixes='cutmix', bs=6), force=True)
    assert json.loads((out/'settings.json').read_text())['settings']['bs'] == 6
    after = contents(out)
    assert {name.removeprefix('old/'): text for name, text in after.items() if name.startswith('old/')} == before
    assert list(pd.read_csv(out/'results.csv').arm) == ['cutmix'] and after['notes.txt'] == b'mine'
    (out/'curves.csv').unlink()
    set_aside(out)
    assert sorted(contents(out)) == ['notes.txt', 'old/report.html', 'old/results.csv', 'old/settings.json']
    set_aside(out)
    assert len(contents(out)) == 4


def test_force_needs_settings_that_can_be_used(earlier, capsys, untrained):
    given, before = earlier
    error_of(capsys, **given | dict(arch='vgg11_bn', size=16), force=True)
    assert contents(given['out']) == before


@pytest.mark.parametrize('text', [None, 'half of', '[1, 2]'])
def test_results_without_their_settings(earlier, text):
    out = earlier[0]['out']
    settings = json.loads((out/'settings.json').read_text())['settings']
    if text: (out/'settings.json').write_text(text)
    else: (out/'settings.json').unlink()
    with pytest.raises(OtherResults, match='results that cannot be read'): check_out(out, settings, False)
    check_out(out, settings, force=True)


def test_an_empty_folder_is_used(tmp_path): check_out(tmp_path, {}, False)


@pytest.mark.parametrize('error, code, message', [
    (KeyboardInterrupt(), 130, 'the same command, without --force, goes on from there'), (OSError('disk full'), 2, 'disk full'),
    (AllRunsFailed('every run failed; the first: no memory'), 2, 'fastmix: every run failed; the first: no memory')])
def test_how_an_error_ends_the_command(earlier, capsys, monkeypatch, error, code, message):
    given, before = earlier
    def compare(*args, **kwargs): raise error
    monkeypatch.setattr(images, 'compare', compare)
    with pytest.raises(SystemExit) as e: fastmix(**given)
    assert e.value.code == code and message in capsys.readouterr().err
    assert contents(given['out']) == before


def test_a_failed_run_is_told_and_tried_again(earlier, capsys, monkeypatch):
    given, train, calls = earlier[0] | dict(mixes='none,mixup,cutmix'), images.train, []
    def no_memory(learn, **settings):
        calls.append(1)
        if hasattr(learn, 'cut_mix') and len(calls) < 3: raise torch.OutOfMemoryError('CUDA out of memory')
        train(learn, **settings)
    monkeypatch.setattr(images, 'train', no_memory)
    for _ in range(2):
        fastmix(**given)
        assert capsys.readouterr().out.count('failed: OutOfMemoryError: CUDA out of memory') == 2 # While training and in the end
    assert 'cutmix, seed 42 failed: OutOfMemoryError' in (given['out']/'report.html').read_text()
    fastmix(**given)
    assert 'failed:' not in capsys.readouterr().out and (pd.read_csv(given['out']/'results.csv').status == 'finished').all()


def test_an_error_of_the_program_keeps_its_traceback(earlier, monkeypatch):
    given, before = earlier
    def compare(*args, **kwargs): raise ValueError('a bug')
    monkeypatch.setattr(images, 'compare', compare)
    with pytest.raises(ValueError, match='a bug'): fastmix(**given)
    assert contents(given['out']) == before


def test_every_network_can_be_named(): assert {'small', 'resnet18', 'densenet121'} <= known_archs().keys()


def test_as_a_module(tmp_path):
    env = dict(os.environ, PYTHONPATH=str(Path(cli.__file__).parents[2]))
    env.pop('PYTHONWARNINGS', None)
    command = [sys.executable, '-m', 'fastmix', '--data', str(tmp_path/'missing')]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr == f"fastmix: no such folder: {tmp_path/'missing'}\n"


def test_clothing(data, tmp_path):
    fastmix(data=data/'clothing-small-160', out=tmp_path/'out', arch='small', size=16, mixes='mixup')
    assert pd.read_csv(tmp_path/'out'/'results.csv').accuracy[0] > 0.15
    assert (tmp_path/'out'/'report.html').read_text().count('<img') == 4


def test_all_methods_for_photographs_are_known_and_all_takes_them():
    from fastmix.all import all_mixers
    from fastmix.compare.images import check_names, known_mixes, mixer_named
    from fastmix.data import InputError
    others = {'mixchoice', 'cmixup', 'copypaste', 'tabularswap', 'transmix'} # Numbers, masks, tables, attention
    assert set(known_mixes()) == {'none', 'choice', *all_mixers} - others
    settings = dict(mixes=['all'], arch='small', pretrained=False)
    check_names(settings)
    assert settings['mixes'] == list(known_mixes()) and mixer_named('none') is None
    for name in others - {'mixchoice'}:
        with pytest.raises(InputError, match=f'{name} is not for photographs'): mixer_named(name)
