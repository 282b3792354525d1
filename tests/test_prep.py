"""A new method is one notebook: `make prep` makes everything else from it, and leaves nothing of one that is gone."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fastcore.nbio import dict2nb, mk_cell, write_nb

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
