"""Fits whose loss is worked out from what the network was given, for methods that choose between places.

Sample `i` is 1 in channel `i`, and 0 in the others. So how much of whom is in a mixed one can be read off it, whatever the mix
says of itself.
"""
import warnings

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from bench import gpu, peers
from fastmix.all import Batch, mix_rng
from helpers import Flatten, Spy

N, SIZE = 12, (8, 6)
classes = torch.arange(N) % 3
per = pytest.mark.parametrize('per', ['batch', 'sample'])


def telling(size=SIZE, n=N): return torch.eye(n).view(n, n, *[1]*len(size)).repeat(1, 1, *size)


def shares_seen(x): return x.flatten(2).mean(2)


def draw(mixer, x, lam, seed=0): return mixer.draw(Batch((x,)), lam, mix_rng(seed))


def fit(mixer, loss, y=classes, model=None, size=SIZE):
    "Two epochs of two batches; what was seen, given and taken for a loss in each"
    items = list(zip(telling(size), y))
    model = model or nn.Sequential(Flatten(), nn.Linear(N*torch.Size(size).numel(), 3))
    learn = Learner(DataLoaders(DataLoader(items, bs=6, shuffle=True), DataLoader(items, bs=6)), model, loss_func=loss, cbs=[mixer, spy := Spy()], lr=.1)
    learn.logger = lambda _: None
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*cannot be weighted sample by sample')
        learn.remove_cbs([ProgressCallback, Recorder]).fit(2)
    assert len(spy.rows) == 4 and any((shares_seen(row.x[0]).max(1).values < 1).any() for row in spy.rows)
    return spy.rows


def by_classes(row, weight=None):
    "Cross entropy of own and partner, by the share of the places that each has"
    counts = shares_seen(row.x[0]) @ F.one_hot(classes, 3).float() * (1 if weight is None else weight)
    return -(counts*row.pred.log_softmax(1)).sum()/counts.sum()


def root_loss(pred, y): return F.cross_entropy(pred, y).sqrt()


def losses_by_hand(make):
    "Plain and weighted cross entropy, soft labels, and a loss that is one number"
    for loss in nn.CrossEntropyLoss(), CrossEntropyLossFlat():
        for row in fit(make(), loss): torch.testing.assert_close(row.loss, by_classes(row))
    weight = torch.tensor([1., 4., .5])
    for row in fit(make(), nn.CrossEntropyLoss(weight=weight)): torch.testing.assert_close(row.loss, by_classes(row, weight))
    soft = torch.rand(N, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    for row in fit(make(), nn.CrossEntropyLoss(), soft): torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, shares_seen(row.x[0]) @ soft))
    for row in fit(make(), root_loss):
        own = shares_seen(row.own[0]).argmax(1)
        lam = shares_seen(row.x[0])[range(6), own]
        assert len(row.mix.lam) == 1 and torch.allclose(lam, row.mix.lam.expand(6))
        expected = lam[0]*root_loss(row.pred, classes[own]) + (1-lam[0])*root_loss(row.pred, classes[own[row.mix.partner]])
        torch.testing.assert_close(row.loss, expected)


class Places(nn.Module):
    "A prediction for each place"
    def __init__(self, d=2):
        super().__init__()
        self.conv, self.given = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[d](N, N, 1), Flatten()

    def forward(self, x):
        self.given.given = x
        return self.conv(x)


def masks_by_hand(make, soft=False, size=SIZE):
    "A mask says whose each place is: it goes with its image, or both classes count by their weight"
    y = torch.arange(N).view(N, *[1]*len(size)).repeat(1, *size)
    for row in fit(make(), nn.CrossEntropyLoss(), y, Places(len(size)), size):
        x, = row.x
        torch.testing.assert_close(row.loss, -(x*row.pred.log_softmax(1)).sum(1).mean())
        assert (row.mix.own.dtype is torch.bool) != soft


def nothing_is_read_off_the_device(make):
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    x, y = gpu.batch('meta', (8, 3, 16, 16), torch.float32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, peers.CLASSES)).to('meta')
    for how in 'batch', 'sample':
        step = gpu.training_step(peers.learner(x, y, make(per=how), CrossEntropyLossFlat(), model), x, y)
        for _ in range(3): assert step().shape == ()
    with pytest.raises(RuntimeError): y.sum().item()


devices = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])


def on_a_device(make, device):
    "What a mask says is what is done there; the host never waits, and masks are those of the same seed"
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for how, dtype in ('batch', torch.float32), ('sample', torch.float32), ('sample', torch.bfloat16):
            x = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0)).to(device, dtype)
            mixer, batch = make(per=how), Batch((x,))
            mixer.draw_mix(batch, mix_rng(1))(x) # Whatever is set up once
            with gpu.no_waiting(device):
                mix = mixer.draw_mix(batch, mix_rng(1))
                out = mix(x)
            own = mix.own.to(device)[:, None]
            torch.testing.assert_close(out, torch.lerp(x, x[mix.partner.to(device)], (1 - own.float()).to(dtype)))
            torch.testing.assert_close(mix.lam.cpu(), mix.own.float().mean((1, 2)).cpu())
            assert torch.equal(mixer.draw_mix(batch, mix_rng(1)).own, mix.own) and out.dtype == dtype
    finally: torch.use_deterministic_algorithms(before)
