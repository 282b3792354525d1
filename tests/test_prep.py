"""A new method is one notebook: `make prep` makes everything else from it, and leaves nothing of one that is gone. And
the notebooks keep the typography that CONTRIBUTING.md describes, as far as that can be told without doubt."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastcore.nbio import dict2nb, mk_cell, read_nb, write_nb

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'tools'))

from fresh import copy_tree  # noqa: E402, after the path to it
from prep import regenerate  # noqa: E402

cells = [
    mk_cell('# Star\n\n> Half of each of two samples', 'markdown'),
    mk_cell('#| default_exp methods.star'),
    mk_cell('#| export\nfrom fastmix.mixer import Mixer'),
    mk_cell('#| exporti\nclass Helper:\n    def half(self):\n        "No part of the documentation"'),
    mk_cell('#| export\nclass Star(Mixer):\n    "Half of each of two samples"')]

look = """
from fastmix.all import Star
from pages import Lookup, config, write_page
star, page = config.nbs_path/'methods/star.ipynb', config.nbs_path/'star.md'
write_page(star, page, page.parent/'images', lambda file, anchor: (file, anchor))
lookup = Lookup(config.nbs_path/'tutorials/which.ipynb')
print(Star.__module__, lookup.doc('Star'), lookup.doc('Helper'), page.read_text())
"""


def contents(folder): return {file: file.read_bytes() for file in folder.rglob('*') if file.is_file()}


@pytest.fixture(scope='module')
def trees(tmp_path_factory):
    "A copy of the working tree, and what is in it: before there is one method more, with it, and after that is gone"
    tree = tmp_path_factory.mktemp('tree')
    copy_tree(tree)
    before, star = contents(tree), tree/'nbs/methods/star.ipynb'
    write_nb(dict2nb(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)), star)
    regenerate(tree)
    with_star = contents(tree)
    env = os.environ | {'PYTHONPATH': f'{tree}{os.pathsep}{tree}/tools', 'PYTHONDONTWRITEBYTECODE': '1'}
    seen = subprocess.run([sys.executable, '-c', look], cwd=tree, env=env, capture_output=True, text=True)
    for file in star, tree/'nbs/star.md': file.unlink(missing_ok=True)
    regenerate(tree)
    return tree, before, with_star, contents(tree), seen


def test_it_is_imported_and_shown_and_linked(trees):
    *_, seen = trees
    assert seen.stdout.startswith('fastmix.methods.star ../methods/star.ipynb#star None '), seen.stderr
    assert '### <code>Star</code>' in seen.stdout and 'Helper' not in seen.stdout


def test_its_own_files_and_what_lists_the_modules_change_and_nothing_else(trees):
    tree, before, with_star, _, _ = trees
    changed = {file.relative_to(tree).as_posix() for file in with_star if with_star[file] != before.get(file)}
    own = {'nbs/methods/star.ipynb', 'fastmix/methods/star.py'}
    assert own <= changed <= own | {'fastmix/methods/__init__.py', 'fastmix/all.py', 'fastmix/_modidx.py'}


def test_when_it_is_gone_all_is_as_before(trees):
    _, before, _, after, _ = trees
    assert after == before


unusual = {
    'curly quotes': r'[“”‘’]', 'a dash between words': r'[a-z)] [-–] [A-Za-z(]|—', 'two spaces': r'\S {2,}\S', 'a space at the end': r' $',
    'three dots, not …': r'\.\.\.', 'no space before %': r'\d%', 'x, not ×': r'\d ?x ?\d', 'arXiv with a colon': r'arXiv:',
    'a link to arXiv without its number': r'\[(?!(?:arXiv )?(\d{4}\.\d{4,5})\]\(https://arxiv\.org/abs/\1\))[^\]]*\]\([^)]*arxiv\.org',
    'a heading that ends like a sentence': r'^#+ .*[.:;]$'}


def breaks(text):
    "What in Markdown `text`, its code and formulas aside, isn't as CONTRIBUTING.md has it: what it is, and the line"
    prose = re.sub(r'^```.*?^```|^ {4}.*?$', '', text, flags=re.M | re.S)
    prose = re.sub(r'`[^`\n]+`|\$[^$\n]+\$', 'code', prose)
    return [(what, line) for what, pattern in unusual.items() for line in prose.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize('text, what', [
    ('A “mix”', 'curly quotes'), ('own - partner', 'a dash between words'), ('one  two', 'two spaces'), ('and so on...', 'three dots, not …'),
    ('gains 5% here', 'no space before %'), ('8 x 8', 'x, not ×'), ('(arXiv:1710.09412)', 'arXiv with a colon'),
    ('[mixup](https://arxiv.org/abs/1710.09412)', 'a link to arXiv without its number'),
    ('[arXiv 1710.09412](https://arxiv.org/pdf/1710.09412)', 'a link to arXiv without its number'), ('## The cost.', 'a heading that ends like a sentence')])
def test_the_unusual_is_found(text, what): assert breaks(text) == [(what, text)]


@pytest.mark.parametrize('text', ['`a - b`, `f(...)` and $a - b$', '```\ncut  - x\n```', '| – | 5 % · (1/3 - 1/8) |',
                                  '[arXiv 1710.09412](https://arxiv.org/abs/1710.09412), [1710.09412](https://arxiv.org/abs/1710.09412)'])
def test_the_usual_is_left_alone(text): assert breaks(text) == []


@pytest.mark.parametrize('page', sorted((root/'nbs').rglob('*.ipynb')), ids=lambda page: page.relative_to(root/'nbs').as_posix())
def test_notebooks_keep_one_typography(page):
    cells = read_nb(page).cells
    prose = [cell.source for cell in cells if cell.cell_type == 'markdown']
    assert [found for text in prose for found in breaks(text)] == []
    titles = re.findall(r'^# .*$', re.sub(r'^```.*?^```', '', '\n'.join(prose), flags=re.M | re.S), re.M)
    assert len(titles) == 1 and prose[0].startswith(titles[0] + '\n\n> '), 'a page begins with its only title, and a line that says what it is about'
    code = [cell.source for cell in cells if cell.cell_type == 'code']
    assert not [text for text in code if re.search(r'\n\n\n|[ \t]$', text, re.M)], 'two blank lines, or a space at the end of one'
