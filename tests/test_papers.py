"""The page that leads from a paper to a line of fastmix: every line of its table makes a mixer that keeps what mixers promise, and every mixer stands there."""
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.load import DataLoader
from fastcore.nbio import read_nb

import fastmix.all
from fastmix.all import Batch, ManifoldMixUp, MixedBatch, Mixer, mix_rng
from fastmix.mixer import example_batch

page = Path(__file__).parent.parent/'nbs/tutorials/papers.ipynb'
balanced = DataLoader([(torch.rand(3, 20, 30), torch.tensor(0))]*12, bs=6)


def table():
    "The rows of the page's table: paper, arXiv, line, what for"
    def cells(line): return [cell.strip() for cell in line.strip('|').replace('<br>', ' | ').split(' | ')]
    text = next(cell.source for cell in read_nb(page).cells if cell.cell_type == 'markdown' and cell.source.startswith('| paper |'))
    return [cells(line) for line in text.splitlines()[2:]]


def made(line): return eval(line.strip('`'), vars(fastmix.all) | dict(balanced=balanced))


rows = table()
names = [re.fullmatch(r'\[(.*)\]\((.*)\)', row[0])[1] for row in rows]


def test_table_is_sorted_and_whole():
    assert len(rows) > 40 and all(len(row) == 4 and all(row) for row in rows)
    assert len(set(names)) == len(names) and names == sorted(names, key=lambda name: name.lower().replace('`', ''))
    for paper, arxiv, line, what in rows:
        assert arxiv == '–' or re.fullmatch(r'\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)', arxiv), paper
        assert line.startswith('`') and line.endswith('`') and what[0].isupper() and not what.endswith('.'), paper


def test_links_lead_to_pages():
    "A method without a row is named below the table"
    linked = {re.search(r'methods/(\w+)\.ipynb', paper)[1] for paper, *_ in rows}
    assert linked <= {method.stem for method in (page.parent.parent/'methods').glob('*.ipynb')} and len(linked) > 15


@pytest.mark.parametrize('row', rows, ids=names)
def test_line_makes_what_it_says(row):
    paper, _, line, _ = row
    mixer = made(line)
    assert isinstance(mixer, Callback)
    method = re.search(r'\((.*\.ipynb)\)', paper)[1]
    cells = read_nb(page.parent/method).cells
    assert any(re.search(rf'^class {type(mixer).__name__}\(', cell.source, re.M) for cell in cells), 'the paper leads to another page'


@pytest.mark.parametrize('row', rows, ids=names)
def test_line_mixes_what_it_is_for(row):
    mixer, rng = made(row[2]), mix_rng(0)
    if isinstance(mixer, ManifoldMixUp) or not isinstance(mixer, Mixer): return # need a model: tests/test_manifold.py, tests/methods
    batch = example_batch(mixer.data, (12, 3, 20, 30))
    if mixer.targets == 'union': batch = Batch(batch.xb, (F.one_hot(batch.y).float(),))
    kept = [x.clone() for x in batch.xb]
    mixed = False
    for _ in range(8): # Some draw now and then a mix in which nothing is the partner's
        under = MixedBatch(mixer.pick(None, rng), batch, rng)
        for x, own in zip(under.inputs(), kept, strict=True):
            assert x.shape == (24 if mixer.beside else 12, *own.shape[1:])
            mixed |= not torch.equal(x[-12:], own)
        torch.testing.assert_close(under.mix.shares.sum(0), torch.ones_like(under.mix.shares[0]))
    assert mixed, 'nothing is mixed'
    assert all(map(torch.equal, batch.xb, kept)), 'the batch was written to'
