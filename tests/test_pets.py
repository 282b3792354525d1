"""The page on the Pets runs where the Pets are and where they are not, and what is committed shows none of them."""
import os
import re
from pathlib import Path
from urllib.error import URLError

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from execnb.shell import CaptureShell, format_exc
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.test import nb_test_cells
from PIL import Image

config = get_config(Path(__file__).parent)
notebook = config.nbs_path/'tutorials/pets.ipynb'
cells = nb_test_cells(notebook, config.tst_flags)
hidden = [cell for cell in cells if 'hide' in cell.directives_]
visible = [cell for cell in cells if cell not in hidden]
imports = next(cell for cell in cells if 'from fastmix.all import *' in cell.source)
deciding = next(cell for cell in hidden if 'untar_data' in cell.source)
data_block = next(cell for cell in cells if 'DataBlock(' in cell.source)
older = next(cell for cell in cells if 'cnn_learner(' in cell.source and cell in visible)
no_pets, no_gpu, no_weights, local_pets = 'No Pets here', 'No GPU here', 'No pretrained weights here', 'a local part of the Pets'


def texts(outputs):
    "What a cell printed or returned, as text"
    return ''.join(''.join(o.get('text', o.get('data', {}).get('text/plain', ''))) for o in outputs)


def no_internet(*args, **kwargs): raise URLError('no internet')


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """A shell that runs cells in this process, `shell.go(cells)` returns what they say. There is no internet, nothing was
    downloaded before, and where a cell asks for temporary folders they are in `tmp_path`"""
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.delenv('FASTMIX_DATA', raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.setattr('fastai.data.external.fastai_path', lambda folder: tmp_path/'fastai')
    monkeypatch.setattr('fastai.data.external.untar_data', no_internet)
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', no_internet)
    monkeypatch.setattr('fastcore.basics.defaults.cpus', 2)
    shell = CaptureShell(notebook, mpl_format=None)

    def go(cells):
        said = ''
        for cell in cells:
            said += texts(shell.run(cell.source, timeout=config.cell_timeout))
            plt.close('all')
            if shell.exc: pytest.fail(f'{cell.source}\n\n{"".join(format_exc(shell.exc))}', pytrace=False)
            if cell is imports: shell.user_ns |= shell.instead
        return said

    shell.go, shell.instead = go, dict(untar_data=no_internet, fastai_path=lambda folder: tmp_path/'fastai')
    yield shell
    shell.close()
    CaptureShell.clear_instance()


def up_to(cell): return cells[:cells.index(cell)+1]


def after(cell): return cells[cells.index(cell)+1:]


def breeds(path): return {re.sub(r'_\d+\.jpg$', '', file.name) for file in (path/'images').glob('*.jpg')}


def photographs(folder, **counts):
    "Write that many small photographs of each breed, as the Pets are laid out"
    (folder/'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for breed, n in counts.items():
        for i in range(n): Image.fromarray(rng.integers(0, 255, (80, 96, 3), np.uint8)).save(folder/f'images/{breed}_{i}.jpg')
    return folder


def test_what_is_committed_shows_no_pets():
    outputs = [output for cell in read_nb(notebook).cells if cell.cell_type == 'code' for output in cell.outputs]
    said = texts(outputs)
    assert no_pets in said and local_pets not in said and 'temple' in said
    assert not [breed for breed in ('leonberger', 'Ragdoll', 'Abyssinian', 'Bengal', 'bulldog') if breed in said]
    assert sum('image/png' in output.get('data', {}) for output in outputs) > 5


def test_a_reader_sees_no_plumbing():
    code = '\n'.join(cell.source for cell in visible)
    for word in 'environ', 'IN_TEST', 'FASTMIX', 'try:', 'except', 'tempfile', 'is_available', 'Internet', 'sklearn', 'temple':
        assert word not in code, word
    lines = code.splitlines()
    for line in ('path = untar_data(URLs.PETS)', 'learn = vision_learner(dls, resnet34, cbs=MixUp())',
                 'learn = cnn_learner(dls, resnet34, cbs=MixUp())'): assert line in lines, line
    before = [line for cell in up_to(data_block) if cell in visible for line in cell.source.splitlines()]
    assert len(before) < 20, before
    assert [cell for cell in hidden if 'environ' in cell.source] == [deciding]


def test_fastmix_is_imported_last():
    assert [line for line in imports.source.splitlines() if line.startswith('from')][-1] == 'from fastmix.all import *'


def test_runs_on_two_photographs(shell):
    said = shell.go(cells)
    assert no_pets in said and no_weights in said and local_pets not in said
    assert list(shell.user_ns['dls'].vocab) == ['flower', 'temple'] and 'leonberger' not in said
    assert [*shell.user_ns['results']] == ['without', 'MixUp', 'CutMix']


def test_runs_on_local_pets(shell, data, monkeypatch):
    monkeypatch.setenv('FASTMIX_DATA', str(data))
    said = shell.go(cells)
    assert local_pets in said and no_pets not in said and 'leonberger' in said and 'Ragdoll' in said
    dls = shell.user_ns['dls']
    assert set(dls.vocab) == breeds(shell.user_ns['path']) and len(dls.vocab) == 11
    assert Path(shell.user_ns['path']).parent == Path(os.environ['TORCH_HOME']).parent # A copy: the data stay as they are


def test_runs_on_downloaded_pets(shell, monkeypatch, tmp_path):
    "As on a computer with the internet and without a GPU: the breeds and the weights are downloaded, and a few images are used"
    names = 'leonberger', 'Ragdoll', 'pug', *(f'breed_{i}' for i in range(34))
    folder = photographs(tmp_path/'got', **dict.fromkeys(names, 9))
    monkeypatch.delenv('IN_TEST')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url',
                        lambda *args, **kwargs: torchvision.models.resnet34().state_dict())
    wanted = []

    def untar_data(url):
        wanted.append(url)
        return folder

    shell.instead['untar_data'] = untar_data
    said = shell.go(up_to(older))
    assert [Path(url).name for url in wanted] == ['oxford-iiit-pet.tgz']
    assert no_gpu in said and not [note for note in (no_pets, local_pets, no_weights) if note in said]
    dls, learn = shell.user_ns['dls'], shell.user_ns['learn']
    assert set(dls.vocab) == set(names) and len(shell.user_ns['files']) == 37*5
    assert shell.user_ns['y_own'].shape == (37,) and shell.user_ns['mixed_y'].nonzero().flatten().tolist() == [0, 35]
    assert dls.one_batch()[0].shape == (32, 3, 64, 64) and learn.pretrained
    said = shell.go(after(older))
    assert [*shell.user_ns['results']] == ['without', 'MixUp', 'CutMix']


def test_with_internet_and_gpu_nothing_is_changed(shell, monkeypatch, tmp_path):
    folder = photographs(tmp_path/'got', leonberger=6, Ragdoll=6)
    monkeypatch.delenv('IN_TEST')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torchvision.models._api, 'load_state_dict_from_url', lambda *args, **kwargs: {'a': 1})
    shell.instead['untar_data'] = lambda url: folder
    shell.go(up_to(imports))
    names = 'untar_data', 'aug_transforms', 'vision_learner', 'cnn_learner', 'own', 'partner'
    before = {name: shell.user_ns.get(name) for name in names} | dict(own='leonberger', partner='Ragdoll')
    said = shell.go(cells[cells.index(imports)+1:cells.index(data_block)])
    assert {name: shell.user_ns[name] for name in names} == before and said == '' and shell.user_ns['path'] == folder


def test_nothing_is_downloaded_while_tests_run(shell):
    asked = []
    shell.instead['untar_data'] = asked.append
    assert no_pets in shell.go(up_to(deciding) + [cells[cells.index(deciding)+1]]) and not asked


def test_pets_that_were_downloaded_before(shell, tmp_path):
    folder = photographs(tmp_path/'fastai/oxford-iiit-pet', leonberger=6, Ragdoll=6, pug=2)
    shell.instead['untar_data'] = lambda url: folder
    said = shell.go(up_to(deciding) + [cells[cells.index(deciding)+1]])
    assert no_pets not in said and breeds(shell.user_ns['path']) == {'leonberger', 'Ragdoll'}


def test_the_internet_is_asked_once_and_not_for_long(shell, monkeypatch):
    import socket
    monkeypatch.delenv('IN_TEST')
    limits = []

    def no_answer(url):
        limits.append(socket.getdefaulttimeout())
        raise TimeoutError

    shell.instead['untar_data'] = no_answer
    assert no_pets in shell.go(up_to(data_block)) and limits == [10] and socket.getdefaulttimeout() is None
