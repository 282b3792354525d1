"""Six published methods, each one class: right wherever a mixer of ours is.

Sample `i` is 1 in channel `i`, and 0 in the channels of the others. So how much of whom is in a mixed image can be read off
it, whatever the mix says of itself, and every loss here is worked out from that.
"""
import ast
import copy
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn

import family
from family import FMix, RegMixUp, ResizeMix, SaliencyMix, TransMix
from fastmix.all import Batch, Blend, CMixUp, CutMix, MixChoice, MixMetric, MixUp, check_mixer, mix_rng, show_mix, show_mixers
from helpers import grads_of

N, SIZE = 16, (8, 12)
classes = torch.arange(N) % 3
numbers = torch.randn(N, 1, generator=torch.Generator().manual_seed(3))
methods = dict(resize_mix=ResizeMix, f_mix=FMix, saliency_mix=SaliencyMix, reg_mix_up=RegMixUp, trans_mix=TransMix, c_mix_up=CMixUp)
of_classes = {name: cls for name, cls in methods.items() if cls is not CMixUp}
every_method = pytest.mark.parametrize('method', methods.values(), ids=methods)
every_class_method = pytest.mark.parametrize('method', of_classes.values(), ids=of_classes)
per = pytest.mark.parametrize('per', ['batch', 'sample'])


def images(content=0.):
    "Sample `i` is 1 in channel `i`; three more channels show something"
    who = torch.eye(N).view(N, N, 1, 1).expand(N, N, *SIZE)
    return torch.cat([who, content*torch.rand(N, 3, *SIZE, generator=torch.Generator().manual_seed(1))], 1)


class Attention(nn.Module):
    "What each token attends to, `(n, heads, 1+T, 1+T)`"
    def __init__(self, d, heads=2):
        super().__init__()
        self.qk, self.heads = nn.Linear(d, 2*d), heads

    def forward(self, tokens):
        q, k = self.qk(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        self.given = (3*q @ k.transpose(-1, -2)).softmax(-1)
        return self.given


class Transformer(nn.Module):
    "As small as a vision transformer can be: 4×6 patches and a class token"
    def __init__(self, out=3, d=8):
        super().__init__()
        self.patches, self.token = nn.Conv2d(N+3, d, 2, stride=2), nn.Parameter(torch.zeros(1, 1, d))
        self.attention, self.head = Attention(d), nn.Linear(d, out)

    def forward(self, x):
        self.seen = x
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        self.out = self.head((self.attention(tokens).mean(1) @ tokens)[:, 0])
        return self.out


def transformer(out=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(out)


def data(y=classes, bs=8):
    items = list(zip(images(content=.5), y))
    return DataLoaders(DataLoader(items, bs=bs, shuffle=True), DataLoader(items, bs=bs))


def learner(cbs, loss=None, y=classes, **kwargs):
    learn = Learner(data(y), transformer(1 if y is numbers else 3), loss_func=loss or (nn.MSELoss() if y is numbers else nn.CrossEntropyLoss()), cbs=cbs, lr=.1, **kwargs)
    learn.logger = lambda _: None
    return learn.remove_cbs([ProgressCallback, *([] if 'metrics' in kwargs else [Recorder])])


class Look(Callback):
    "Keeps what the network was given in training, what it gave, and the loss"
    order, run_valid = 95, False
    def __init__(self): self.rows = []

    def after_loss(self):
        learn, model = self.learn, self.learn.model
        mixer = next(cb for cb in learn.cbs if hasattr(cb, 'pick'))
        self.rows.append(dict(seen=model.seen, out=model.out, attention=model.attention.given, loss=learn.loss.detach(), left=learn.pred.detach(),
                              left_x=learn.xb[0], part=mixer.batch and mixer.batch.mixer, batch=mixer.batch, y=learn.yb[0]))


def shares_seen(x): return x[:, :N].mean((2, 3))


def attended(row, shares):
    "How much the class token attends to each sample's patches"
    patches = F.avg_pool2d(row['seen'][:, :N], 2).flatten(2)
    attention = row['attention'].mean(1)[:, 0, 1:]
    return (patches*attention[:, None]).sum(2)/attention.sum(1, keepdim=True)


def by_hand(row, y=classes, weight=None):
    "The loss of a batch, from what was seen"
    if y is numbers: return F.mse_loss(row['out'], shares_seen(row['seen']) @ y)
    halves, values = [slice(8), slice(8, None)] if isinstance(row['part'], RegMixUp) else [slice(None)], []
    weight = torch.ones(3) if weight is None else weight
    for half in halves:
        shares = shares_seen(row['seen'][half])
        if isinstance(row['part'], TransMix): shares = .5*shares + .5*attended(row, shares)
        counts = torch.stack([shares[:, y == c].sum(1) for c in range(3)], 1)*weight
        values.append(-(counts*row['out'][half].log_softmax(1)).sum()/counts.sum())
    return sum(values)/len(values)


def fit(cbs, epochs=3, **kwargs):
    learn = learner([*cbs, look := Look()], **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*CUDA.*|.*cuda.*|.*User provided device_type.*')
        learn.fit(epochs)
    return learn, look.rows


def one_number_by_hand(mixer):
    "Fit `mixer` under a loss that is one number: own and partner by the one λ"
    rows = [row for row in fit([mixer], loss=RootLoss())[1] if row['batch'].batch] # That of an epoch's last batch is let go
    assert len(rows) == 3
    for row in rows:
        mix, own = row['batch'].mix, classes[shares_seen(row['batch'].batch.x).argmax(1)]
        lam = mix.lam.item()
        torch.testing.assert_close(row['loss'], lam*RootLoss()(row['out'], own) + (1-lam)*RootLoss()(row['out'], own[mix.partner]))


def target(method): return numbers if method is CMixUp else classes


def test_each_is_one_small_class():
    "At most 20 lines, besides imports and docstrings; ResizeMix with its kind of mix"
    tree, lines = ast.parse(inspect.getsource(family)), {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef): continue
        used = {i for part in ast.walk(node) if isinstance(part, ast.stmt) and not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)) for i in range(part.lineno, part.lineno+1)}
        lines[node.name] = len(used)
    assert set(lines) == {cls.__name__ for cls in methods.values() if cls.__module__ == 'family'} and max(lines.values()) <= 20, lines


@every_method
@per
def test_the_loss_by_hand(method, per):
    learn, rows = fit([method(per=per, seed=1)], y=target(method))
    assert len(rows) == 6 and sum((shares_seen(row['seen'])[-8:].max(1).values < .999).any().item() for row in rows) >= 4
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row, target(method)))


@every_class_method
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_class_weights(method, loss):
    weight = torch.tensor([1., 4., .5])
    for row in fit([method(seed=1)], loss=loss(weight=weight))[1]: torch.testing.assert_close(row['loss'], by_hand(row, weight=weight))


@every_method
def test_beside_another_in_a_choice(method):
    "A part is a whole mixer: its own draw, its own weights, its own list of mixes"
    parts = MixUp(), method()
    rows = fit([MixChoice(*parts, seed=2)], epochs=8, y=target(method))[1]
    assert {type(row['part']) for row in rows} == {MixUp, method}
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row, target(method)))


class RootLoss:
    "A loss that is only a number"
    def __call__(self, pred, y): return F.cross_entropy(pred, y).sqrt()
    def __repr__(self): return 'RootLoss'


@pytest.mark.parametrize('method', [ResizeMix, FMix, RegMixUp])
@pytest.mark.filterwarnings('ignore:.*cannot be weighted sample by sample')
def test_a_loss_that_is_one_number_gets_one_share(method):
    learn = learner([method(per='sample', seed=1), look := Look()], RootLoss())
    learn.fit(2)
    for row in look.rows:
        mix, parts = row['batch'].mix, [row['out']] if method is not RegMixUp else row['out'].split(8)
        shares = shares_seen(row['seen'])[-8:]
        lam = mix.lam.item()
        own, partner = (shares.argsort(1)[:, -k] for k in ((1, 2) if lam > .5 else (2, 1)))
        clean = [RootLoss()(parts[0], classes[shares_seen(row['seen'][:8]).argmax(1)])] if method is RegMixUp else []
        mixed = lam*RootLoss()(parts[-1], classes[own]) + (1-lam)*RootLoss()(parts[-1], classes[partner])
        torch.testing.assert_close(row['loss'], sum([*clean, mixed])/(1+len(clean)))
        assert len(mix.lam) == 1


@pytest.mark.parametrize('method', [SaliencyMix, TransMix])
@pytest.mark.filterwarnings('error:.*every batch gets one λ')
def test_a_loss_that_is_one_number_is_refused_by_those_that_weigh_samples(method):
    with pytest.raises(ValueError, match=f'{method.__name__} weighs the labels of each sample.*RootLoss'): learner(method(seed=1), RootLoss()).fit(1)


def test_c_mix_up_takes_a_closure():
    for row in fit([CMixUp(seed=1)], y=numbers, loss=lambda pred, y: F.mse_loss(pred, y))[1]: torch.testing.assert_close(row['loss'], by_hand(row, numbers))


@every_method
def test_it_keeps_what_a_mixer_promises(method):
    y = torch.randn(6, 1, generator=torch.Generator().manual_seed(0)) if method is CMixUp else None
    for per in 'batch', 'sample':
        for size in (20, 30), (8, 8), (2, 7): check_mixer(method(per=per), size, y=y, draws=5)


@every_method
def test_pictures(method):
    dls = DataLoaders(DataLoader(list(zip(images()[:, :3] + images(content=1.)[:, N:], target(method))), bs=8), DataLoader([], bs=8))
    axes = show_mix(dls, method(seed=1), sources=True, max_n=2)
    assert axes.shape == (2, 3)
    assert show_mixers(dls, {'one': method(), 'MixUp': MixUp()}, lams=(.2, .6)).shape == (2, 2)


@every_method
def test_export_and_copies(method):
    learn, _ = fit([method(seed=1)], y=target(method))
    learn.remove_cbs(Look)
    mixer = next(cb for cb in learn.cbs if hasattr(cb, 'pick'))
    mixer.learn = nn.Identity() # Attached, to something that can be pickled
    assert b'fastmix' not in pickle.dumps(mixer) and b'family' not in pickle.dumps(mixer)
    mixer.learn = learn
    for kept in 'seen', 'out': delattr(learn.model, kept) # Which has a history, and cannot be copied
    del learn.model.attention.given
    assert type(copy.deepcopy(learn).cbs.filter(lambda cb: hasattr(cb, 'pick'))[0]) is type(mixer) is method
    assert not [hook for module in learn.model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


@every_method
def test_resumed(method):
    "What comes after a stop is what would have come"
    def draws(mixer, times):
        batch = Batch((images(content=.5)[:8],), (target(method)[:8],))
        found = []
        for _ in range(times):
            mixes = mixer.draw_mix(batch, mixer.rng)
            mix = mixes[-1] if isinstance(mixes, list) else mixes
            found.append((mix.lam.tolist(), mix.partners.tolist(), shares_seen(mix.inputs(batch.xb)[0]).tolist()))
        return found
    whole, first, second = method(), method(), method()
    for mixer in whole, first: mixer.rng = mix_rng(5)
    expected, begun = draws(whole, 4), draws(first, 2)
    second.load_state_dict(first.state_dict())
    assert begun + draws(second, 2) == expected


# Several mixes at once, beside callbacks that count or look at a batch

def clean_loss(out, x): return F.cross_entropy(out, classes[shares_seen(x).argmax(1)])


@pytest.mark.parametrize('make', [RegMixUp, lambda **kwargs: MixUp(beside=True, **kwargs), lambda **kwargs: CutMix(beside=True, **kwargs), lambda **kwargs: MixChoice(RegMixUp(), RegMixUp(), **kwargs)],
                         ids=['a list', 'MixUp beside', 'CutMix beside', 'in a choice'])
def test_the_clean_batch_is_what_is_left(make):
    rows = fit([make(seed=1)])[1]
    for row in rows:
        clean, mixed = row['out'].split(8)
        torch.testing.assert_close(row['left'], clean.detach())
        assert len(row['seen']) == 16 and torch.equal(row['left_x'], row['seen'][:8])
        counts = torch.stack([shares_seen(row['seen'][8:])[:, classes == c].sum(1) for c in range(3)], 1)
        torch.testing.assert_close(row['loss'], (clean_loss(clean, row['seen'][:8]) - (counts*mixed.log_softmax(1)).sum()/8)/2)


class Several(MixUp):
    "Two mixes of each batch, and no clean one"
    def draw(self, batch, lam, rng): return [super(Several, self).draw(batch, lam, rng) for _ in range(2)]


def test_without_a_clean_batch_the_first_mix_is_left():
    learn, rows = fit([Several(seed=1)])
    for row in rows:
        torch.testing.assert_close(row['left'], row['out'][:8].detach())
        counts = torch.stack([shares_seen(row['seen'])[:, classes == c].sum(1) for c in range(3)], 1)
        torch.testing.assert_close(row['loss'], -(counts*row['out'].log_softmax(1)).sum()/16)


def test_soft_labels_of_several_mixes():
    "`learn.yb` holds the own ones until the loss has mixed them"
    y = F.one_hot(classes, 3).float()
    learn, rows = fit([RegMixUp(seed=1)], y=y)
    for row in rows:
        expected = F.cross_entropy(row['out'], shares_seen(row['seen']) @ y)
        torch.testing.assert_close(row['loss'], expected)
        torch.testing.assert_close(row['y'], shares_seen(row['seen'])[:8] @ y)


def test_gradient_accumulation_counts_each_sample_once():
    stepped = []
    learn = learner([RegMixUp(seed=1), look := Look(), GradientAccumulation(16)])
    learn.add_cb(Callback(before_step=lambda self: stepped.append((grads_of(self.learn.model), copy.deepcopy(self.learn.model.state_dict())))))
    learn.callback.order = 98 # After the accumulation: only real steps
    learn.fit(2)
    assert len(stepped) == 2
    for i, (grads, weights) in enumerate(stepped):
        model = transformer()
        model.load_state_dict(weights)
        for row in look.rows[2*i:2*i+2]:
            out = model(row['seen'])
            (by_hand(row | dict(out=out))/2).backward()
        torch.testing.assert_close(grads, grads_of(model))


@pytest.mark.parametrize('metric', [accuracy, MixMetric(accuracy)], ids=['accuracy', 'MixMetric'])
def test_train_metrics_are_those_of_the_clean_batch(metric):
    learn = learner([RegMixUp(seed=1), look := Look()], metrics=metric)
    learn.recorder.train_metrics = True
    learn.fit(1)
    right = torch.cat([row['left'].argmax(1) == classes[shares_seen(row['left_x']).argmax(1)] for row in look.rows]).float().mean()
    assert learn.recorder.values[0][1] == pytest.approx(right.item())


@pytest.mark.filterwarnings('ignore:.*CUDA.*', 'ignore:User provided device_type')
def test_mixed_precision():
    for row in fit([RegMixUp(seed=1), MixedPrecision()])[1]: torch.testing.assert_close(row['loss'], by_hand(row))


class SecondPass(Callback):
    "As sharpness-aware minimisation: another forward and backward pass within the batch"
    order, run_valid = 12, False
    def before_step(self):
        learn = self.learn
        loss = learn.loss_func(learn.model(*learn.xb), *learn.yb)
        torch.testing.assert_close(loss, clean_loss(learn.model.out, learn.xb[0]))
        loss.backward()


def test_a_second_pass_is_of_the_clean_batch(): fit([RegMixUp(seed=1), SecondPass()])


def test_a_term_is_added_to_each_mix():
    class Calm(MixUp):
        "Mixed predictions should not be too sure"
        def term(self, pred, batch, mix): return .1*(pred.softmax(1)**2).sum(1).mean()
    for beside in False, True:
        for row in fit([Calm(seed=1, beside=beside)])[1]:
            mixed = row['out'][-8:]
            term = .1*(mixed.softmax(1)**2).sum(1).mean()
            plain = by_hand(row | dict(part=RegMixUp() if beside else None))
            torch.testing.assert_close(row['loss'], plain + term/(2 if beside else 1))


def test_a_term_beside_targets_that_are_mixed():
    "The loss need not be weighted, and something is added all the same"
    class Calm(MixUp):
        def term(self, pred, batch, mix): return pred.new_tensor(5.)
    for row in fit([Calm(seed=1)], y=numbers)[1]: torch.testing.assert_close(row['loss'], by_hand(row, numbers) + 5)


def test_no_targets():
    "A loop without a loss: what is left is one batch long all the same"
    items = [(x,) for x in images(content=.5)]
    seen = []
    class Look(Callback):
        order, run_valid = 95, False
        def after_pred(self): seen.append((len(self.learn.model.seen), len(self.learn.pred), len(self.learn.xb[0])))
    learn = Learner(DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8)), transformer(), loss_func=nn.CrossEntropyLoss(), cbs=[RegMixUp(), Look()])
    learn.logger = lambda _: None
    learn.remove_cbs([ProgressCallback, Recorder]).fit(1)
    assert seen == [(16, 8, 8)]*2


@pytest.mark.parametrize('order', [0, 20], ids=['joined', 'joined, after the mixer'])
def test_an_autoencoder_beside_the_clean_batch(order):
    "Its targets are the joined inputs: each mix gets its own rows of them"
    class Own(Callback):
        def after_pred(self):
            if self.training: self.learn.yb = self.learn.xb
    own = Own()
    own.order = order
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))
        def forward(self, x): return x*self.one
    items, losses = list(zip(images(content=.5), images(content=.5))), []
    learn = Learner(DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8)), Same(), loss_func=nn.MSELoss(), cbs=[MixUp(beside=True), own], lr=0.)
    learn.add_cb(Callback(after_loss=lambda self: losses.append(self.learn.loss.item())))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert losses[:2] == [0., 0.]


# Partners from another batch

class FromBefore(MixUp):
    "Partners are the samples of the batch before"
    before = None
    def draw(self, batch, lam, rng):
        batch.source, self.before = self.before or Batch(batch.xb, batch.yb), Batch(batch.xb, batch.yb)
        return Blend(lam, np.arange(batch.n))


@pytest.mark.parametrize('y, loss', [(classes, nn.CrossEntropyLoss()), (classes, nn.CrossEntropyLoss(weight=torch.tensor([1., 4., .5]))), (numbers, nn.MSELoss())],
                         ids=['classes', 'class weights', 'numbers'])
def test_partners_from_a_source(y, loss):
    rows = fit([FromBefore(seed=1)], y=y, loss=loss)[1]
    for before, row in zip(rows, rows[1:]):
        others = row['batch'].mix
        assert (others.partner == torch.arange(8)).all()
        torch.testing.assert_close(row['loss'], by_hand(row, y, weight=getattr(loss, 'weight', None)))
        assert (shares_seen(row['seen']) > 1e-6).sum() > 8
