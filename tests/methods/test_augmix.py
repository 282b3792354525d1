"""AugMix: its term against the paper's formula, its views, and what it leaves alone."""
import copy
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import Normalize
from fastai.learner import Learner, Recorder
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.torch_core import TensorImage
from fasttransform import Pipeline
from helpers import grads_of
from torch import nn

from fastmix.all import AugMix, Mixer, MixUp, all_mixers
from fastmix.methods.augmix import jensen_shannon


def literal_divergence(scores):
    "For `(3, n, classes)`: the mean of three Kullback-Leibler divergences from the mean of the predictions"
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean, total = np.clip(p.mean(0), 1e-7, 1), 0
    for one in p:
        for sample, m in zip(one, mean): total += sum(a*(np.log(a) - np.log(b)) for a, b in zip(sample, m))
    return total/3/scores.shape[1]


def test_the_term_is_the_literal_one():
    scores = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))*3
    assert jensen_shannon(scores.flatten(0, 1)).item() == pytest.approx(literal_divergence(scores.double().numpy()), rel=1e-5)
    assert jensen_shannon(scores[:1].expand(3, 5, 4).flatten(0, 1)).item() == pytest.approx(0, abs=1e-6)
    sure = 200*torch.eye(3).repeat_interleave(2, 0).requires_grad_()
    assert jensen_shannon(sure).item() == pytest.approx(np.log(3), rel=1e-5)
    jensen_shannon(sure).backward()


class Net(nn.Module):
    "A linear model that keeps what it was given"
    def __init__(self, size=8):
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 3*size*size, 3)
        with torch.no_grad():
            for p in self.linear.parameters(): p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) - .5)
    def forward(self, x):
        self.seen = x
        self.out = self.linear(x.flatten(1))
        return self.out


class Look(Callback):
    order, run_valid = 95, False
    def __init__(self): self.rows = []
    def before_batch(self): self.given = self.learn.xb[0]
    def after_loss(self): self.rows.append((self.given, self.learn.model.out, self.learn.pred, self.learn.xb, self.learn.yb[0], self.learn.loss.detach()))


def items(n=16): return list(zip(torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3))

def learner(cbs, data=None, loss=None, bs=8, **kwargs):
    dls = DataLoaders(DataLoader(data or items(), bs=bs), DataLoader(items(8), bs=bs))
    learn = Learner(dls, Net(), loss_func=loss or nn.CrossEntropyLoss(), cbs=cbs, lr=.01, **kwargs)
    learn.logger = lambda _: None
    return learn.remove_cbs([ProgressCallback] + ([] if 'metrics' in kwargs else [Recorder]))


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1., 4., .5])), lambda pred, y: F.cross_entropy(pred, y).sqrt()], ids=['plain', 'class weights', 'closure'])
def test_the_loss_by_hand(loss):
    learn = learner([AugMix(seed=1, weight=7.), look := Look()], loss=loss)
    own = torch.stack([x for x, _ in items()])
    learn.fit(2)
    assert len(look.rows) == 4
    for i, (seen, out, pred, xb, y, value) in enumerate(look.rows):
        assert len(seen) == len(out) == 24 and torch.equal(pred, out[:8]) and torch.equal(xb[0], own[i % 2*8:][:8]) and torch.equal(seen[:8], xb[0])
        torch.testing.assert_close(value, loss(out[:8], y) + 7*jensen_shannon(out))
        assert not torch.equal(seen[8:16], seen[16:]) and not torch.equal(seen[:8], seen[8:16])


def test_each_image_has_operations_of_its_own():
    "torchvision's, given a batch, does the same to all"
    mixer = AugMix(seed=0)
    mixer.start()
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(3))
    views = mixer.view(image.expand(8, 3, 16, 16))
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert views.min() >= 0 and views.max() <= 1


def test_normalised_images_are_made_images_first():
    norm = Normalize.from_stats([.4, .5, .6], [.2, .3, .1], cuda=False)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, other = AugMix(seed=2), AugMix(seed=2)
    plain.start(), other.start()
    other.norm = norm
    torch.testing.assert_close(other.view((images - norm.mean)/norm.std)*norm.std + norm.mean, plain.view(images), atol=2e-2, rtol=0)
    data = [(TensorImage(x), y) for x, y in items()]
    learn = learner([mixer := AugMix(seed=2), look := Look()], data)
    learn.dls.train.after_batch = Pipeline([norm])
    learn.fit(1)
    assert torch.equal(mixer.norm.mean, norm.mean)
    torch.testing.assert_close(torch.Tensor(look.rows[0][0][:8]), (torch.stack([x for x, _ in items()[:8]]) - norm.mean)/norm.std)


def test_images_that_are_not_in_range_and_other_data():
    for data, error, match in ([(x*9, y) for x, y in items()], ValueError, r'from 0\.0\d to [89]\.\d\d'), ([(x[:2], y) for x, y in items()], TypeError, r'\(8, 2, 8, 8\)'), \
                              ([(x, F.one_hot(y, 3).float()) for x, y in items()], TypeError, 'class numbers'), ([(x.flatten(), y) for x, y in items()], TypeError, r'\(8, 192\)'):
        with pytest.raises(error, match=f'AugMix (is for|needs).*{match}'): learner([AugMix()], data).fit(1)


def test_streams_and_seeds():
    "Global streams are untouched, the same seed gives the same views, and another gives others"
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    def views(seed):
        mixer = AugMix(seed=seed)
        mixer.start()
        return mixer.view(x)
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = views(1), views(1), views(2)
    assert torch.equal(state[0], torch.get_rng_state()) and state[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_with_gradient_accumulation():
    "The term is divided as the loss is"
    class Grads(Callback):
        order, run_valid, rows = 95, False, ()
        def before_step(self): self.rows = [*self.rows, grads_of(self.learn.model)]
    rows = []
    for more in [], [GradientAccumulation(16)]:
        learn = learner([AugMix(seed=1), grads := Grads(), *more], opt_func=SGD)
        learn.fit(1, lr=0.)
        rows.append(grads.rows)
    assert [len(row) for row in rows] == [2, 1]
    for first, second, both in zip(*rows[0], rows[1][0]): torch.testing.assert_close((first + second)/2, both)


def test_metrics_and_validation_see_clean_images():
    learn = learner([AugMix(seed=1)], metrics=accuracy)
    learn.recorder.train_metrics = True
    learn.fit(1)
    values = learn.recorder.values[0]
    assert len(values) == 4 and learn.model.seen.shape[0] == 8
    assert learn.validate()[0] == pytest.approx(F.cross_entropy(learn.model(torch.stack([x for x, _ in items(8)])), torch.arange(8) % 3).item(), rel=1e-5)


def test_bad_arguments_and_a_mixer_beside_it():
    for kwargs, error in (dict(weight=-1), ValueError), (dict(weight='1'), TypeError), (dict(severity=0), ValueError), (dict(severity=2.5), TypeError), (dict(severity=11), ValueError), (dict(seed=-1), ValueError):
        with pytest.raises(error, match=f'`{next(iter(kwargs))}`'): AugMix(**kwargs)
    for cbs in [AugMix(), MixUp()], [MixUp(), AugMix()]:
        with pytest.raises(ValueError, match='AugMix makes versions of one image, and MixUp mixes several'): learner(cbs).fit(1)
    assert not issubclass(AugMix, Mixer) and AugMix not in all_mixers.values()


def test_export_and_copies():
    learn = learner([mixer := AugMix(seed=1)])
    learn.fit(1)
    assert type(copy.deepcopy(learn).aug_mix) is AugMix
    mixer.learn = nn.Identity()
    assert b'fastmix' not in pickle.dumps(mixer)


def test_an_exception_leaves_nothing():
    class Stop(Callback):
        order = 96
        def after_pred(self): raise KeyError('here')
    learn = learner([mixer := AugMix(seed=1), stop := Stop()])
    with pytest.raises(KeyError): learn.fit(1)
    learn.remove_cb(stop)
    learn.fit(1)
    assert mixer.whole is None
