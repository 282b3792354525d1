import gc
import os
import signal
from pathlib import Path

os.environ |= {'MPLBACKEND': 'agg', 'COLUMNS': '100'} # As wide as where nobody says how wide it is

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # Tests that run in the background ignore Ctrl-C, and what they start would, too


longest = ['test_left_alone.py', 'test_site.py', 'test_lessons.py', 'test_cli.py', 'test_pets.py', 'test_rows.py']


def pytest_collection_modifyitems(items):
    "The longest files first: where two processes take one file after the other, they end at about the same time"
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') and not torch.cuda.is_available(): pytest.skip('needs a CUDA device')


@pytest.fixture(scope='session')
def data():
    "The folder of real data sets"
    if 'FASTMIX_DATA' not in os.environ: pytest.skip('needs real data: set FASTMIX_DATA to its folder')
    folder = Path(os.environ['FASTMIX_DATA'])
    if not folder.is_dir(): pytest.fail(f'FASTMIX_DATA names {folder}, which is not a folder')
    return folder


@pytest.fixture(scope='module', autouse=True)
def frozen():
    "Collecting garbage, as every run does, need not look at what was imported"
    gc.freeze()
    yield
    gc.unfreeze()
