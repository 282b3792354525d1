"""Write nbs/tutorials/rows.ipynb: every row of tests/rows.py, run on fastmix and on fastai's own callbacks."""
import os
import sys
from pathlib import Path

os.environ['MPLBACKEND'] = 'agg'

import fastai.callback.mixup
import torch
from fastcore.nbio import dict2nb, mk_cell, write_nb

import fastmix.all

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'tests'))

from rows import outcome, rows  # noqa: E402, after the path to it

notebook = root/'nbs/tutorials/rows.ipynb'
intro = """# Row by row

> What mixing must hold in every task, loop and fault, here and with fastai's own callbacks

Each row is a small check that is run twice, on fastmix and on fastai's own `MixUp` and `CutMix`. It reads λ and the partners off the mixed batch and computes the loss by hand. "holds" means that the check passed; anything else is the first line of what went wrong. The last column leads to the lesson or the tests that show the row at length.

The checks are in `tests/rows.py`, and this page is written by `make rows`; a test fails when it is out of date."""


def run():
    "For each row: what became of it with fastmix, and with fastai"
    torch.set_num_threads(1)
    return [(row, outcome(row.check, fastmix.all), outcome(row.check, fastai.callback.mixup)) for row in rows]


def line(*cells): return '| ' + ' | '.join(cell.replace('|', r'\|').replace('__', r'\_\_') for cell in cells) + ' |'


def page(results):
    "The page as a list of Markdown texts"
    counts = [sum(result[i] == 'holds' for result in results) for i in (1, 2)]
    blocks = [intro, f'Of {len(results)} rows, fastmix holds {counts[0]}, and fastai {counts[1]}.']
    for section in dict.fromkeys(row.section for row in rows):
        blocks += [f'## {section}', '\n'.join([line('row', 'fastmix', "fastai's own", 'shown in'), line(*['---']*4), *(
            line(row.text, ours, theirs, f'[{Path(row.link.partition("#")[0]).stem}]({row.link})')
            for row, ours, theirs in results if row.section == section)])]
    return blocks


if __name__ == '__main__':
    cells = [mk_cell(block, 'markdown', id=f'row{i:05x}') for i, block in enumerate(page(run()))]
    metadata = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    notebook.parent.mkdir(exist_ok=True)
    write_nb(dict2nb(dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)), notebook)
