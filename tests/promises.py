"""What the README promises, one function a promise. Each takes a MixUp and a CutMix class and raises where they do not
hold it, so that the same code runs on fastai's own callbacks and on fastmix's."""
import random
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from torch import nn

promises = {}


def promise(text, fastai):
    "Register a promise: `text`, and what becomes of it with `fastai`'s own callbacks"
    def register(check):
        promises[text] = check, fastai
        return check
    return register


def batch(n=8, classes=3, size=(6, 6)):
    set_seed(0)
    return torch.rand(n, 2, *size), torch.randint(0, classes, (n,))


def learner(loss_func, *cbs, data=None, model=None):
    items = list(zip(*(data or batch())))
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8))
    model = model or nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    if data is None: model(batch()[0])
    learn = Learner(dls, model, loss_func=loss_func, cbs=cbs)
    return learn.remove_cbs([ProgressCallback, Recorder])


class Spy(Callback):
    "Keeps what the model got and gave, and the loss"
    order = 100

    def after_loss(self):
        if self.training: self.seen = self.learn.xb, self.pred.detach(), self.learn.loss.detach()


def train(cb, loss_func, **kwargs):
    "Train for one batch with a mixer, and return what was seen"
    learn = learner(loss_func, cb, Spy(), **kwargs)
    learn.fit(1)
    return learn.spy.seen


def share(mixed, own, partners):
    "The own share of each mixed sample and its partner, found by trying all partners"
    shares, partner = [], []
    for i, m in enumerate(mixed):
        fits = []
        for j, p in enumerate(partners):
            d = (own[i]-p).flatten()
            lam = ((m-p).flatten() @ d / (d @ d)).item() if i != j else 1.
            fits.append(((lam*own[i] + (1-lam)*p - m).abs().max().item(), j, lam))
        _, j, lam = min(fits)
        shares.append(lam)
        partner.append(j)
    return torch.tensor(shares), torch.tensor(partner)


def weighted(loss, pred, y, lam, partner):
    "The λ-weighted mean of a loss's values"
    return (lam*loss(pred, y, reduction='none') + (1-lam)*loss(pred, y[partner], reduction='none')).mean()


@promise('a plain `nn.CrossEntropyLoss()`', 'an error about dtypes')
def plain_loss(MixUp, CutMix):
    x, y = batch()
    (mixed,), pred, loss = train(MixUp(), nn.CrossEntropyLoss())
    torch.testing.assert_close(loss, weighted(F.cross_entropy, pred, y, *share(mixed, x, x)), atol=1e-4, rtol=1e-4)


@promise('a function such as `F.cross_entropy`, or your own closure', 'an error about dtypes')
def closure(MixUp, CutMix):
    for loss in F.cross_entropy, lambda pred, y: F.cross_entropy(pred, y):
        x, y = batch()
        (mixed,), pred, value = train(MixUp(), loss)
        torch.testing.assert_close(value, weighted(F.cross_entropy, pred, y, *share(mixed, x, x)), atol=1e-4, rtol=1e-4)


@promise('class weights: a mean over the weights that count', 'divides by the number of samples')
def class_weights(MixUp, CutMix):
    x, y = batch()
    w = torch.tensor([.1, 1., 10.])
    (mixed,), pred, value = train(MixUp(), CrossEntropyLossFlat(weight=w))
    lam, partner = share(mixed, x, x)
    total = weighted(partial(F.cross_entropy, weight=w), pred, y, lam, partner)*len(y)
    torch.testing.assert_close(value, total/(lam*w[y] + (1-lam)*w[y[partner]]).sum(), atol=1e-4, rtol=1e-4)


@promise('masks: CutMix pastes the mask with the image', 'weighs two whole masks instead')
def masks(MixUp, CutMix):
    class Perfect(nn.Module):
        "Reads the right mask off the image"
        def forward(self, x): return 100*F.one_hot((x[:, 0] > .5).long(), 2).permute(0, 3, 1, 2).float() + 0*self.zero
        def __init__(self):
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(()))
    x, _ = batch()
    data = x, (x[:, 0] > .5).long()
    _, _, loss = train(CutMix(), CrossEntropyLossFlat(axis=1), data=data, model=Perfect())
    assert loss < 1e-6


@promise('a batch of one, left at the end of an epoch', 'MixUp: an IndexError')
def batch_of_one(MixUp, CutMix):
    data = batch(9)
    learner(CrossEntropyLossFlat(), MixUp(), data=data, model=nn.Sequential(nn.Flatten(), nn.Linear(72, 3))).fit(1)


@promise('Ctrl-C, or any exception: the loss is yours again', 'the mixed loss stays behind')
def interrupted(MixUp, CutMix):
    def interrupt(self): raise KeyboardInterrupt
    loss = CrossEntropyLossFlat()
    learn = learner(loss, MixUp(), Callback(after_backward=interrupt))
    with suppress(KeyboardInterrupt): learn.fit(1)
    assert learn.loss_func is loss


@promise('the data set is never written to', 'CutMix writes into the batch, which may be a view of it')
def data_kept(MixUp, CutMix):
    x, y = batch()
    before = x.clone()
    learn = learner(CrossEntropyLossFlat(), CutMix())
    learn.all_batches = lambda: learn.one_batch(0, (x, y)) if learn.training else None
    learn.n_iter = 1
    learn.fit(1)
    assert torch.equal(x, before)


@promise('the same data order and dropout as without it, for the same seed', 'draws from the global generator')
def streams(MixUp, CutMix):
    def states(cb):
        set_seed(0)
        learner(CrossEntropyLossFlat(), *cb).fit(2)
        return torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    for cb in MixUp(), CutMix():
        for with_it, without in zip(states([cb]), states([])):
            assert torch.equal(with_it, without) if isinstance(with_it, torch.Tensor) else with_it == without


@promise('several inputs, such as pairs of images: all get the same mix', 'an error, or only one is mixed')
def several_inputs(MixUp, CutMix):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(72, 3)
        def forward(self, a, b): return self.head((a + b).flatten(1))
    x, y = batch()
    for cb in MixUp(), CutMix():
        learn = learner(CrossEntropyLossFlat(), cb, Spy(), data=(x, x.clone(), y), model=Two())
        learn.fit(1)
        (a, b), _, _ = learn.spy.seen
        assert torch.equal(a, b) and not torch.equal(a, x)


@promise('signals and volumes: CutMix in one and three dimensions', 'an error: images only')
def dimensions(MixUp, CutMix):
    for size in (30,), (4, 5, 6):
        x, y = batch(size=size)
        (mixed,), _, _ = train(CutMix(), CrossEntropyLossFlat(), data=(x, y), model=nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)))
        assert all(any((m == torch.where(m == x[i], x[i], p)).all() for p in x) for i, m in enumerate(mixed))


@promise('an export of an interrupted fit loads and predicts where only fastai is installed', 'loads, with the mixed loss in it')
def export(MixUp, CutMix):
    def interrupt(self): raise RuntimeError('out of memory')
    block = DataBlock((TransformBlock, TransformBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter([0, 1]))
    with tempfile.TemporaryDirectory() as folder:
        dls = block.dataloaders(list(zip(*batch())), bs=4, path=folder, num_workers=0)
        learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), loss_func=CrossEntropyLossFlat(), cbs=MixUp())
        learn.remove_cbs([ProgressCallback, Recorder])
        try: learn.fit(1, cbs=Callback(after_pred=interrupt))
        except RuntimeError: learn.export()
        code = """if True:
            import sys
            sys.modules['fastmix'] = None # importing it raises an ImportError
            from fastai.learner import load_learner
            from fastai.losses import CrossEntropyLossFlat
            import torch
            learn = load_learner('export.pkl')
            assert type(learn.loss_func) is CrossEntropyLossFlat
            assert len(learn.predict((torch.rand(2, 6, 6), torch.tensor(0)))[2]) == 3"""
        subprocess.run([sys.executable, '-c', code], cwd=folder, check=True)
