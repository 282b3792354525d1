"The whole training step of a small network, and the time that a callback itself takes"
import contextlib
from functools import partial

import fastai.callback.mixup as theirs
import fastai.callback.progress  # noqa: F401, `Learner.no_bar`
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.layers import ConvLayer, ResBlock
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

import fastmix.all as ours

from .peers import CLASSES, Same, learner

ARMS = {
    ('torch', 'no callback'): lambda: None,
    ('fastmix', 'MixUp()'): partial(ours.MixUp, seed=0),
    ('fastmix', 'CutMix()'): partial(ours.CutMix, seed=0),
    ('fastmix', "CutMix(per='sample')"): partial(ours.CutMix, per='sample', seed=0),
    ('fastai', 'MixUp()'): theirs.MixUp,
    ('fastai', 'CutMix()'): theirs.CutMix,
}


def small_resnet(channels=3):
    "A residual network for images of 32×32: six blocks, 16 to 64 channels"
    blocks = [ResBlock(1, a, b, stride=s) for a, b, s in ((16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))]
    return nn.Sequential(ConvLayer(channels, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def training(x, y, steps, model=small_resnet):
    "For each arm a function that trains a network of its own for some steps, by `Learner.fit`"
    calls = {}
    for arm, callback in ARMS.items():
        torch.manual_seed(0)
        learn = Learner(DataLoaders(Same(x, y, steps), Same(x, y, 0)), model(x.shape[1]), loss_func=CrossEntropyLossFlat(), opt_func=SGD,
                        lr=.01, cbs=callback())

        def run(learn=learn):
            with learn.no_bar(), learn.no_logging(): learn.fit(1)
        calls[arm] = run
    return calls


class Nothing(Callback):
    "A callback that does nothing at the events of a mixer"
    run_valid = False
    def before_batch(self): pass
    def after_batch(self): pass


PARTS = 'events', 'events and loss', 'events, loss and backward'
IN_A_ROW = 100 # so that the first ones do not count, in which a callback's code and data come from memory anew


def events(x, y, part, n=IN_A_ROW):
    """For each arm, a function that runs a part of the step `n` times on a batch so small that only Python counts.

    The parts are in `PARTS`: the two events of a mixer, and with them fastai's cross entropy of the batch, and its backward pass.
    In the place of no callback is one that does nothing.
    """
    pred, calls = torch.randn(len(x), CLASSES).requires_grad_(), {}
    arms = {('', 'nothing'): Nothing, **{arm: callback for arm, callback in ARMS.items() if arm[0] != 'torch'}}
    for arm, callback in arms.items():
        learn = learner(x, y, callback())

        def run(learn=learn):
            for _ in range(n):
                learn.xb, learn.yb = (x,), (y,)
                learn('before_batch')
                if part != 'events':
                    loss = learn.loss_func(pred, *learn.yb)
                    if part != 'events and loss':
                        loss.backward()
                        pred.grad = None
                learn('after_batch')
        calls[arm] = run
    return calls


@contextlib.contextmanager
def one_thread():
    "Torch computes with one thread"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: yield
    finally: torch.set_num_threads(threads)
