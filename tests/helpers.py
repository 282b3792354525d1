"""A small learner, a spy on its training batches, and what a mixed batch must be, written out."""
from copy import deepcopy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from fastmix.all import Batch, Mask, Mixer, Paste, mix_rng


def samples(n, size=(4, 4)):
    "Images and class numbers, the same each time"
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, *size, generator=rng), torch.randint(0, 3, (n,), generator=rng)


class Flatten(nn.Flatten):
    "Keeps what it was given"
    def forward(self, x):
        self.given = x
        return super().forward(x)


def linear(n_in=32):
    "A linear model, the same each time, without a draw from torch's generator"
    model = nn.Sequential(Flatten(), nn.utils.skip_init(nn.Linear, n_in, 3))
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) - .5)
    return model


def loaders(data, bs=8, n_valid=8, **kwargs):
    items = list(zip(*data))
    return DataLoaders(DataLoader(items[n_valid:], bs=bs, **kwargs), DataLoader(items[:n_valid], bs=bs))


def learner(cbs=None, loss_func=None, model=None, dls=None, batches=2, **kwargs):
    "A learner without a progress bar that trains on some batches of 8"
    learn = Learner(dls or loaders(samples(8*(batches+1))), model or linear(), loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs, lr=.1, **kwargs)
    learn.logger = lambda _: None
    return learn.remove_cbs([ProgressCallback, Recorder]) # a `Recorder` trips over faults of its own


class Spy(Callback):
    "Keeps of each training batch what the loader gave, the mix, what the model got and gave, the loss, and the gradients"
    order, run_valid = 5, False # before a mixer

    def __init__(self): self.rows = []

    def before_batch(self):
        self.row = SimpleNamespace(own=self.learn.xb, copy=tuple(x.clone() for x in self.learn.xb), y=self.learn.yb)

    def after_pred(self):
        given = tuple(m.given for m in self.learn.model.modules() if isinstance(m, Flatten))
        self.row.x, self.row.pred = given or self.learn.xb, self.learn.pred.detach()

    def after_loss(self):
        mixer = next((cb for cb in self.learn.cbs if isinstance(cb, Mixer)), None)
        self.row.mix, self.row.loss = mixer and mixer.mix, self.learn.loss.detach()
        self.rows.append(self.row)

    def after_backward(self): self.row.grads = grads_of(self.learn.model)


def grads_of(model): return [p.grad.clone() for p in model.parameters()]


def drawn(mixer, x, seed=0):
    "The mix that `mixer` draws for a batch `x`"
    return mixer.draw_mix(Batch((x,)), mix_rng(seed))


def formula_grads(model, rows, scale=1.):
    "The gradients of the summed λ-weighted losses of some batches"
    model.zero_grad()
    for row in rows: (scale*weighted(row.mix, model(*row.x), *row.y)).backward()
    return grads_of(model)


def mixed(mix, x):
    "The mix of `x`, sample by sample"
    if mix.moves: return mix(x) # Written out in the tests of the method
    if hasattr(mix, 'each_tile'): return mix.each_tile(x, x)
    lam, out = mix.lam.expand(mix.n), []
    for i, (own, j) in enumerate(zip(x, mix.partner)):
        if type(mix) is Mask:
            w = mix.own[i if len(mix.own) > 1 else 0].to(own.dtype)
            out.append(w*own + (1-w)*x[j])
        elif not isinstance(mix, Paste): out.append(lam[i]*own + (1-lam[i])*x[j])
        else:
            out.append(own.clone())
            cells = (..., *(slice(*side) for side in mix.region[i if len(mix.region) > 1 else 0]))
            out[-1][cells] = x[j][cells]
    return torch.stack(out)


def weighted(mix, pred, y, loss=F.cross_entropy):
    "The λ-weighted mean of a loss's values; the plain one where `mix` is None"
    if mix is None: return loss(pred, y)
    return sum(weight*loss(pred, target, reduction='none') for weight, target in zip(mix.weights, [y, *(y[index] for index in mix.partners)])).mean()


def check(row, loss=F.cross_entropy):
    "Was this batch mixed, weighted and left alone as it must be?"
    for own, copy, x in zip(row.own, row.copy, row.x, strict=True):
        torch.testing.assert_close(x, copy if row.mix is None else mixed(row.mix, copy))
        assert torch.equal(own, copy), 'the batch was written to'
    torch.testing.assert_close(row.loss, weighted(row.mix, row.pred, *row.y, loss=loss))


def check_all(spy, n, mixed=True):
    assert len(spy.rows) == n and all((row.mix is not None) == mixed for row in spy.rows)
    for row in spy.rows: check(row)


def check_goes_on(make, batch):
    "What `make()` draws after a stop, and in a copy, is what would have come"
    def draws(mixer):
        found = []
        for _ in range(3):
            mix = mixer.draw_mix(batch, mixer.rng)
            mix = mix[-1] if isinstance(mix, list) else mix
            found.append((mix.shares.tolist(), mix.partners.tolist(), [x.tolist() for x in mix.inputs(batch.xb)]))
        return found
    one, other = make(), make()
    one.rng = mix_rng(4)
    draws(one)
    other.load_state_dict(one.state_dict())
    copied = deepcopy(one)
    assert draws(one) == draws(other) == draws(copied)
