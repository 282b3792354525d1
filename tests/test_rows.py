"""Every row holds here, and the page that lists them is what a run says."""
import re
from pathlib import Path
from runpy import run_path

import pytest
from fastcore.nbio import read_nb

from rows import rows

root = Path(__file__).resolve().parent.parent
script = run_path(str(root/'tools/rows_page.py'))


@pytest.fixture(scope='module')
def results(): return script['run']()


def test_every_row_holds(results): assert {row.text: ours for row, ours, _ in results if ours != 'holds'} == {}


def verdicts(page):
    "The rows of a page and what holds; the words of an error change with the versions of torch and fastai"
    lines = [re.split(r'(?<!\\)\|', line) for block in page for line in block.splitlines() if line.startswith('|')]
    return [(row, ours == ' holds ', theirs == ' holds ', link) for _, row, ours, theirs, link, _ in lines]


def test_the_page_is_up_to_date(results):
    written = verdicts(cell.source for cell in read_nb(script['notebook']).cells)
    assert len(written) > len(rows) and written == verdicts(script['page'](results)), 'run `make rows`'


def slugs(notebook):
    "The anchors of a notebook's headings"
    titles = re.findall(r'^#+ (.+)$', '\n'.join(cell.source for cell in read_nb(notebook).cells if cell.cell_type == 'markdown'), re.M)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('link', sorted({row.link for row in rows}))
def test_links_lead_somewhere(link):
    path, _, anchor = link.partition('#')
    file = root/'nbs/tutorials'/path
    assert file.exists()
    assert not anchor or anchor in slugs(file)


def test_rows_are_told_apart(): assert len({row.text for row in rows}) == len(rows)
