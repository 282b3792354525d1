"""What one mixing step costs, as a multiple of `x.clone()` of the same batch: fastmix beside fastai.

A step is the callback's `before_batch` and `after_batch` on a batch of 64 images, 3×224×224, float32, on the CPU. All run
in turn, so that a machine that slows down slows all of them; the outputs are released inside the timed call, as the
clone's is. The median of the runs counts.
"""
import os
import statistics
import time

import fastai.callback.mixup as fastais
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

import fastmix.callback as ours

RUNS = 25


def step(mixer, x, y):
    "A function that mixes the batch once, with the mixer on a real `Learner`"
    items = [(x[0], y[0])]
    learn = Learner(DataLoaders(*[DataLoader(items)]*2), nn.Identity(), loss_func=CrossEntropyLossFlat(), cbs=mixer)
    learn.training, learn.pct_train = True, 0.
    for cb in learn.cbs[:]:
        if cb is not mixer: learn.remove_cb(cb)
    if isinstance(mixer, fastais.MixHandler): mixer.before_train()

    def run():
        learn.xb, learn.yb = (x,), (y,)
        learn('before_batch')
        learn('after_batch')
        learn.xb = learn.yb = None
    return run


def medians(calls, runs=RUNS, warmup=3):
    "The median time of each call in seconds, all of them taken in turn"
    times = {name: [] for name in calls}
    for i in range(runs + warmup):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= warmup: times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main():
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 224, 224), torch.randint(0, 10, (64,))
    calls = {'x.clone()': x.clone,
             'fastmix MixUp': step(ours.MixUp(seed=0), x, y), 'fastai MixUp': step(fastais.MixUp(), x, y),
             'fastmix CutMix': step(ours.CutMix(seed=0), x, y),
             "fastmix CutMix(per='sample')": step(ours.CutMix(per='sample', seed=0), x, y),
             'fastai CutMix (writes into the batch)': step(fastais.CutMix(), x.clone(), y)}
    times = medians(calls)
    print(f'64×3×224×224 float32, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; times x.clone(), median of {RUNS} runs')
    for name, t in times.items(): print(f'{t/times["x.clone()"]:6.2f}  {name}')


if __name__ == '__main__': main()
