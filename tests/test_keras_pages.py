"""The pages on Keras's examples: as short as their titles say, and right on their data set, without it, and without a GPU."""
import gzip
import io
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from execnb.shell import CaptureShell, format_exc
from fastai.callback.progress import ProgressCallback
from fastai.learner import Recorder, defaults
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.test import nb_test_cells
from PIL import Image

config = get_config(Path(__file__).parent)
pages = {name: config.nbs_path/f'tutorials/{name}.ipynb' for name in ('keras_mixup', 'keras_cutmix')}
both = pytest.mark.parametrize('name', pages)


def cells(name): return nb_test_cells(pages[name], config.tst_flags)


def program(name):
    "The cells of the program: those that are shown before the step by step"
    shown = [cell for cell in cells(name) if 'hide' not in cell.directives_]
    return shown[:next(i for i, cell in enumerate(shown) if 'learn.fit(' in cell.source) + 1]


def lines(name): return [line for cell in program(name) for line in cell.source.splitlines() if line.strip() and not line.startswith('#|')]


def texts(name): return ''.join(''.join(o.get('text', '')) for cell in read_nb(pages[name]).cells for o in cell.get('outputs', []))


def write_fashion(folder, n_train=7000, n_test=1200):
    "Grey noise as the four files of Fashion-MNIST; the class is in the corner pixel"
    rng = np.random.default_rng(0)
    for part, n in ('train', n_train), ('t10k', n_test):
        y, x = rng.integers(0, 10, n, np.uint8), rng.integers(0, 255, (n, 28, 28), np.uint8)
        x[:, 0, 0] = y
        for kind, data, header in ('images-idx3', x, 16), ('labels-idx1', y, 8):
            with gzip.open(folder/f'{part}-{kind}-ubyte.gz', 'wb', 1) as file: file.write(bytes(header) + data.tobytes())


def write_cifar(folder, n_train=310, n_test=210):
    "Plain colours as the JPEG copy of CIFAR-10: red says the class"
    arrays, rng = {}, np.random.default_rng(0)
    for part, n in ('train', n_train), ('test', n_test):
        y, files = rng.integers(0, 10, n), []
        for i in y:
            file = io.BytesIO()
            Image.new('RGB', (32, 32), (int(20*i), 99, 99)).save(file, 'jpeg')
            files.append(file.getvalue())
        arrays |= {f'jpeg_{part}': np.frombuffer(b''.join(files), np.uint8), f'y_{part}': y,
                   f'offsets_{part}': np.cumsum([0, *map(len, files)])}
    np.savez(folder/'cifar10_jpeg_packed.npz', **arrays)


@pytest.fixture
def go(monkeypatch, tmp_path):
    "Run some cells of a page in this process, in a folder of their own; the names they define, and what they print"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.delenv('FASTMIX_DATA', raising=False)
    monkeypatch.setattr(Recorder, 'after_epoch', Recorder.after_epoch)
    monkeypatch.setattr(defaults, 'callbacks', [*defaults.callbacks, *{ProgressCallback} - {*defaults.callbacks}])
    shell = CaptureShell(tmp_path, mpl_format=None)

    def go(some):
        said = ''
        for cell in some:
            said += ''.join(''.join(o.get('text', '')) for o in shell.run(cell.source, timeout=config.cell_timeout))
            plt.close('all')
            if shell.exc: pytest.fail(f'{cell.source}\n\n{"".join(format_exc(shell.exc))}', pytrace=False)
        return SimpleNamespace(**shell.user_ns), said

    yield go
    shell.close()
    CaptureShell.clear_instance()


def to_preview(name):
    "The cells up to the nine previews"
    found = cells(name)
    return found[:next(i for i, cell in enumerate(found) if 'show_mix(' in cell.source) + 1]


@both
def test_the_program_is_as_short_as_the_title_says(name):
    title = read_nb(pages[name]).cells[0].source.splitlines()[0]
    assert len(lines(name)) == int(re.search(r'in (\d+)', title)[1])
    assert max(map(len, lines(name))) <= 95
    assert not [line for line in lines(name) if ';' in line.rstrip(';')]


@both
def test_what_is_committed_shows_digits(name):
    said = texts(name)
    assert "scikit-learn's digits" in said and 'local folder' not in said
    assert len(re.findall(r'(?m)^with(?:out)? (?:mixup|CutMix): [\d.]+%', said)) == 2


@both
def test_a_reader_sees_no_plumbing(name):
    code = '\n'.join(lines(name))
    for word in 'environ', 'IN_TEST', 'FASTMIX', 'try:', 'except', 'is_available', 'sklearn', 'digits': assert word not in code, word
    imports = [line for line in lines(name) if line.startswith('from')]
    assert imports[-1].startswith('from fastmix.all import *')


@pytest.mark.parametrize('name, write, folder, sizes, shape', [
    ('keras_mixup', write_fashion, 'fashion-mnist', (5800, 200, 1000), (64, 1, 28, 28)),
    ('keras_cutmix', write_cifar, 'cifar10', (300, 200), (32, 3, 32, 32))])
def test_local_data_is_read_and_titled(name, write, folder, sizes, shape, go, monkeypatch, tmp_path):
    (tmp_path/folder).mkdir()
    write(tmp_path/folder)
    monkeypatch.setenv('FASTMIX_DATA', str(tmp_path))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    names, said = go(to_preview(name))
    assert 'local folder' in said and 'No GPU here' in said and 'digits' not in said
    assert tuple(len(dl.dataset) for dl in names.dls.loaders) == sizes and names.dls.one_batch()[0].shape == shape
    if name == 'keras_mixup':
        for x, y in names.items(names.test)[:50]: assert round(x[0, 0, 0].item()*255) == y
        assert names.train.classes[9] == 'Ankle boot'
    else:
        for image, label in names.pairs(names.test)[:50]: assert round(image[..., 0].mean()/20) == names.test.classes.index(label)
        assert names.dls.vocab[9] == 'truck'


@both
def test_with_a_gpu_all_of_it_is_used(name, go, monkeypatch, tmp_path):
    folder, write = dict(keras_mixup=('fashion-mnist', write_fashion), keras_cutmix=('cifar10', write_cifar))[name]
    (tmp_path/folder).mkdir()
    write(tmp_path/folder)
    monkeypatch.setenv('FASTMIX_DATA', str(tmp_path))
    found = to_preview(name)
    hidden = next(i for i, cell in enumerate(found) if 'hide' in cell.directives_)
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, 'is_available', lambda: True)
        names, said = go(found[:hidden + 1])
    assert [len(o.data) for o in names.parts] == ([7000, 1200] if name == 'keras_mixup' else [310, 210])


@both
def test_with_internet_and_gpu_nothing_is_changed(name, go, monkeypatch):
    import torchvision.datasets as sets
    asked, real = [], 'FashionMNIST' if name == 'keras_mixup' else 'CIFAR10'
    monkeypatch.delenv('IN_TEST')
    monkeypatch.setattr(sets, real, lambda *args, **kwargs: asked.append(kwargs) or [0]*10)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    found = to_preview(name)
    names, _ = go(found[:1])
    before = vars(names)[real]
    names, said = go(found[1:next(i for i, cell in enumerate(found) if 'hide' in cell.directives_) + 1])
    assert vars(names)[real] is before and said == '' and [o['train'] for o in asked] == [True, False]
    assert names.image_dls.__module__ == 'fastmix.data'


def test_without_internet_the_digits_take_over(go, monkeypatch):
    "Also where torchvision says so with its `RuntimeError`"
    import torchvision.datasets as sets
    def no_internet(*args, **kwargs): raise RuntimeError('Error downloading')
    monkeypatch.delenv('IN_TEST')
    monkeypatch.setattr(sets, 'FashionMNIST', no_internet)
    names, said = go(to_preview('keras_mixup'))
    assert 'No Fashion-MNIST here' in said and len(names.train) == 1297 and len(names.test) == 500
