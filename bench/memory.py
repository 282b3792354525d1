"""How much memory a call needs at its peak, beside what was there before.

Read off the operating system, so that everything counts, NumPy's arrays as well: Linux keeps the highest size that a process
had (`VmHWM`), and sets it back to the present one when asked. It must run in a process that gives each large block back at once
when it is freed, which `MALLOC_MMAP_THRESHOLD_` has the C library do: `measured` starts such a process.
"""
import ctypes
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch


def status(field):
    return next(int(line.split()[1])*1024 for line in open('/proc/self/status') if line.startswith(field + ':'))


def available():
    "Can the peak be read here?"
    return sys.platform == 'linux' and os.access('/proc/self/clear_refs', os.W_OK) and hasattr(ctypes.CDLL(None), 'malloc_trim')


def peak(call, runs=2):
    "The bytes that `call` needed at its peak, what it returns included: the largest of some runs after a first one"
    call()
    gc.collect(1)
    most = 0
    for _ in range(runs):
        ctypes.CDLL(None).malloc_trim(0)
        before = status('VmRSS')
        Path('/proc/self/clear_refs').write_text('5')
        result = call()
        most = max(most, status('VmHWM') - before)
        del result
    return most


def measured(jobs):
    "What `main` says of `jobs`, in a process of its own"
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '65536', 'PYTHONPATH': path}
    done = subprocess.run([sys.executable, '-m', 'bench.memory', json.dumps(jobs)], env=env, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_mixing(shape, dtype, layout):
    """Every way on one batch, first what is known: one clone, and two. In units of the batch.

    Each `[library, name, kind, method, per, in_place, peak]`.
    """
    from bench.peers import CLASSES, laid_out, numbered, refusals, way, ways
    refused = refusals(*numbered([min(side, 12) for side in shape], dtype, layout))
    x, y = laid_out(torch.randn(shape), dtype, layout), torch.randint(0, CLASSES, (shape[0],))
    known = [way('torch', 'x.clone()', '', '', x.clone), way('torch', 'two batches', '', '', lambda: (x.clone(), x.clone()))]
    if x.dtype == torch.float32: known.append(way('torch', 'NumPy, two batches', '', '', lambda: (x.numpy() + 1) + 1))
    size = x.numel()*x.element_size()
    return [[w.library, w.name, w.kind, w.method, w.per, w.in_place, peak(w.run)/size] for w in known + ways(x, y, refused)]


def of_losses(task, shape):
    "Every loss, forward and backward: `[library, name, group, peak]`, in units of the prediction"
    from bench.losses import losses
    pred, calls = losses(task, shape)
    size = pred.numel()*pred.element_size()
    return [[c.library, c.name, c.group, peak(c.run)/size] for c in calls]


def main(jobs):
    "For each of `jobs`, `['mixing', shape, dtype, layout]` or `['losses', task, shape]`, its list"
    warnings.filterwarnings('ignore')
    print(json.dumps([{'mixing': of_mixing, 'losses': of_losses}[kind](*arguments) for kind, *arguments in jobs]))


if __name__ == '__main__': main(json.loads(sys.argv[1]))
