"""What only a GPU can show: real fits, in the precisions and with the wrappers that people train with there.

Every test runs on the CPU as well, as its own rehearsal. Sample `i` is 1 in channel `i` and 0 in the channels of the others, so
the loss that a batch must have is read off what the network was given.
"""
import warnings

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, MixUp, Mixer

devices = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
N, SIZE = 16, (8, 12)
classes = torch.arange(N) % 3
mixers = {'MixUp': MixUp, 'MixUp per batch': lambda **kwargs: MixUp(per='batch', **kwargs), 'CutMix': CutMix, 'CutMix per sample': lambda **kwargs: CutMix(per='sample', **kwargs),
          'MixChoice': lambda **kwargs: MixChoice(MixUp(), CutMix(per='sample'), **kwargs), 'beside': lambda **kwargs: CutMix(beside=True, **kwargs)}
every_mixer = pytest.mark.parametrize('make', mixers.values(), ids=mixers)


@pytest.fixture(autouse=True)
def no_warnings_of_a_cpu():
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', '.*CUDA.*|.*cuda.*|.*User provided device_type.*')
        yield


class Look(Callback):
    "Keeps what the network was given in training and what it gave, and the loss"
    order, run_valid = 95, False
    def __init__(self): self.rows = []
    def after_loss(self):
        mixer = next(cb for cb in self.learn.cbs if isinstance(cb, Mixer))
        self.rows.append(dict(seen=self.learn.model.seen, out=self.learn.model.out.float(), loss=self.learn.loss.detach(), mixes=mixer.batch.mixes if mixer.batch else [None]))


class Net(nn.Module):
    "A small convolutional network that keeps what it sees"
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(N+3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

    def forward(self, x):
        self.seen = x.detach()
        out = self.layers(x)
        self.out = out.detach()
        return out


def learner(device, cbs, loss=None, y=classes):
    who = torch.eye(N).view(N, N, 1, 1).expand(N, N, *SIZE)
    items = list(zip(torch.cat([who, torch.rand(N, 3, *SIZE)], 1), y))
    dls = DataLoaders(DataLoader(items, bs=8, shuffle=True, device=torch.device(device)), DataLoader(items, bs=8, device=torch.device(device)), device=torch.device(device))
    learn = Learner(dls, Net().to(device), loss_func=nn.CrossEntropyLoss() if loss is None else loss, cbs=cbs, lr=.05)
    learn.logger = lambda _: None
    return learn.remove_cb(ProgressCallback)


def by_hand(row, weight=None):
    "The loss, from the shares that the network has seen"
    weight, y, parts = torch.ones(3) if weight is None else weight.cpu(), classes, []
    for seen, out in zip(row['seen'].cpu().split(8), row['out'].cpu().split(8)):
        shares = seen[:, :N].float().mean((2, 3))
        counts = torch.stack([shares[:, y == c].sum(1) for c in range(3)], 1)*weight
        parts.append(-(counts*out.log_softmax(1)).sum()/counts.sum())
    return sum(parts)/len(parts)


def check_rows(look, n, **kwargs):
    assert len(look.rows) == n and all(any(mix is not None for mix in row['mixes']) for row in look.rows)
    for row in look.rows: torch.testing.assert_close(row['loss'].cpu().float(), by_hand(row, **kwargs), rtol=2e-3, atol=2e-3)


@devices
@every_mixer
def test_half_precision_and_its_scaler(device, make):
    "The loss is right, the scaler goes on, and the weights move"
    learn = learner(device, [make(seed=1), MixedPrecision(), look := Look()])
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fit(3)
    check_rows(look, 6)
    after = list(learn.model.parameters())
    assert all(p.isfinite().all() for p in after) and any(not torch.equal(a, b) for a, b in zip(before, after))


@devices
@every_mixer
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_class_weights_are_where_the_batch_is(device, make, loss):
    weight = torch.tensor([1., 4., .5], device=device)
    learn = learner(device, [make(seed=1), look := Look()], loss(weight=weight))
    learn.fit(2)
    check_rows(look, 4, weight=weight)


@devices
@every_mixer
def test_soft_labels(device, make):
    learn = learner(device, [make(seed=1), look := Look()], y=F.one_hot(classes, 3).float())
    learn.fit(2)
    check_rows(look, 4)


@devices
@pytest.mark.parametrize('make', [MixUp, CutMix], ids=['MixUp', 'CutMix'])
def test_a_compiled_loss_and_model(device, make):
    backend = 'inductor' if device == 'cuda' else 'eager'
    loss = torch.compile(nn.CrossEntropyLoss(), backend=backend)
    learn = learner(device, [make(seed=1, per='batch'), look := Look()], loss)
    learn.model.layers = torch.compile(learn.model.layers, backend=backend)
    learn.fit(2)
    check_rows(look, 4)


@devices
@every_mixer
def test_one_process_of_distributed_training(device, make, tmp_path):
    "Under `DistributedDataParallel`, over NCCL on a GPU"
    torch.distributed.init_process_group('nccl' if device == 'cuda' else 'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        learn = learner(device, [make(seed=1), look := Look()])
        inner = learn.model
        learn.model = nn.parallel.DistributedDataParallel(inner, device_ids=[0] if device == 'cuda' else None)
        look.after_loss = lambda: look.rows.append(dict(seen=inner.seen, out=inner.out, loss=learn.loss.detach(), mixes=next(cb for cb in learn.cbs if isinstance(cb, Mixer)).batch.mixes))
        learn.fit(2)
        check_rows(look, 4)
    finally: torch.distributed.destroy_process_group()


@devices
def test_inside_the_network(device):
    learn = learner(device, [ManifoldMixUp(['layers.3', 'layers.7'], per='sample', seed=1), MixedPrecision(), look := Look()])
    learn.fit(3)
    for row in look.rows:
        mix, = row['mixes']
        own = row['seen'][:, :N].mean((2, 3)).argmax(1).cpu()
        log, y, lam = row['out'].cpu().log_softmax(1), classes[own], mix.lam
        expected = -(lam*log.gather(1, y[:, None])[:, 0] + (1-lam)*log.gather(1, y[mix.partner][:, None])[:, 0]).mean()
        torch.testing.assert_close(row['loss'].cpu().float(), expected, rtol=2e-3, atol=2e-3)


@devices
def test_a_picture_of_the_next_batch(device):
    learn = learner(device, [CutMix(seed=1), look := Look()])
    before = [p.detach().clone() for p in learn.model.parameters()]
    assert learn.show_mix(max_n=2) is not None
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    learn.fit(1)
    check_rows(look, 2)
