"""What a mixer must hold, one function a row. Each takes a module with the mixers' classes and raises where they do not hold
it, so that the same code runs on fastai's own callbacks and on fastmix's: tools/rows.py writes the page that compares them."""
import copy
import os
import re
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback import core
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import lr_find  # noqa: F401, adds Learner.fine_tune too
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.distributed import ParallelTrainer
from fastai.interpret import Interpretation
from fastai.learner import Learner, Recorder, load_learner
from fastai.losses import (BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, FocalLossFlat, LabelSmoothingCrossEntropy,
                           LabelSmoothingCrossEntropyFlat, MSELossFlat)
from fastai.metrics import F1ScoreMulti, accuracy
from fastai.optimizer import SGD
from fastai.tabular.model import TabularModel
from fastai.text.learner import get_text_classifier
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from fastai.torch_core import TensorMask, set_seed
from fastai.vision.core import TensorBBox, TensorPoint
from fastai.vision.data import ImageBlock
from fastcore.basics import init_args, noop
from scipy.stats import beta
from sklearn.metrics import f1_score
from torch import nn

from promises import batch, share

rows = []


def row(section, text, link):
    "Register a row: its section and `text` on the page, and a `link` to what shows it, as seen from nbs/tutorials"
    def register(check):
        rows.append(SimpleNamespace(section=section, text=text, link=link, check=check))
        return check
    return register


task = partial(row, 'Tasks')
loop = partial(row, 'The loop around')
fault = partial(row, 'Faults')


def outcome(check, lib):
    "'holds', or what went wrong, in a line"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), within(folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter('ignore')
        set_seed(0)
        try: check(lib)
        except Exception as e: return said(e)
    return 'holds'


@contextmanager
def within(folder):
    before = os.getcwd()
    os.chdir(folder)
    try: yield
    finally: os.chdir(before)


def said(e):
    "The first line of an error, without fastai's preface"
    text = re.sub(r'^Exception occured in .*:\s*', '', str(e)).split('\n')[0].strip()
    text = re.sub(r'0x[0-9a-f]+', '0x…', text)
    if len(text) > 110: text = text[:110].rsplit(' ', 1)[0] + ' …'
    return text if type(e) is AssertionError else f'{type(e).__name__}: {text}'


# What is seen of a fit, and what it must be

class Watch(Callback):
    "Keeps of each training batch what came in, what the model got and gave, the loss, and the gradients"
    order, run_valid = -5, False # before any mixer

    def __init__(self): self.rows = []
    def before_batch(self): self.own, self.y = (tuple(bare(t).clone() for t in ts) for ts in (self.learn.xb, self.learn.yb))
    def after_loss(self):
        self.row = SimpleNamespace(own=self.own, y=self.y, x=tuple(map(bare, self.learn.xb)), pred=bare(self.learn.pred), loss=bare(self.learn.loss))
        self.rows.append(self.row)
    def after_backward(self): self.row.grads = [p.grad.clone() for p in self.learn.model.parameters() if p.grad is not None]


def bare(t): return t.detach().as_subclass(torch.Tensor)


def linear(x): return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))


def learner(loss, *cbs, data=None, model=None, n_inp=None, **kwargs):
    "A learner for batches of 8: two of them, unless `data` has more"
    data = data or batch(16)
    items = list(zip(*data))
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items[:8], bs=8))
    if n_inp: dls.n_inp = n_inp
    learn = Learner(dls, model or linear(data[0]), loss_func=loss, cbs=cbs, lr=.1, **kwargs)
    learn.logger = noop
    return learn.remove_cb(ProgressCallback)


def fit(mixer, loss, *cbs, epochs=2, **kwargs):
    "The batches that a model was trained on"
    learn = learner(loss, mixer, watch := Watch(), *cbs, **kwargs)
    learn.fit(epochs)
    return watch.rows


def same(found, by_hand, what):
    if torch.allclose(found, by_hand, atol=1e-3, rtol=1e-3): return
    raise AssertionError(f'{what} is {found:.2f}, by hand {by_hand:.2f}' if found.ndim == 0 else f'{what} is not what it is by hand')


def shares(row, i=0):
    "The own share of each sample and its partner, read off the input `i`"
    own, x = row.own[i], row.x[i]
    if x.shape != own.shape: raise AssertionError(f'the input has become {tuple(x.shape)}')
    keep, partner = x == own, torch.arange(len(x))
    for k in range(len(x)):
        pasted = [j for j in range(len(x)) if j != k and (torch.where(keep[k], own[k], own[j]) == x[k]).all()]
        if not pasted: return share(x.float(), own.float(), own.float())
        if not keep[k].all(): partner[k] = pasted[0]
    return keep.flatten(1).float().mean(1), partner


def some(rows):
    "The batches with their shares and partners, of which some must be mixed"
    if not rows: raise AssertionError('there was no training batch')
    found = [(row, *shares(row)) for row in rows]
    if not any((lam < 1-1e-4).any() for _, lam, _ in found): raise AssertionError('nothing is mixed')
    return found


def cross_entropy(pred, y): return F.cross_entropy(pred, y, reduction='none')


def right(rows, values=cross_entropy, counts=torch.ones_like):
    "Is the loss of each batch the λ-weighted mean of its `values`, each target counting what `counts` says?"
    for row, lam, partner in some(rows):
        y = row.y[0]
        total = lam*values(row.pred, y) + (1-lam)*values(row.pred, y[partner])
        if y.ndim > 1: same(row.loss, total.mean(), 'the loss'); continue
        same(row.loss, total.sum()/(lam*counts(y) + (1-lam)*counts(y[partner])).sum(), 'the loss')


def blended(lam, partner, t):
    lam = lam.view(-1, *[1]*(t.ndim-1)).to(t.dtype)
    return lam*t + (1-lam)*t[partner]


def plain(rows):
    "Is nothing mixed?"
    for row in rows:
        if not torch.equal(row.x[0], row.own[0]): raise AssertionError('a batch is mixed that must not be')
        same(row.loss, F.cross_entropy(row.pred, row.y[0]), 'the loss')


def refused(f, error, word):
    "Is `f` refused with an `error` that says `word`?"
    try: f()
    except error as e:
        if word in str(e): return
        raise
    raise AssertionError('no error')


# Tasks

single = 'tasks.ipynb#one-class-per-sample'
weight = torch.tensor([.1, 1., 10.])


def weighted(pred, y): return F.cross_entropy(pred, y, weight, reduction='none')
def ignoring(pred, y): return F.cross_entropy(pred, y, ignore_index=1, reduction='none')
def smoothed(pred, y): return F.cross_entropy(pred, y, label_smoothing=.1, reduction='none')
def focal(pred, y): return (1 - (-cross_entropy(pred, y)).exp())**2 * cross_entropy(pred, y)


class_losses = {
    '`CrossEntropyLossFlat`': [(CrossEntropyLossFlat(), cross_entropy)],
    '`nn.CrossEntropyLoss`': [(nn.CrossEntropyLoss(), cross_entropy)],
    '`nn.CrossEntropyLoss` with label smoothing': [(nn.CrossEntropyLoss(label_smoothing=.1), smoothed)],
    'class weights': [(CrossEntropyLossFlat(weight=weight), weighted, lambda y: weight[y]), (nn.CrossEntropyLoss(weight=weight), weighted, lambda y: weight[y])],
    '`ignore_index`': [(CrossEntropyLossFlat(ignore_index=1), ignoring, lambda y: y != 1), (nn.CrossEntropyLoss(ignore_index=1), ignoring, lambda y: y != 1)],
    '`F.cross_entropy`': [(F.cross_entropy, cross_entropy)],
    '`LabelSmoothingCrossEntropyFlat`': [(LabelSmoothingCrossEntropyFlat(), smoothed)],
    '`LabelSmoothingCrossEntropy`': [(LabelSmoothingCrossEntropy(), smoothed)],
    '`FocalLossFlat`': [(FocalLossFlat(), focal)],
    '`FocalLoss`': [(FocalLoss(), focal)],
    '`nn.NLLLoss`': [(nn.NLLLoss(), cross_entropy)],
}


def with_loss(cases, lib):
    for loss, *by_hand in cases:
        for cb in lib.MixUp(), lib.CutMix():
            x, _ = batch(16)
            model = nn.Sequential(linear(x), nn.LogSoftmax(1)) if isinstance(loss, nn.NLLLoss) else None
            right(fit(cb, loss, model=model), *by_hand)


for name, cases in class_losses.items(): task(f'single label, {name}', single)(partial(with_loss, cases))


def root(pred, y): return F.cross_entropy(pred, y).sqrt()


class Root(nn.Module):
    def forward(self, pred, y): return root(pred, y)


@task('single label, a closure, or a Module that returns a number', single)
def numbers(lib):
    for loss in (lambda pred, y: root(pred, y)), Root():
        for cb in lib.MixUp(), lib.CutMix():
            for row, lam, partner in some(fit(cb, loss)):
                if (lam - lam[0]).abs().max() > 1e-3: raise AssertionError('several λ, with a loss that is one number')
                same(row.loss, lam[0]*root(row.pred, row.y[0]) + (1-lam[0])*root(row.pred, row.y[0][partner]), 'the loss')


def floating(lib, y, loss, values=None):
    "Is the loss that of the mixed targets?"
    for cb in lib.MixUp(), lib.CutMix():
        x, _ = batch(16)
        for row, lam, partner in some(fit(cb, loss, data=(x, y))):
            same(row.loss, (values or loss)(row.pred, blended(lam, partner, row.y[0])), 'the loss')


def asymmetric(pred, y):
    p = pred.sigmoid()
    return -(y*p.log() + (1-y)*p**4*(1-p).log()).mean()


several = 'tasks.ipynb#soft-labels-and-multi-label'


@task('soft labels', several)
def soft(lib): floating(lib, torch.rand(16, 3).softmax(1), nn.CrossEntropyLoss())


@task('multi-label, floating: `BCEWithLogitsLossFlat`, `pos_weight`', several)
def multi_hot(lib):
    y = torch.randint(0, 2, (16, 3)).float()
    floating(lib, y, BCEWithLogitsLossFlat())
    floating(lib, y, nn.BCEWithLogitsLoss(pos_weight=weight))


@task('multi-label, integer', several)
def integer_multi_hot(lib):
    def values(pred, y): return F.binary_cross_entropy_with_logits(pred, y.float(), reduction='none').mean(1)
    for cb in lib.MixUp(), lib.CutMix():
        right(fit(cb, BCEWithLogitsLossFlat(), data=(batch(16)[0], torch.randint(0, 2, (16, 3)))), values)


@task('multi-label, an asymmetric loss of your own', several)
def own_loss(lib): floating(lib, torch.randint(0, 2, (16, 3)).float(), asymmetric)


@task('multi-label: the union of the labels, where you ask for it', 'tasks.ipynb#say-it-yourself')
def union(lib):
    y = torch.randint(0, 2, (16, 3)).float()
    for row, lam, partner in some(fit(lib.MixUp(targets='union'), BCEWithLogitsLossFlat(), data=(batch(16)[0], y))):
        heard = (1-lam >= .05)[:, None]*row.y[0][partner]
        same(row.loss, F.binary_cross_entropy_with_logits(row.pred, torch.maximum(row.y[0], heard)), 'the loss')


@task('regression: numbers and vectors, float32', 'tasks.ipynb#regression')
def regression(lib): floating(lib, torch.rand(16, 3), MSELossFlat(), F.mse_loss)


@task('regression, float64 targets', 'tasks.ipynb#regression')
def double(lib): floating(lib, torch.rand(16, 3, dtype=torch.float64), MSELossFlat(), lambda pred, y: F.mse_loss(pred, y.float()))


masks = 'tasks.ipynb#segmentation'


class Reader(nn.Module):
    "Reads the right mask off the image"
    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
    def forward(self, x): return 100*F.one_hot((x[:, 0] > .5).long(), 2).permute(0, 3, 1, 2).float() + 0*self.zero


def scenes():
    x, _ = batch(16)
    return x, [TensorMask(mask) for mask in (x[:, 0] > .5).long()]


@task('segmentation: CutMix pastes the mask, so a perfect model has no loss', masks)
def pasted(lib):
    for row, *_ in some(fit(lib.CutMix(), CrossEntropyLossFlat(axis=1), data=scenes(), model=Reader())):
        same(row.loss, torch.tensor(0.), 'the loss of a perfect model')


def pixels(pred, y): return F.cross_entropy(pred, y, reduction='none').mean((1, 2))


@task('segmentation: MixUp weighs both masks in every pixel', masks)
def both_masks(lib):
    for loss in CrossEntropyLossFlat(axis=1), nn.CrossEntropyLoss(): right(fit(lib.MixUp(), loss, data=scenes(), model=nn.Conv2d(2, 2, 3, padding=1)), pixels)


@task("segmentation with fastai's `DiceLoss`", masks)
def dice(lib):
    def values(pred, y): return DiceLoss(reduction='none')(pred, y).sum(1)*len(y)
    right(fit(lib.MixUp(), DiceLoss(), data=scenes(), model=nn.Conv2d(2, 2, 3, padding=1)), values)
    for row, *_ in some(fit(lib.CutMix(), DiceLoss(), data=scenes(), model=nn.Conv2d(2, 2, 3, padding=1))):
        same(row.loss, DiceLoss()(row.pred, (row.x[0][:, 0] > .5).long()), 'the loss')


@task('segmentation: a mask on a coarser grid counts by the share of each cell', masks)
def coarse(lib):
    x, _ = batch(16)
    y = (x[:, 0, ::2, ::2] > .5).long()
    for row, *_ in some(fit(lib.CutMix(), CrossEntropyLossFlat(axis=1), data=(x, y), model=nn.Conv2d(2, 2, 2, stride=2))):
        kept, (_, partner) = (row.x[0] == row.own[0])[:, 0].float(), shares(row)
        lam, values = F.avg_pool2d(kept, 2), partial(F.cross_entropy, row.pred, reduction='none')
        same(row.loss, (lam*values(row.y[0]) + (1-lam)*values(row.y[0][partner])).mean(), 'the loss')


@task('image to image: the target is mixed, and pasted, like the input', 'tasks.ipynb#image-to-image')
def images(lib):
    x, _ = batch(16)
    for cb in lib.MixUp(), lib.CutMix():
        for row, *_ in some(fit(cb, nn.MSELoss(), data=(x, 1-x), model=nn.Conv2d(2, 2, 3, padding=1))):
            same(row.loss, F.mse_loss(row.pred, 1-row.x[0]), 'the loss')


tuples = 'tasks.ipynb#several-inputs-several-targets-none'


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(72, 3)
    def forward(self, a, b): return self.head((a + b).flatten(1))


@task('several inputs: all get the same mix', tuples)
def inputs(lib):
    x, y = batch(16)
    for cb in lib.MixUp(), lib.CutMix():
        rows = fit(cb, CrossEntropyLossFlat(), data=(x, 1-x, y), model=Two(), n_inp=2)
        for row, *_ in some(rows): same(row.x[1], 1-row.x[0], 'the second input')
        right(rows)


@task('several targets, one a class and one a number', tuples)
def targets(lib):
    def loss(pred, y, value): return F.cross_entropy(pred[:, :2], y) + F.mse_loss(pred[:, 2], value)
    x, y = batch(16, classes=2)
    for cb in lib.MixUp(), lib.CutMix():
        for row, lam, partner in some(fit(cb, loss, data=(x, y, torch.rand(16)), n_inp=1)):
            number, value = row.y[0], blended(lam, partner, row.y[1])
            same(row.loss, lam[0]*loss(row.pred, number, value) + (1-lam[0])*loss(row.pred, number[partner], value), 'the loss')


@task('nested targets: a dictionary of a class and a number', tuples)
def dictionary(lib):
    def loss(pred, target): return F.cross_entropy(pred[:, :2], target['class']) + F.mse_loss(pred[:, 2], target['value'])
    class Keep(Watch):
        def before_batch(self):
            target, = self.learn.yb
            self.own, self.y = tuple(bare(t).clone() for t in self.learn.xb), (bare(target['class']), bare(target['value']))
    x, y = batch(16, classes=2)
    data = x, [{'class': a, 'value': b} for a, b in zip(y, torch.rand(16))]
    for cb in lib.MixUp(), lib.CutMix():
        learner(loss, cb, keep := Keep(), data=data).fit(1)
        for row, lam, partner in some(keep.rows):
            number, value = row.y[0], blended(lam, partner, row.y[1])
            own, other = (loss(row.pred, {'class': c, 'value': value}) for c in (number, number[partner]))
            same(row.loss, lam[0]*own + (1-lam[0])*other, 'the loss')


class Later(Callback):
    "Another callback that rewrites the targets between the mix and the loss"
    order = 50
    def __init__(self, f): self.f = f
    def before_batch(self): self.learn.yb = self.f(*self.learn.yb)


fates = '../02_batch.ipynb'


@task('several targets, swapped by another callback after the mix', fates)
def swapped(lib):
    def loss(pred, value, y): return F.cross_entropy(pred[:, :2], y) + F.mse_loss(pred[:, 2], value)
    x, y = batch(16, classes=2)
    for cb in lib.MixUp(), lib.CutMix():
        for row, lam, partner in some(fit(cb, loss, Later(lambda y, value: (value, y)), data=(x, y, torch.rand(16)), n_inp=1)):
            number, value = row.y[0], blended(lam, partner, row.y[1])
            same(row.loss, lam[0]*loss(row.pred, value, number) + (1-lam[0])*loss(row.pred, value, number[partner]), 'the loss')


@task("a teacher's prediction of the mixed image, added to the targets after the mix", fates)
def teacher(lib):
    def loss(pred, y, teacher=None): return F.cross_entropy(pred, y) + (0 if teacher is None else F.mse_loss(pred, teacher))
    class Teach(Callback):
        order = 50
        def after_pred(self):
            if self.training: self.learn.yb = (*self.learn.yb, self.learn.pred.detach() + 1)
    for row, lam, partner in some(fit(lib.MixUp(), loss, Teach())):
        own, other = (F.cross_entropy(row.pred, y) for y in (row.y[0], row.y[0][partner]))
        same(row.loss, lam[0]*own + (1-lam[0])*other + 1, 'the loss')


@task('a float target that has no average, such as a weight per sample, where you say so', 'tasks.ipynb#say-it-yourself')
def weights(lib):
    def loss(pred, y, weight): return (weight*F.cross_entropy(pred, y, reduction='none')).mean()
    x, y = batch(16)
    for row, lam, partner in some(fit(lib.MixUp(targets=[None, 'weigh']), loss, data=(x, y, torch.rand(16)), n_inp=1)):
        own = loss(row.pred, *row.y)
        same(row.loss, lam[0]*own + (1-lam[0])*loss(row.pred, *(t[partner] for t in row.y)), 'the loss')


@task('labels that go into the model: a clear error', fates)
def inside(lib):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear(batch(16)[0])
        def forward(self, x, y): return self.net(x)
    x, y = batch(16)
    for mixer in lib.MixUp(), lib.CutMix(): refused(lambda: fit(mixer, CrossEntropyLossFlat(), data=(x, y, y), n_inp=2, model=Inside()), TypeError, 'labels go into the model')


@task('no target: an autoencoder', tuples)
def no_target(lib):
    rebuild = Callback(after_pred=lambda self: setattr(self.learn, 'yb', self.learn.xb))
    for cb in lib.MixUp(), lib.CutMix():
        for row, *_ in some(fit(cb, nn.MSELoss(), rebuild, data=batch(16)[:1], model=nn.Conv2d(2, 2, 3, padding=1))):
            same(row.loss, F.mse_loss(row.pred, row.x[0]), 'the loss')


def at_layer(cb, model, layer, xs, y):
    "A fit that must mix nothing but what goes into a layer, and weigh the loss accordingly"
    seen, watch = [], Watch()
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append([args[0].detach().clone()])) # before a mixer's
    last = Callback(before_batch=lambda self: setattr(self, 'hook', layer.register_forward_pre_hook(lambda _, args: seen[-1].append(args[0].detach().clone()))),
                    after_batch=lambda self: self.hook.remove())
    last.order, last.run_valid = 60, False
    learn = learner(CrossEntropyLossFlat(), cb, watch, last, data=(*xs, y), model=model, n_inp=len(xs))
    learn.fit(1)
    hook.remove()
    for row, (own, x) in zip(watch.rows, [s for s in seen if len(s) == 2], strict=True): row.own, row.x = (own,), (x,)
    right(watch.rows)


@task('tables: mixed at the input of the first dense layer', 'tasks.ipynb#tables')
def tables(lib):
    model = TabularModel([(5, 4), (4, 3)], 2, 3, [8])
    at_layer(lib.MixUp(), model, model.layers, (torch.randint(0, 4, (16, 2)), torch.rand(16, 2)), batch(16)[1])


@task('texts: mixed when they have been read and pooled', 'tasks.ipynb#texts')
def texts(lib):
    model = get_text_classifier(AWD_LSTM, 50, 3, seq_len=4, config=awd_lstm_clas_config | dict(emb_sz=6, n_hid=8, n_layers=1))
    tokens = torch.randint(2, 50, (16, 8))
    tokens[5:8, :4] = tokens[13:, :4] = 1 # some are padded in front
    forward = model.forward
    model.forward = lambda x: forward(x)[0]
    at_layer(lib.MixUp(), model, model[1].layers, (tokens,), batch(16)[1])


dimensions = 'tasks.ipynb#signals-volumes-and-vectors'


@task('signals and volumes', dimensions)
def signals(lib):
    for size in (30,), (4, 5, 6):
        for cb in lib.MixUp(), lib.CutMix(): right(fit(cb, CrossEntropyLossFlat(), data=batch(16, size=size)))


@task('a forecast beside a signal of as many steps: blended, not pasted', fates)
def forecast(lib):
    x, y = batch(16, size=(24,))[0], torch.rand(16, 2, 24)[:, :1].expand(16, 3, 24).contiguous()
    class Ahead(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Conv1d(2, 3, 1)
        def forward(self, x): return self.net(x)
    for row, lam, partner in some(fit(lib.CutMix(), nn.MSELoss(), data=(x, y), model=Ahead())):
        same(row.loss, F.mse_loss(row.pred, blended(lam, partner, row.y[0])), 'the loss')


@task('videos: CutMix cuts all frames alike', fates)
def videos(lib):
    x, y = torch.rand(16, 4, 2, 6, 6), batch(16)[1]
    for row, lam, partner in some(fit(lib.CutMix(dims=2), CrossEntropyLossFlat(), data=(x, y))):
        kept = (row.x[0] == row.own[0])
        if not torch.equal(kept, kept[:, :1, :1].expand_as(kept)): raise AssertionError('the frames are cut at different places')


@task('images of integers: CutMix pastes them', fates)
def of_integers(lib):
    x, y = (batch(16)[0]*30000).short(), batch(16)[1]
    class Float(nn.Module):
        def forward(self, x): return x.float()/30000
    right(fit(lib.CutMix(), CrossEntropyLossFlat(), data=(x, y), model=nn.Sequential(Float(), linear(x))))


@task('vectors: MixUp', dimensions)
def vectors(lib):
    x, y = batch(16)
    right(fit(lib.MixUp(), CrossEntropyLossFlat(), data=(x.flatten(1), y)))


@task('vectors: a clear error of CutMix', dimensions)
def vectors_cut(lib):
    x, y = batch(16)
    refused(lambda: fit(lib.CutMix(), CrossEntropyLossFlat(), data=(x.flatten(1), y)), ValueError, 'spatial')


@task('points and boxes: a clear error', 'tasks.ipynb#points-and-boxes')
def points(lib):
    x, _ = batch(16)
    for kind, n in (TensorPoint, 2), (TensorBBox, 4):
        data, model = (x, [kind(torch.rand(1, n)) for _ in x]), nn.Sequential(nn.Flatten(), nn.Linear(72, n), nn.Unflatten(1, (1, n)))
        for cb in lib.MixUp(), lib.CutMix(): refused(lambda: fit(cb, MSELossFlat(), data=data, model=model), TypeError, 'not defined')


layers, layer_tests = 'tasks.ipynb#at-a-layer', '../../tests/test_manifold.py'


def deep(): return nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.Tanh(), nn.Linear(6, 3))


@task('`ManifoldMixUp`: mixed at one of several layers, drawn for each batch', layers)
def manifold(lib):
    model = deep()
    at_layer(lib.ManifoldMixUp('3'), model, model[3], batch(16)[:1], batch(16)[1])
    kinds, model = set(), deep()
    for row in fit(lib.ManifoldMixUp(['input', model[3]]), CrossEntropyLossFlat(), model=model, epochs=10): kinds.add(torch.equal(row.x[0], row.own[0]))
    if kinds != {True, False}: raise AssertionError('one of the layers is never drawn')


@task('`ManifoldMixUp`: a layer that runs twice in one pass is named', layer_tests)
def runs_twice(lib):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.net = nn.ReLU(), linear(batch(16)[0])
        def forward(self, x): return self.relu(self.net(self.relu(x)))
    refused(lambda: fit(lib.ManifoldMixUp('relu'), CrossEntropyLossFlat(), model=Twice()), RuntimeError, 'ran 2 times')


@task('`ManifoldMixUp`: attention masks beside the input are joined', layer_tests)
def attention(lib):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.MultiheadAttention(6, 1, batch_first=True), nn.Linear(6, 3)
        def forward(self, x):
            tokens, hidden = x.mean(2), torch.arange(2)[None] >= 1 + torch.arange(len(x))[:, None] % 2
            mask = torch.zeros(len(x), 2).masked_fill(hidden, float('-inf'))
            return self.head(self.layer(tokens, tokens, tokens, key_padding_mask=mask)[0].mean(1))
    for row in fit(lib.ManifoldMixUp('layer'), CrossEntropyLossFlat(), model=Attends()):
        if not row.loss.isfinite(): raise AssertionError('the loss is not finite')


@task('`ManifoldMixUp`: a layer that never ran is named', layer_tests)
def never_ran(lib):
    model = Two()
    model.spare, model.forward = nn.Linear(1, 1), lambda x: model.head(x.flatten(1))
    refused(lambda: fit(lib.ManifoldMixUp('spare'), CrossEntropyLossFlat(), model=model), RuntimeError, 'spare')


@task('`ManifoldMixUp` inside a compiled model or `DataParallel`: a clear error', layer_tests)
def wrapped(lib):
    for wrap in torch.compile, nn.DataParallel: refused(lambda: fit(lib.ManifoldMixUp('3'), CrossEntropyLossFlat(), model=wrap(deep())), ValueError, 'mixed')


class Second(Callback):
    "A second forward pass before the step, from other weights, as sharpness-aware minimisation does"
    def __init__(self): self.rows = []
    def after_backward(self):
        with torch.no_grad():
            for p in self.learn.model.parameters(): p.add_(p.grad, alpha=.05)
            pred = self.learn.model(*self.learn.xb)
        watched = self.learn.watch.row
        self.rows.append(SimpleNamespace(own=watched.own, x=watched.x, y=watched.y, pred=pred, loss=self.learn.loss_func(pred, *self.learn.yb)))


@task('`ManifoldMixUp`: a second pass over the batch gets the same mix', layer_tests)
def manifold_twice(lib):
    passes = []
    again = Callback(after_backward=lambda self: passes.append((bare(self.pred), bare(self.model(*self.xb)))))
    fit(lib.ManifoldMixUp('3'), CrossEntropyLossFlat(), again, model=deep())
    if len(passes) != 4: raise AssertionError('there was no second pass')
    for first, second in passes: same(second, first, 'the second prediction')


# The loop around

loops = '../../tests/test_loop.py'


def trains(learn, *cbs):
    "Another epoch, and what it must be"
    learn.fit(1, cbs=[watch := Watch(), *cbs])
    right(watch.rows)


@loop('`lr_find`, then `fit`', loops)
def found_then_fit(lib):
    for cb in lib.MixUp(), lib.CutMix():
        learn = learner(loss := CrossEntropyLossFlat(), cb, data=batch(80))
        learn.lr_find(show_plot=False, num_it=10)
        if learn.loss_func is not loss: raise AssertionError('the loss is left switched')
        trains(learn)


@loop('`fine_tune`; several fits in a row', loops)
def fine_tune(lib):
    learn = learner(CrossEntropyLossFlat(), lib.MixUp(), watch := Watch())
    learn.fine_tune(1)
    right(watch.rows)
    trains(learn.remove_cb(watch))


@loop('`fit(start_epoch=…)`', loops)
def start_epoch(lib):
    learn = learner(CrossEntropyLossFlat(), lib.MixUp(), watch := Watch())
    learn.fit(2, start_epoch=1)
    if len(watch.rows) != 2: raise AssertionError('an epoch too many')
    right(watch.rows)


def gradients(model, rows, scale=1.):
    "Of the λ-weighted loss, by hand"
    total = 0
    for row in rows:
        lam, partner = shares(row)
        pred, y = model(row.x[0]), row.y[0]
        total = total + scale*(lam*cross_entropy(pred, y) + (1-lam)*cross_entropy(pred, y[partner])).mean()
    return torch.autograd.grad(total, list(model.parameters()))


@loop('`GradientAccumulation`: the gradients are those of the formula', loops)
def accumulation(lib):
    model = linear(batch(16)[0])
    by_hand = copy.deepcopy(model)
    rows = fit(lib.MixUp(), CrossEntropyLossFlat(), GradientAccumulation(16), model=model, epochs=1, opt_func=SGD)
    right(rows)
    for found, expected in zip(rows[-1].grads, gradients(by_hand, rows, .5), strict=True): same(found, expected, 'a gradient')


@loop('`GradientClip`', loops)
def clip(lib):
    norms = []
    class Norm(Callback):
        order = 100
        def before_step(self): norms.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters()]).norm())
    right(fit(lib.MixUp(), CrossEntropyLossFlat(), GradientClip(.01), Norm()))
    if max(norms) > .0101: raise AssertionError('a gradient is not clipped')


@loop('mixed precision (bfloat16 on the CPU)', loops)
def precision(lib):
    def on_cpu(_, dtype): return torch.autocast('cpu', dtype=dtype)
    with patch('fastai.callback.fp16.autocast', on_cpu):
        rows = fit(lib.MixUp(), CrossEntropyLossFlat(), MixedPrecision('bf16'))
    for row, lam, partner in some(rows):
        by_hand = (lam*cross_entropy(row.pred, row.y[0]) + (1-lam)*cross_entropy(row.pred, row.y[0][partner])).mean()
        if abs(row.loss - by_hand) > .02: raise AssertionError(f'the loss is {row.loss:.2f}, by hand {by_hand:.2f}')


@loop('`channels_last`', loops)
def channels_last(lib):
    x, y = batch(16)
    layout = Callback(before_batch=lambda self: setattr(self.learn, 'xb', (self.learn.x.contiguous(memory_format=torch.channels_last),)))
    layout.order = -6
    for cb in lib.MixUp(), lib.CutMix():
        rows = fit(cb, CrossEntropyLossFlat(), ChannelsLast(), layout, data=(x, y), model=nn.Sequential(nn.Conv2d(2, 4, 3), linear(torch.rand(1, 4, 4, 4))))
        right(rows)
        if not all(row.x[0].is_contiguous(memory_format=torch.channels_last) for row in rows): raise AssertionError('the layout is lost')


def compilations(*mixers):
    "How often a model is compiled in a fit of two epochs"
    graphs = []
    def backend(graph, _):
        graphs.append(graph)
        return graph.forward
    torch._dynamo.reset()
    model = torch.compile(linear(batch(16)[0]), backend=backend, dynamic=False)
    learn = learner(CrossEntropyLossFlat(), *mixers, watch := Watch(), model=model)
    learn.fit(2)
    if mixers: right(watch.rows)
    return len(graphs)


@loop('a `torch.compile`d model: `MixUp`, `CutMix`, no recompilation per batch', loops)
def compiled(lib):
    plainly = compilations()
    for cb in lib.MixUp(), lib.CutMix():
        n = compilations(cb)
        if n != plainly: raise AssertionError(f'compiled {n} times instead of {plainly}')


@loop('`to_parallel` with `MixUp` and `CutMix`', loops)
def parallel(lib):
    for cb in lib.MixUp(), lib.CutMix(): right(fit(cb, CrossEntropyLossFlat(), ParallelTrainer(None)))


@loop('`MixChoice`: one of several for each batch', loops)
def choice(lib):
    rows = fit(lib.MixChoice(lib.MixUp(), lib.CutMix()), CrossEntropyLossFlat(), epochs=6)
    right(rows)
    kinds = {bool((row.x[0] == row.own[0]).any()) for row in rows}
    if kinds != {True, False}: raise AssertionError('one is never drawn')


@loop('a second pass over the batch, as sharpness-aware minimisation makes it', loops)
def twice(lib):
    for cb in lib.MixUp(), lib.CutMix():
        fit(cb, CrossEntropyLossFlat(), second := Second())
        right(second.rows)


@loop('`SaveModelCallback`, `EarlyStoppingCallback`', loops)
def trackers(lib):
    learn = learner(loss := CrossEntropyLossFlat(), lib.MixUp(), watch := Watch(), SaveModelCallback(), EarlyStoppingCallback(min_delta=100.))
    learn.fit(5)
    if len(watch.rows) != 4: raise AssertionError('not stopped after the second epoch')
    right(watch.rows)
    if learn.loss_func is not loss: raise AssertionError('the loss is left switched')
    learn.load('model')


def photos(lib, *cbs):
    "A learner of images, as fastai builds it"
    pixels = (batch(16, size=(8, 8))[0].repeat(1, 2, 1, 1)[:, :3]*255).byte().permute(0, 2, 3, 1).numpy()
    block = DataBlock((ImageBlock, CategoryBlock), getters=[lambda i: pixels[i], lambda i: 'abc'[i % 3]], splitter=IndexSplitter(range(8)))
    dls = block.dataloaders(range(16), bs=4, num_workers=0)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3*64, 3)), loss_func=CrossEntropyLossFlat(), cbs=cbs, metrics=accuracy)
    learn.logger = noop
    return learn.remove_cb(ProgressCallback), pixels


def answers(learn, pixels):
    "Everything that a learner can be asked"
    learn.show_results()
    preds, targets, losses = learn.get_preds(with_loss=True)
    tta, _ = learn.tta(n=1)
    interpretation = Interpretation.from_learner(learn)
    return [torch.tensor(learn.validate()), preds, losses, tta, learn.predict(pixels[0])[2], interpretation.top_losses(8)[0]]


@loop('`validate`, `get_preds`, `tta`, `predict`, `show_results`, `Interpretation`: between the epochs and afterwards', loops)
def predictions(lib):
    during = []
    class Ask(Callback):
        order = 70
        def after_epoch(self):
            learn = self.learn
            kept = {name: getattr(learn, name) for name in ('epoch', 'training', 'dl', 'n_iter', 'iter', 'xb', 'yb', 'pct_train')}
            losses = learn.get_preds(with_loss=True, inner=True)
            for name, value in kept.items(): setattr(learn, name, value)
            during.append((losses, copy.deepcopy(learn.model.state_dict())))
    learn, pixels = photos(lib, lib.MixUp(), Ask())
    learn.remove_cb(Recorder).fit(2)
    clean, _ = photos(lib)
    for (preds, targets, losses), weights in during:
        clean.model.load_state_dict(weights)
        for found, expected in zip((preds, losses), clean.get_preds(with_loss=True)[::2]): same(found, expected, 'a prediction')
    learn.add_cb(Recorder()).remove_cb(Ask)
    for found, expected in zip(answers(learn, pixels), answers(clean, pixels), strict=True): same(found, expected, 'an answer')


def loaded(learn):
    "The exported learner, as it is loaded where fastmix is not installed"
    learn.export('export.pkl')
    without = {name: None for name in sys.modules if name.split('.')[0] == 'fastmix'} | {'fastmix': None}
    with patch.dict(sys.modules, without): return load_learner('export.pkl')


def blocks(*cbs):
    block = DataBlock((TransformBlock, TransformBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter(range(8)))
    learn = Learner(block.dataloaders(list(zip(*batch(16))), bs=4, num_workers=0), linear(batch(16)[0]), loss_func=CrossEntropyLossFlat(), cbs=cbs)
    learn.logger = noop
    return learn.remove_cb(ProgressCallback)


def same_predictions(learn, other):
    if type(other.loss_func) is not CrossEntropyLossFlat: raise AssertionError(f'the loss that was loaded is a {type(other.loss_func).__name__}')
    x, y = batch(16)
    for item in zip(x, y): same(other.predict(item)[2], learn.model(item[0][None]).softmax(1)[0], 'a prediction')


@loop('`export`: loads and predicts where only fastai is installed', loops)
def export(lib):
    learn = blocks(lib.MixUp())
    learn.fit(1)
    same_predictions(learn, loaded(learn))


@loop('`export` after an interrupted fit', '../../tests/test_faults.py')
def export_interrupted(lib):
    learn = blocks(lib.MixUp())
    def interrupt(self): raise KeyboardInterrupt
    try: learn.fit(1, cbs=Callback(after_pred=interrupt))
    except KeyboardInterrupt: pass
    same_predictions(learn, loaded(learn))


@loop('`copy.deepcopy(learn)` trains as the original does', loops)
def deepcopy(lib):
    learn = learner(CrossEntropyLossFlat(), lib.MixUp())
    learn.fit(1)
    other = copy.deepcopy(learn)
    for each in other, learn: trains(each)


@loop('`cbs=MixUp`, the class', loops)
def as_class(lib): trains(learner(CrossEntropyLossFlat(), lib.MixUp))


@loop('adding and removing the callback', loops)
def removed(lib):
    learn = learner(CrossEntropyLossFlat(), cb := lib.MixUp())
    trains(learn)
    learn.remove_cb(cb).fit(1, cbs=(watch := Watch()))
    plain(watch.rows)
    trains(learn.add_cb(cb))


@loop('metrics of mixed training batches, weighted by λ', '../06_metric.ipynb')
def metrics(lib):
    learn = learner(CrossEntropyLossFlat(), lib.MixUp(10.), watch := Watch(), data=batch(64), metrics=getattr(lib, 'MixMetric', noop)(accuracy))
    learn.recorder.train_metrics = True
    learn.fit(1)
    total = 0
    for row, lam, partner in some(watch.rows):
        guess, y = row.pred.argmax(1), row.y[0]
        total = total + (lam*(guess == y) + (1-lam)*(guess == y[partner])).mean()/len(watch.rows)
    same(torch.tensor(learn.recorder.values[0][1]), total, 'the accuracy')


@loop('metrics of multi-labels over an epoch, `F1ScoreMulti`, on the training batches', '../05_mixer.ipynb')
def whole_labels(lib):
    x, y = batch(16)[0], torch.randint(0, 2, (16, 3)).float()
    learn = learner(BCEWithLogitsLossFlat(), lib.MixUp(), watch := Watch(), data=(x, y), metrics=F1ScoreMulti())
    learn.recorder.train_metrics = True
    learn.fit(1)
    guess, own = (torch.cat(parts) for parts in zip(*((row.pred, row.y[0]) for row in watch.rows)))
    same(torch.tensor(learn.recorder.values[0][1]), torch.tensor(f1_score(own, guess.sigmoid() > .5, average='macro', zero_division=0)).float(), 'the score')


@loop('arguments shown to experiment loggers', loops)
def arguments(lib):
    if init_args(lib.MixUp(.3)).get('alpha') != .3: raise AssertionError('`alpha` is not shown')


@loop('resuming: the random state can be saved', loops)
def resumed(lib):
    learn = learner(CrossEntropyLossFlat(), cb := lib.MixUp(), watch := Watch())
    learn.fit(1)
    state = copy.deepcopy(cb.state_dict())
    learn.fit(1)
    other = learner(CrossEntropyLossFlat(), cb := lib.MixUp(), again := Watch())
    cb.load_state_dict(state)
    other.fit(1)
    for a, b in zip(watch.rows[2:], again.rows, strict=True):
        if not torch.equal(a.x[0], b.x[0]): raise AssertionError('draws other mixes than the uninterrupted run')


def in_rank(rank, file, lib, queue):
    "One process of two: what it drew, and the gradients"
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
        set_seed(0)
        model = nn.parallel.DistributedDataParallel(linear(batch(16)[0]))
        rows = fit(lib.MixUp(), CrossEntropyLossFlat(), model=model, epochs=1)
        right(rows)
        queue.put((rank, [(shares(row)[0].tolist(), [g.tolist() for g in row.grads]) for row in rows]))
        torch.distributed.destroy_process_group()
    except Exception as e: queue.put((rank, said(e)))


def two_ranks(lib, name):
    context = torch.multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    processes = [context.Process(target=in_rank, args=(rank, os.path.abspath(name), lib, queue)) for rank in (0, 1)]
    for p in processes: p.start()
    found = dict(queue.get() for _ in processes)
    for p in processes: p.join()
    for rank in found.values():
        if isinstance(rank, str): raise AssertionError(rank)
    return found[0], found[1]


@loop('two processes: the ranks draw different mixes from one seed, gradients agree, and it is repeatable', '../../tests/test_distributed.py')
def distributed(lib):
    a, b = two_ranks(lib, 'first')
    if [grads for _, grads in a] != [grads for _, grads in b]: raise AssertionError('the gradients differ')
    if any(mine == other for (mine, _), (other, _) in zip(a, b)): raise AssertionError('both ranks draw the same mix')
    if (a, b) != two_ranks(lib, 'second'): raise AssertionError('a second run with the seed differs')


# Faults

faults = '../../tests/test_faults.py'
cancels = {name: getattr(core, f'Cancel{name.capitalize()}Exception') for name in 'step backward batch train valid epoch fit'.split()}
events = [event for event in core._events if event != 'after_create' and 'cancel' not in event]


class Fragile(nn.Module):
    "A loss that can be made to fail"
    reduction, fail, y_int = 'mean', None, True # fastai's own mixers ask for `y_int`
    def forward(self, pred, y):
        if self.fail: self.fail()
        return F.cross_entropy(pred, y, reduction=self.reduction)


def broken(lib, place, error, attached):
    "A learner after a fit that broke"
    loss = Fragile()
    learn = learner(loss, *([lib.MixUp()] if attached else [])).remove_cb(Recorder)
    learn.create_opt()
    def fail(*_): raise error('a fault')
    cbs, hook = [] if attached else [lib.MixUp()], None
    if place in events:
        cbs.append(Callback(**{place: fail}))
        cbs[-1].order = 60 # after a mixer's own turn
    elif place == 'forward': hook = learn.model.register_forward_pre_hook(fail)
    elif place == 'loss': loss.fail = fail
    else: learn.opt.step = fail
    try: learn.fit(1, cbs=cbs)
    except error: pass
    if hook: hook.remove()
    loss.fail = None
    learn.create_opt()
    return learn, loss


def recovered(lib, places, errors, attached=True):
    "After every fault, is the learner as if nothing had happened?"
    for place in places:
        for error in errors:
            try: untouched(*broken(lib, place, error, attached), lib)
            except Exception as e: raise AssertionError(f'{error.__name__} {"in" if "_" not in place else "at"} {place}, then: {said(e)}')


def untouched(learn, loss, lib):
    x, y = batch(16)
    pred, target = torch.eye(3), torch.tensor([0, 1, 1])
    if learn.loss_func is not loss: raise AssertionError('the loss is left switched')
    same(learn.loss_func(pred, target), F.cross_entropy(pred, target), 'the loss')
    losses = learn.get_preds(with_loss=True)[2]
    same(losses, cross_entropy(learn.model(x[:8]), y[:8]).detach(), 'a loss of a prediction')
    learn.remove_cbs(learn.cbs.filter(lambda cb: isinstance(cb, lib.MixUp)))
    trains(learn, lib.MixUp())


ordinary = RuntimeError, KeyboardInterrupt


@fault('an exception, or Ctrl-C, at every event', faults)
def at_events(lib): recovered(lib, events, ordinary)


@fault("each of fastai's Cancel exceptions, at every event", faults)
def cancelled(lib): recovered(lib, events, cancels.values())


@fault("an exception, Ctrl-C or out of memory in the model's forward, the loss or the optimizer's step", faults)
def within_batch(lib): recovered(lib, ('forward', 'loss', 'step'), (*ordinary, torch.OutOfMemoryError))


@fault('Ctrl-C anywhere, with the callback given to `fit`', faults)
def given_to_fit(lib): recovered(lib, [*events, 'forward', 'loss', 'step'], [KeyboardInterrupt], attached=False)


properties = '../../tests/test_mix.py'


@fault('every cell comes from own or partner, and the share of cells is the λ of the loss', properties)
def cells(lib):
    for size in (6, 6), (7, 5), (1, 9):
        try: right(rows := fit(lib.CutMix(), CrossEntropyLossFlat(), data=batch(16, size=size), epochs=4))
        except AssertionError as e: raise AssertionError(f'images of {size[0]}×{size[1]}: {e}')
        for row in rows:
            if not all(any(((m == o) | (m == p)).all() for p in row.own[0]) for m, o in zip(row.x[0], row.own[0])): raise AssertionError('a cell comes from elsewhere')


def drawn(lib, n=256, epochs=4, **kwargs):
    "Mixed unit vectors: λ can be read off"
    x, y = torch.eye(n), torch.zeros(n, dtype=torch.long)
    items, watch = list(zip(x, y)), Watch()
    dls = DataLoaders(DataLoader(items, bs=n), DataLoader(items[:8], bs=8))
    learn = Learner(dls, nn.Linear(n, 3), loss_func=CrossEntropyLossFlat(), cbs=[lib.MixUp(**kwargs), watch]).remove_cbs([ProgressCallback, Recorder])
    learn.fit(epochs)
    return torch.stack([row.x[0] for row in watch.rows])


@fault('λ follows its law (Kolmogorov-Smirnov, error one in a million)', properties)
def law(lib):
    lam = drawn(lib, alpha=.4).diagonal(dim1=1, dim2=2).flatten().double().sort()[0].numpy()
    n = len(lam)
    folded = np.where(lam < .5, 0, beta.cdf(lam, .4, .4) - beta.cdf(1-lam, .4, .4))
    steps = np.arange(n+1)/n
    distance = max((steps[1:] - folded).max(), (folded - steps[:-1]).max())
    if distance > np.sqrt(np.log(2e6)/(2*n)): raise AssertionError(f'off by {distance:.2f}')


@fault('nobody is its own partner', properties)
def own_partner(lib):
    alone = int((drawn(lib, 8, 40, alpha=1.).diagonal(dim1=1, dim2=2) == 1).sum())
    if alone: raise AssertionError(f'{alone} of 320 samples are mixed with themselves')


@fault('every position can be pasted, corners too', properties)
def positions(lib):
    rows = fit(lib.CutMix(), CrossEntropyLossFlat(), epochs=30)
    pasted = torch.stack([(row.x[0] != row.own[0]).any(0).any(0) for row in rows]).any(0)
    if not pasted.all(): raise AssertionError(f'{(~pasted).sum()} of 36 positions are never pasted')


@fault('a batch of one', properties)
def one(lib):
    for cb in lib.MixUp(), lib.CutMix(): fit(cb, CrossEntropyLossFlat(), data=batch(9))


@fault('every floating dtype is kept', properties)
def dtypes(lib):
    x, y = batch(16)
    for dtype in torch.float64, torch.float16, torch.bfloat16:
        for cb in lib.MixUp(), lib.CutMix():
            model = nn.Sequential(linear(x).to(dtype), Single())
            found = {row.x[0].dtype for row in fit(cb, CrossEntropyLossFlat(), data=(x.to(dtype), y), model=model, opt_func=SGD)}
            if found != {dtype}: raise AssertionError(f'{dtype} has become {found.pop()}')


class Single(nn.Module):
    def forward(self, x): return x.float()


@fault('alpha from 1e-3 to 1e3: finite values', properties)
def alphas(lib):
    for alpha in 1e-3, 1e3:
        for cls in lib.MixUp, lib.CutMix:
            for row in fit(cls(alpha), CrossEntropyLossFlat(), epochs=20):
                if not (row.x[0].isfinite().all() and row.loss.isfinite()): raise AssertionError(f'alpha={alpha}: not finite')


@fault("the loader's tensors are never written to", properties)
def kept(lib):
    for cb in lib.MixUp(), lib.CutMix():
        x, y = batch()
        before = x.clone()
        learn = learner(CrossEntropyLossFlat(), cb).remove_cb(Recorder)
        learn.all_batches = lambda: learn.one_batch(0, (x, y)) if learn.training else None
        learn.n_iter = 1
        learn.fit(1)
        if not torch.equal(x, before): raise AssertionError(f'{type(cb).__name__} writes into the batch')


bad = '../05_mixer.ipynb#nothing-else-changes'


@fault('alpha=NaN: a clear error', bad)
def bad_alpha(lib):
    for cls in lib.MixUp, lib.CutMix: refused(lambda: cls(float('nan')), ValueError, 'alpha')


@fault('p outside [0, 1]: a clear error', bad)
def bad_p(lib): refused(lambda: lib.MixUp(p=1.1), ValueError, 'p')


@fault('start > stop: a clear error', bad)
def bad_stop(lib): refused(lambda: lib.MixUp(start=.6, stop=.5), ValueError, 'start')


@fault('targets of a wrong length: a clear error', properties)
def wrong_length(lib):
    shorten = Callback(before_batch=lambda self: setattr(self.learn, 'yb', (self.learn.y[:-1],)))
    shorten.order = -6
    for cb in lib.MixUp(), lib.CutMix(): refused(lambda: fit(cb, CrossEntropyLossFlat(), shorten), ValueError, 'a batch of 8')


@fault('inputs without a batch dimension: a clear error', properties)
def no_batch(lib):
    strip = Callback(before_batch=lambda self: setattr(self.learn, 'xb', (self.learn.x.sum(),)))
    strip.order = -6
    for cb in lib.MixUp(), lib.CutMix(): refused(lambda: fit(cb, CrossEntropyLossFlat(), strip), TypeError, 'batch dimension')


@fault('a mix called on another batch: a clear error', properties)
def other_batch(lib):
    cb = lib.MixUp()
    fit(cb, CrossEntropyLossFlat())
    refused(lambda: cb.mix(torch.rand(5, 2)), ValueError, 'a batch of 8')
