"""The pages that export nothing: what nbdev's own run of them does not see."""
from pathlib import Path

import pytest
from fastcore.nbio import read_nb

nbs = Path(__file__).parent.parent/'nbs'
methods = sorted((nbs/'methods').glob('*.ipynb'))
pages = methods + sorted((nbs/'tutorials').glob('*.ipynb'))


def lines(page):
    "The lines of the page's prose"
    return [line for cell in read_nb(page).cells if cell.cell_type == 'markdown' for line in cell.source.splitlines()]


def test_every_method_has_a_page_of_one_pattern():
    headings = {page.stem: [line for line in lines(page) if line.startswith('## ')] for page in methods}
    assert set(headings) >= {'mixup', 'cutmix', 'manifold_mixup', 'mix_choice'}
    common = [f'## {part}' for part in ('The picture', 'In use', 'The code', 'The arguments', 'The cost', 'When it hurts', 'The paper')]
    for page, found in headings.items(): assert [line for line in found if line in common] == common, f'{page}.ipynb needs these headings, in this order: {common}'


@pytest.mark.parametrize('page', pages, ids=[page.stem for page in pages])
def test_page_opens_with_title_and_claim_and_is_of_modest_size(page):
    title, _, claim = lines(page)[:3]
    assert title.startswith('# ') and claim.startswith('> ')
    assert page.stat().st_size < 1_000_000
