"""The Pets walkthrough runs where the Pets are and where they are not, and what is committed shows none of them."""
from pathlib import Path
from urllib.error import URLError

import matplotlib.pyplot as plt
import numpy as np
import pytest
from execnb.shell import CaptureShell, format_exc
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.test import nb_test_cells
from PIL import Image

config = get_config(Path(__file__).parent)
notebook = config.nbs_path/'tutorials/pets.ipynb'
cells = nb_test_cells(notebook, config.tst_flags)
imports, deciding = (next(cell for cell in cells if text in cell.source) for text in ('import urlopen', 'folder = pets_folder()'))
no_pets, some_pets = 'There are no Pets here', 'photographs to train on'


def texts(outputs):
    "What a cell printed or returned, as text"
    return ''.join(''.join(o.get('text', o.get('data', {}).get('text/plain', ''))) for o in outputs)


@pytest.fixture
def shell(monkeypatch):
    "A shell that runs cells in this process, with none of the notebook's settings; `shell.go(cells)` returns what they say"
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setenv('IN_TEST', '1')
    for name in 'FASTMIX_PETS', 'FASTMIX_DATA': monkeypatch.delenv(name, raising=False)
    shell = CaptureShell(notebook, mpl_format=None)

    def go(cells):
        said = ''
        for cell in cells:
            said += texts(shell.run(cell.source, timeout=config.cell_timeout))
            plt.close('all')
            if shell.exc: pytest.fail(f'{cell.source}\n\n{"".join(format_exc(shell.exc))}', pytrace=False)
        return said

    shell.go = go
    yield shell
    shell.close()
    CaptureShell.clear_instance()


@pytest.fixture
def decide(shell, monkeypatch, tmp_path):
    "Runs the cells that find out what there is, with fastai's data in an empty folder, and without the internet: what they say, and the setting"
    calls = []

    def no_internet(url, timeout):
        calls.append((url, timeout))
        raise URLError('no internet')

    def decide(**names):
        shell.go(cells[:cells.index(imports)+1])
        shell.user_ns |= dict(urlopen=no_internet, fastai_path=lambda folder: tmp_path/'fastai') | names
        return shell.go(cells[cells.index(imports)+1:cells.index(deciding)+1]), shell.user_ns['setting']

    decide.calls = calls
    return decide


def photographs(folder, **counts):
    "Write that many small photographs of each breed"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for breed, n in counts.items():
        for i in range(n): Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(folder/f'{breed}_{i}.jpg')
    return folder


def test_what_is_committed_shows_no_pets():
    outputs = [output for cell in read_nb(notebook).cells if cell.cell_type == 'code' for output in cell.outputs]
    said = texts(outputs)
    assert no_pets in said and some_pets not in said
    assert not [breed for breed in ('leonberger', 'Ragdoll', 'Abyssinian', 'Bengal', 'bulldog') if breed in said]
    assert any('image/png' in output.get('data', {}) for output in outputs)


def test_runs_on_local_pets(shell, data, monkeypatch):
    "The whole notebook, with smaller images and a single epoch"
    monkeypatch.setenv('FASTMIX_DATA', str(data))
    last = cells.index(deciding)
    said = shell.go(cells[:last+1])
    assert f'511 {some_pets} and 128 to validate on, of 10 breeds' in said
    assert 'Left out: 22 breeds' in said and 'leonberger and Ragdoll' in said
    setting = shell.user_ns['setting']
    assert {name for _, name in setting.images.valid} == set(setting.images.classes) and len(setting.names) == 32
    setting.size, setting.epochs = 32, 1
    said = shell.go(cells[last+1:])
    assert all(arm in said for arm in ('none', 'MixUp', 'CutMix', 'MixChoice'))
    runs = shell.user_ns['with_and_without'].runs, shell.user_ns['cut_and_choice'].runs
    assert all((run.status == 'finished').all() for run in runs)


def test_without_pets(decide, monkeypatch):
    said, setting = decide()
    assert no_pets in said and list(setting.photos) == ['china', 'flower'] and len(setting.images.classes) == 10
    assert not decide.calls # nothing is looked for in the internet while tests run
    monkeypatch.delenv('IN_TEST')
    said, _ = decide()
    assert no_pets in said
    assert [timeout for _, timeout in decide.calls] == [5] # asked once, and not for long


def test_pets_are_downloaded_where_the_internet_is(decide, monkeypatch, tmp_path):
    photographs(tmp_path/'got/images', beagle=6, pug=6)
    monkeypatch.delenv('IN_TEST')
    wanted = []

    class Answer:
        def close(self): pass

    def untar_data(url):
        wanted.append(url)
        return tmp_path/'got'

    said, setting = decide(urlopen=lambda url, timeout: Answer(), untar_data=untar_data)
    assert [Path(url).name for url in wanted] == ['oxford-iiit-pet.tgz'] and some_pets in said
    assert setting.images.classes == ['beagle', 'pug']


def test_pets_that_were_downloaded_before(decide, tmp_path):
    folder = photographs(tmp_path/'fastai/oxford-iiit-pet/images', beagle=6, pug=6).parent
    said, setting = decide(untar_data=lambda url: folder)
    assert some_pets in said and not decide.calls


@pytest.mark.parametrize('counts, two', [
    (dict(beagle=6, pug=6, leonberger=2, Ragdoll=1), ['leonberger', 'Ragdoll']),
    (dict(beagle=6, pug=6), ['beagle', 'pug']),
    (dict(beagle=6, pug=6, Ragdoll=5), ['Ragdoll', 'beagle']),
], ids=['both', 'neither', 'one'])
def test_two_breeds_are_mixed_by_hand(decide, monkeypatch, tmp_path, counts, two):
    monkeypatch.setenv('FASTMIX_PETS', str(photographs(tmp_path/'pets', **counts)))
    said, setting = decide()
    assert list(setting.photos) == two and ' and '.join(two) in said
    assert setting.images.left_out == {breed: n for breed, n in counts.items() if n < 5}
    assert setting.names == sorted(counts)


def test_a_folder_that_is_not_there(shell, monkeypatch, tmp_path):
    monkeypatch.setenv('FASTMIX_PETS', str(tmp_path/'nowhere'))
    shell.go(cells[:cells.index(deciding)])
    shell.run(deciding.source)
    assert 'no such folder' in str(shell.exc[1] if isinstance(shell.exc, tuple) else shell.exc)
