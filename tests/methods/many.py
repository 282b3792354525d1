"""Mixes of more than two samples: what the loss and the metrics must be, from what is seen in the inputs.

Sample `i` is 1 in channel `i`, and 0 in the channels of the others. So how much of whom is in a mixed image can be read
off it, whatever the mix says of itself.
"""
import warnings
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from test_family import RootLoss
from torch import nn

N, SIZE, BS = 24, (6, 10), 8
classes = torch.arange(N) % 3
soft = torch.rand(N, 3, generator=torch.Generator().manual_seed(4))
numbers = torch.randn(N, 1, generator=torch.Generator().manual_seed(3))
hot = F.one_hot(classes, 3).float()


def images(): return torch.eye(N).view(N, N, 1, 1).repeat(1, 1, *SIZE)


def loaders(y=classes, x=None):
    items = list(zip(images() if x is None else x, y))
    return DataLoaders(DataLoader(items, bs=BS, shuffle=True), DataLoader(items, bs=BS))


class Linear(nn.Module):
    "Keeps what it was given"
    def __init__(self, out=3):
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, N, out)
        with torch.no_grad(): self.layer.weight.copy_(torch.rand(out, N, generator=torch.Generator().manual_seed(1)) - .5), self.layer.bias.zero_()

    def forward(self, x):
        self.seen = x
        self.out = self.layer(x.mean((2, 3)))
        return self.out


class Look(Callback):
    order, run_valid = 95, False
    def __init__(self): self.rows = []

    def after_loss(self):
        mixer = next(cb for cb in self.learn.cbs if hasattr(cb, 'pick'))
        self.rows.append(SimpleNamespace(x=self.learn.model.seen.detach(), out=self.learn.model.out.detach(), pred=self.learn.pred.detach(), loss=self.learn.loss.detach(), mix=mixer.mix,
                                         part=mixer.batch and mixer.batch.mixer, y=self.learn.yb[0]))


def fit(mixer, loss=None, y=classes, epochs=2, out=3, model=None, **kwargs):
    learn = Learner(loaders(y), model or Linear(out), loss_func=loss or nn.CrossEntropyLoss(), cbs=[mixer, look := Look()], lr=.1, **kwargs)
    learn.logger = lambda _: None
    learn.remove_cbs([ProgressCallback] if 'metrics' in kwargs else [ProgressCallback, Recorder])
    if 'metrics' in kwargs: learn.recorder.train_metrics = True
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*(CUDA|cuda|User provided device_type|cannot be weighted sample by sample).*')
        learn.fit(epochs)
    return learn, look.rows


def shares_seen(row): return row.x.mean((2, 3))


def several(rows, at_least=3):
    "Were samples mixed of so many others?"
    return max((shares_seen(row) > .001).sum(1).max() for row in rows) >= at_least


def class_loss_by_hand(row, weight=None):
    counts = shares_seen(row) @ hot*(torch.ones(3) if weight is None else weight)
    return -(counts*row.pred.log_softmax(1)).sum()/counts.sum()


def root_loss_by_hand(row):
    "Each part's own loss, by the one share of each"
    shares, ids = row.mix.shares, [torch.arange(BS), *row.mix.partners]
    assert shares.shape[1] == 1
    of = who_is_who(row)
    return sum(share*RootLoss()(row.pred, classes[of[index]]) for share, index in zip(shares[:, 0], ids))


def who_is_who(row):
    "The sample of the data that each sample of the batch is, from the sums of what is seen of it"
    shares, ids, seen = row.mix.shares.expand(-1, BS), [torch.arange(BS), *row.mix.partners], shares_seen(row)
    stated = torch.zeros(BS, BS)
    for share, index in zip(shares, ids): stated[torch.arange(BS), index] += share
    match = torch.cdist(stated.T.contiguous(), seen.T.contiguous())
    assert (match.min(1).values < 1e-3).all()
    return match.argmin(1)


def metric_by_hand(row):
    "The share of the labels that was hit"
    return (shares_seen(row) @ hot)[torch.arange(BS), row.pred.argmax(1)].mean().item()


def longest_piece(alpha, k, draws=200_000):
    "The mean of the largest of `k` shares, by NumPy's own draws"
    return np.random.default_rng(7).dirichlet([alpha]*k, draws).max(1).mean()
