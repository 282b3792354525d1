"""The lessons of every notebook hold for the exported module too, not only for the notebook's own definitions."""
import sys
from importlib import import_module
from pathlib import Path
from symtable import symtable

import matplotlib.pyplot as plt
import pytest
from execnb.shell import CaptureShell, format_exc
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import NBProcessor
from nbdev.test import nb_test_cells

config = get_config(Path(__file__).parent)
export_directives = 'export', 'exports', 'exporti'


def exported_to(notebook):
    "The module that `notebook` exports to, as a list of one name, or of none"
    cells = NBProcessor(notebook).nb.cells
    return [cell.directives_['default_exp'] for cell in cells if 'default_exp' in cell.directives_]


notebooks = [notebook for notebook in nbglob(config.nbs_path, as_path=True).sorted() if exported_to(notebook)]
names = [notebook.relative_to(config.nbs_path).with_suffix('').as_posix() for notebook in notebooks]


def names_bound(source):
    "The names that `source` binds when it runs at the top level"
    return [symbol.get_name() for symbol in symtable(source, 'cell', 'exec').get_symbols()
            if symbol.is_assigned() or symbol.is_imported()]


def take_from_module(namespace, cell, default):
    "Give `namespace` what the exported `cell` would define, from the module; False where the cell exports nothing"
    directives = cell.directives_
    exports = [name for name in export_directives if name in directives]
    if not exports: return False
    module = vars(import_module(f'{config.lib_path.name}.{directives[exports[0]] or default}'))
    names = module if 'import *' in cell.source else names_bound(cell.source)
    # A patched method leaves `None` under its name in the module, and in a notebook what the name meant before
    namespace.update({name: module[name] for name in names if module.get(name) is not None and not name.startswith('__')})
    return True


@pytest.fixture
def shell(request, monkeypatch):
    "A shell that runs cells in this process, in the folder of the notebook"
    notebook = request.param
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setattr(sys, 'path', sys.path[:])
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    shell = CaptureShell(notebook, mpl_format=None)
    yield shell
    shell.close()
    CaptureShell.clear_instance()
    plt.close('all')


@pytest.mark.parametrize('notebook, shell', [(notebook, notebook) for notebook in notebooks], indirect=['shell'],
                         ids=names)
def test_lessons(notebook, shell):
    default = exported_to(notebook)[0]
    for cell in nb_test_cells(notebook, config.tst_flags):
        if take_from_module(shell.user_ns, cell, default): continue
        shell.run(cell.source, timeout=config.cell_timeout)
        plt.close('all')
        if shell.exc:
            place = f'{notebook.name}, cell {cell.idx_ + 1} (id {cell.id})'
            pytest.fail(f'{place}:\n{cell.source}\n\n{"".join(format_exc(shell.exc))}', pytrace=False)
