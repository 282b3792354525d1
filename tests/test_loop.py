"""Everything that fastai can do around a training loop, with a mixer in it. Losses and gradients are checked against the formula."""
import copy
import random
import sys
import warnings
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import fine_tune  # noqa: F401 patches Learner
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter
from fastai.distributed import ParallelTrainer  # noqa: F401 patches Learner
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import TensorBase, TensorCategory, TensorImage, set_seed
from fastai.vision.augment import Flip
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastai.vision.learner import cnn_learner, vision_learner
from torch import nn
from torchvision.models import resnet18

from fastmix.all import CutMix, MixChoice, Mixer, MixUp
from helpers import Spy, check, check_all, formula_grads, grads_of, learner, linear, loaders, samples, weighted

mixers = dict(mix_up=MixUp, cut_mix=CutMix, choice=lambda **kwargs: MixChoice(MixUp(), CutMix(per='sample'), **kwargs))
every_mixer = pytest.mark.parametrize('mixer', mixers.values(), ids=mixers)


# Fits

@every_mixer
def test_several_fits(mixer):
    "Each batch of each fit is mixed, and the generator goes on from fit to fit"
    learn = learner([mixer(seed=1), spy := Spy()])
    for _ in range(3): learn.fit(1)
    check_all(spy, 6)
    assert len({(tuple(row.mix.lam.view(-1).tolist()), row.mix.shift) for row in spy.rows}) == 6
    once = learner([mixer(seed=1), spy_once := Spy()])
    once.fit(3)
    for a, b in zip(spy.rows, spy_once.rows): assert torch.equal(a.x[0], b.x[0])


@every_mixer
def test_gradients(mixer):
    "What reaches the parameters is the gradient of the λ-weighted loss"
    learn = learner([mixer(), spy := Spy()])
    start = copy.deepcopy(learn.model)
    learn.fit(1)
    torch.testing.assert_close(spy.rows[0].grads, formula_grads(start, spy.rows[:1]))


@every_mixer
def test_lr_find_then_fit(mixer, tmp_path):
    loss = CrossEntropyLossFlat()
    learn = Learner(loaders(samples(40)), linear(), loss_func=loss, cbs=[mixer(), spy := Spy()], path=tmp_path)
    before = copy.deepcopy(learn.model.state_dict())
    with learn.no_logging(), learn.no_bar():
        learn.lr_find(num_it=10, show_plot=False)
        assert learn.loss_func is loss and not list(tmp_path.rglob('*.pth'))
        torch.testing.assert_close(learn.model.state_dict(), before, rtol=0, atol=0)
        learn.fit(1)
    check_all(spy, len(spy.rows))
    assert len(spy.rows) >= 10 and learn.loss_func is loss


def test_fine_tune_and_one_cycle():
    "Fractions are of each fit: `fine_tune` is two"
    learn = learner([MixUp(stop=.5), spy := Spy()], splitter=lambda model: [list(model[0].parameters()), list(model[1].parameters())])
    learn.fine_tune(2, freeze_epochs=1)
    learn.fit_one_cycle(1)
    for row in spy.rows: check(row)
    assert [row.mix is not None for row in spy.rows] == [True, False] + [True, True, False, False] + [True, False]


def test_start_epoch():
    "Skipped epochs count for the fractions, and are not trained on"
    learn = learner([MixUp(start=.5), spy := Spy()])
    learn.fit(4, start_epoch=1)
    for row in spy.rows: check(row)
    assert [row.mix is not None for row in spy.rows] == [False]*2 + [True]*4


def test_schedule_in_epochs():
    "`p` is the share of the batches that are mixed (a binomial share of 400: wrong in 1 of 1000 seeds), `start` and `stop` bound them"
    learn = learner([MixUp(p=.3, start=.25, stop=.75, seed=0), spy := Spy()], batches=4)
    learn.fit(200)
    mixed = [row.mix is not None for row in spy.rows]
    assert not any(mixed[:200] + mixed[600:]) and abs(sum(mixed)/400 - .3) < 3.3*(.3*.7/400)**.5
    for row in spy.rows[::20]: check(row)


@pytest.mark.parametrize('cbs', [MixUp, MixUp(), [MixUp], [CutMix()], CutMix], ids=str)
def test_class_or_instance(cbs):
    "To the Learner or to fit, as class or instance"
    if not isinstance(cbs, list): learner(cbs, batches=1).fit(1)
    learn = learner(batches=1)
    learn.fit(1, cbs=[*(cbs if isinstance(cbs, list) else [cbs]), spy := Spy()])
    check_all(spy, 1)
    assert not learn.cbs.filter(lambda cb: isinstance(cb, Mixer))


# Callbacks beside it

@every_mixer
def test_gradient_accumulation(mixer):
    "The optimizer steps with the mean over the accumulated samples of the λ-weighted losses"
    stepped = []
    learn = learner([mixer(), spy := Spy(), GradientAccumulation(16)], batches=4)
    learn.add_cb(Callback(before_step=lambda self: stepped.append((grads_of(self.learn.model), copy.deepcopy(self.learn.model)))))
    learn.callback.order = 20 # after the accumulation: only real steps
    learn.fit(1)
    assert len(stepped) == 2
    for (grads, model), rows in zip(stepped, (spy.rows[:2], spy.rows[2:])): torch.testing.assert_close(grads, formula_grads(model, rows, 8/16))
    check_all(spy, 4)


def test_gradient_clip():
    stepped = []
    learn = learner([MixUp(), spy := Spy(), GradientClip(.01)])
    start = copy.deepcopy(learn.model)
    learn.add_cb(Callback(before_step=lambda self: stepped.append(grads_of(self.learn.model))))
    learn.callback.order = 20
    learn.fit(1)
    grads = formula_grads(start, spy.rows[:1])
    norm = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(stepped[0], [g*.01/norm for g in grads], rtol=1e-3, atol=1e-6)


@every_mixer
@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
@pytest.mark.filterwarnings('ignore:User provided device_type')
def test_mixed_precision_callback(precision, mixer):
    "fastai's own, which is idle without a GPU: the loss and gradients are those without it"
    learn = learner([mixer(), spy := Spy()])
    learn.to_fp16() if precision == 'fp16' else learn.to_bf16()
    start = copy.deepcopy(learn.model)
    learn.fit(1)
    if not torch.cuda.is_available():
        check_all(spy, 2)
        torch.testing.assert_close(spy.rows[0].grads, formula_grads(start, spy.rows[:1]))


class Autocast(Callback):
    "Mixed precision on the CPU, as fastai's callback does it on a GPU"
    order = MixedPrecision.order
    def __init__(self, dtype): self.dtype = dtype
    def before_batch(self): self.autocast = torch.autocast('cpu', dtype=self.dtype); self.autocast.__enter__()
    def after_pred(self): self.learn.pred = self.pred.float()
    def after_loss(self): self.autocast.__exit__(None, None, None)


@every_mixer
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, mixer):
    "The model's output is of low precision, input and loss are not"
    learn = learner([mixer(), spy := Spy(), Autocast(dtype)])
    learn.fit(1)
    for row in spy.rows:
        assert row.pred.dtype == dtype and row.x[0].dtype == row.loss.dtype == torch.float32
        row.pred = row.pred.float()
        check(row)


@every_mixer
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64], ids=str)
def test_dtype(dtype, mixer):
    "A model and data of another dtype"
    x, y = samples(24)
    learn = learner([mixer(), spy := Spy()], nn.CrossEntropyLoss(), linear().to(dtype), loaders((x.to(dtype), y)))
    learn.fit(1)
    for row in spy.rows:
        assert row.x[0].dtype == row.pred.dtype == dtype
        tolerance = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(row.loss.double(), weighted(row.mix, row.pred.double(), *row.y), **tolerance)


@every_mixer
def test_channels_last(mixer):
    "The memory format of the batch reaches the model"
    formats, x = [], samples(24, (6, 5))
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model[0].register_forward_pre_hook(lambda _, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last)))
    dls = loaders(x, after_batch=lambda b: (b[0].contiguous(memory_format=torch.channels_last), b[1]))
    learner([mixer(), spy := Spy(), ChannelsLast()], model=model, dls=dls).fit(1)
    assert formats[:2] == [True]*2
    check_all(spy, 2)


@every_mixer
@pytest.mark.parametrize('p', [1., .5])
def test_compiled(mixer, p):
    "A compiled model is not compiled again for mixed batches, another region, or an unmixed batch"
    compiled = []
    def backend(graph, inputs):
        compiled.append(graph)
        return graph
    torch._dynamo.reset()
    model = linear()
    model[0] = nn.Flatten()
    start = copy.deepcopy(model)
    learn = learner([mixer(p=p, seed=1), spy := Spy()], model=torch.compile(model, backend=backend), batches=6)
    learn.fit(3)
    for row in spy.rows: check(row)
    assert {row.mix is not None for row in spy.rows} == ({True} if p == 1 else {True, False})
    torch.testing.assert_close(spy.rows[0].grads, formula_grads(start, spy.rows[:1]))
    torch._dynamo.reset()
    trained, compiled[:] = len(compiled), []
    learner(model=torch.compile(start, backend=backend), batches=6).fit(3)
    assert trained == len(compiled) > 0


@every_mixer
def test_parallel(mixer):
    "`to_parallel`, which hands over to the one device there is where there is no GPU"
    learn = learner([mixer(), spy := Spy()]).to_parallel()
    learn.fit(1)
    assert isinstance(learn.detach_parallel().model, nn.Sequential)
    if not torch.cuda.is_available(): check_all(spy, 2)


class SecondPass(Callback):
    "As sharpness-aware minimisation: another forward and backward pass at other weights, within the batch"
    order, run_valid = 12, False
    def before_step(self):
        learn, before = self.learn, [p.detach().clone() for p in self.learn.model.parameters()]
        with torch.no_grad():
            for p in learn.model.parameters(): p += .1*p.grad
        learn.model.zero_grad()
        pred = learn.model(*learn.xb)
        self.seen = loss, expected = learn.loss_func(pred, *learn.yb), weighted(learn.spy.row.mix, pred, *learn.yb)
        loss.backward()
        torch.testing.assert_close(loss, expected)
        with torch.no_grad():
            for p, kept in zip(learn.model.parameters(), before): p.copy_(kept)


@every_mixer
def test_second_pass(mixer):
    learn = learner([mixer(), spy := Spy(), cb := SecondPass()])
    learn.fit(1)
    check_all(spy, 2)
    assert cb.seen[0] != spy.rows[-1].loss


def test_trackers(tmp_path):
    "The best model is kept, and training ends early, by plain validation losses"
    loss = CrossEntropyLossFlat()
    learn = Learner(loaders(samples(40)), linear(), loss_func=loss, lr=.1, path=tmp_path, cbs=[MixUp(), spy := Spy()])
    with learn.no_bar(), learn.no_logging(): learn.fit(50, cbs=[SaveModelCallback(), EarlyStoppingCallback(patience=2)])
    valid = [v[1] for v in learn.recorder.values]
    best, (x, y) = min(valid), next(iter(learn.dls.valid))
    assert len(valid) < 50 and all(v >= best for v in valid[-2:]) and learn.loss_func is loss
    torch.testing.assert_close(F.cross_entropy(learn.model(x), y).item(), best) # `fit` ends with the best one
    check_all(spy, 4*len(valid))


def test_recorder():
    "The training loss is that of the mixed batches, the validation loss a plain one"
    learn = Learner(loaders(samples(40)), linear(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[MixUp(), spy := Spy()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    smooth = torch.zeros(())
    for i, row in enumerate(spy.rows, 1):
        smooth = torch.lerp(row.loss, smooth, .98)
        torch.testing.assert_close(learn.recorder.losses[i-1], smooth/(1-.98**i))
    x, y = next(iter(learn.dls.valid))
    train, valid, acc = learn.recorder.values[0]
    torch.testing.assert_close(valid, F.cross_entropy(learn.model(x), y).item())
    assert acc == (learn.model(x).argmax(1) == y).float().mean()


# Predictions

def photos(n=24):
    "A real pipeline: images, categories, transforms"
    pixels = (samples(n, (16, 16))[0].repeat(1, 2, 1, 1)[:, :3].permute(0, 2, 3, 1)*255).byte().numpy()
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: PILImage.create(pixels[i]), get_y=lambda i: 'abc'[i % 3], splitter=IndexSplitter(range(6)), batch_tfms=Flip(p=.5))
    return block.dataloaders(range(n), bs=6, num_workers=0)


def pooled(): return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))


def predictions(learn):
    "All that fastai predicts; without a draw from the global streams that would last"
    dl = learn.dls.valid
    item = learn.dls.valid_ds.items[0] if hasattr(learn.dls.valid_ds, 'items') else 0
    set_seed(3)
    found = [learn.validate(), learn.get_preds(with_loss=True, with_input=True, with_decoded=True), learn.get_preds(ds_idx=0, with_loss=True), learn.get_preds(dl=dl),
             learn.tta(n=2), learn.predict(item)[1:], Interpretation.from_learner(learn).losses, ClassificationInterpretation.from_learner(learn).confusion_matrix()]
    learn.show_results(max_n=2)
    return found


def same(a, b):
    "The same numbers, however nested"
    if isinstance(a, (torch.Tensor, np.ndarray)): return torch.testing.assert_close(torch.as_tensor(a).as_subclass(torch.Tensor), torch.as_tensor(b).as_subclass(torch.Tensor))
    if isinstance(a, (str, float, int, type(None))):
        assert a == (pytest.approx(b) if isinstance(b, float) else b)
        return
    assert len(a) == len(b)
    for one, other in zip(a, b): same(one, other)


class Predicts(Callback):
    "Predicts everything at an event, once, in the middle of a fit, with the learner and without a mixer"
    order, made = 4, None
    def __init__(self, event): self.event = event

    def __call__(self, name):
        learn = self.learn
        if name != self.event or self.made or (learn.train_iter < 2 and name == 'after_batch'): return
        self.made = True
        names = 'epoch training dl n_iter iter xb yb pred loss pct_train train_iter n_epoch lock'.split()
        kept, callbacks, streams = {n: getattr(learn, n) for n in names if hasattr(learn, n)}, list(learn.cbs), (torch.get_rng_state(), np.random.get_state(), random.getstate())
        learn.remove_cb(self)
        with learn.removed_cbs(learn.spy): ours = predictions(learn)
        plain = Learner(learn.dls, learn.model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
        with plain.no_bar(), plain.no_logging(): theirs = predictions(plain)
        self.made = ours, theirs
        learn.cbs[:] = callbacks
        self.learn, learn.spy.learn = learn, learn
        setattr(learn, 'spy', next(cb for cb in callbacks if isinstance(cb, Spy)))
        for n, value in kept.items(): setattr(learn, n, value)
        learn.model.train(learn.training)
        torch.set_rng_state(streams[0]); np.random.set_state(streams[1]); random.setstate(streams[2])


@every_mixer
@pytest.mark.parametrize('event', ['before_epoch', 'after_batch', 'after_train', 'after_epoch', 'after_fit', 'never'])
@pytest.mark.filterwarnings('ignore')
def test_predictions(event, mixer):
    "Predictions in the middle of a fit and after it are those of a learner without a mixer; the fit goes on as it would"
    loss, cb = CrossEntropyLossFlat(), Predicts(event)
    learn = Learner(photos(), pooled(), loss_func=loss, metrics=accuracy, lr=.01, cbs=[mixer(), spy := Spy()])
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, cbs=cb)
        if event == 'never': cb.learn = learn; cb.event = 'now'; cb('now')
    assert len(spy.rows) == 6
    for row in spy.rows: check(row)
    assert all(row.mix is not None for row in spy.rows)
    same(*cb.made)
    assert learn.loss_func is loss


@pytest.mark.parametrize('make', [vision_learner, cnn_learner])
def test_vision_learner(make):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = make(photos(), resnet18, pretrained=False, normalize=False, cbs=[MixUp(), spy := Spy()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    check_all(spy, 3)


@every_mixer
def test_plain_tensors_inside(mixer, monkeypatch):
    "Whatever is done with a tensor of fastai's goes through Python, a look at its shape too: the mixer does none of it, and keeps the type"
    done, dispatch = [], TensorBase.__dict__['__torch_function__'].__func__

    def counted(cls, func, types, args=(), kwargs=None):
        done.append(func)
        return dispatch(cls, func, types, args, kwargs)
    monkeypatch.setattr(TensorBase, '__torch_function__', classmethod(counted))
    learn = learner(mixer := mixer())
    x, y = samples(16)
    for _ in range(4):
        learn.xb, learn.yb = (TensorImage(x),), (TensorCategory(y),)
        done.clear()
        mixer.before_batch()
        mixer.undo()
        assert not done and type(learn.xb[0]) is TensorImage and type(learn.yb[0]) is TensorCategory
    assert learn.xb[0].ndim == 4 and len(done) == 1, 'this would have been seen'


def test_gather_args(monkeypatch):
    "An experiment logger sees the arguments"
    monkeypatch.setitem(sys.modules, 'wandb', MagicMock()) # fastai's `gather_args` is in a module that imports it
    import fastai.callback.wandb # noqa: F401 patches Learner
    def shown(cb): return learner(cb).gather_args()[type(cb).__name__]
    assert shown(MixUp(.7, start=.1, seed=3)) == dict(alpha=.7, per='sample', fold=True, k=2, p=1., start=.1, stop=1., seed=3, targets=None, beside=False, partner='any', source=None, decouple=0.)
    args = shown(MixChoice(MixUp(.7), CutMix(), weights=[1, 3], p=.9))
    assert args.keys() == {'mixers', 'weights', 'p', 'start', 'stop', 'seed'} and args['weights'] == [1, 3] and args['p'] == .9
    assert '0.7' in str(args['mixers']), f'the arguments of its parts are not shown: {args}'


# Randomness

class Dropout(nn.Module):
    "Keeps what it dropped"
    def __init__(self):
        super().__init__()
        self.seen = []
    def forward(self, x):
        mask = torch.rand_like(x) > .5
        self.seen.append(mask)
        return x*mask


def seeded(cbs, seed=0):
    "What a fit with a seed saw: order of the data, dropout, global streams; and the mixes"
    set_seed(seed)
    learn = learner([*cbs, spy := Spy()], model=nn.Sequential(nn.Flatten(), drop := Dropout(), nn.Linear(32, 3)), dls=loaders(samples(40), shuffle=True))
    learn.fit(2)
    state = torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), torch.tensor(np.random.get_state()[2]), torch.tensor(random.getstate()[1])
    mixes = [(row.mix.lam.view(-1).tolist(), row.mix.partner.tolist()) if row.mix else None for row in spy.rows]
    return [row.copy[0] for row in spy.rows], drop.seen, state, mixes


@every_mixer
def test_streams(mixer):
    "The same seed gives the same data order, dropout, streams and mixes; the first three also without a mixer"
    plain, one, again, other = seeded([]), seeded([mixer()]), seeded([mixer()]), seeded([mixer()], 1)
    for a, b, c in zip(plain[:3], one[:3], again[:3]):
        for p, q, r in zip(a, b, c, strict=True): assert torch.equal(p, q) and torch.equal(q, r)
    assert one[3] == again[3] != other[3] and not any(torch.equal(a, b) for a, b in zip(one[0], other[0]))


@every_mixer
def test_fresh_learners_differ(mixer):
    "Two learners in one process draw differently, unless their mixers have the same seed"
    def fit(seed=None):
        learn = learner([mixer(seed=seed), spy := Spy()], model=nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
        learn.fit(1)
        return [(row.mix.lam.view(-1).tolist(), row.mix.partner.tolist()) for row in spy.rows]
    assert fit() != fit() and fit(5) == fit(5) != fit(6)


@pytest.mark.parametrize('before', [lambda learn: learn.validate(), lambda learn: learn.get_preds()], ids=['validate', 'get_preds'])
def test_seed_at_first_fit(before):
    "The generator is seeded at the first fit, not when something is predicted before"
    def fit(before=None):
        learn = learner([MixUp(), spy := Spy()])
        if before: before(learn)
        set_seed(42)
        learn.fit(1)
        return [row.mix.lam.tolist() for row in spy.rows]
    torch.rand(1)
    assert fit() == fit(before)


# Inputs and targets

class Two(nn.Module):
    "Two inputs, two outputs"
    def __init__(self):
        super().__init__()
        self.label, self.value = linear()[1], nn.Linear(32, 2)
    def forward(self, a, b=None):
        x = (a if b is None else a + b.sum(1)[:, None, None, None]).flatten(1)
        return self.label(x), self.value(x)


def label_and_value(pred, label, value, reduction='mean'):
    return F.cross_entropy(pred[0], label, reduction=reduction) + F.mse_loss(pred[1], value, reduction='none').mean(1).sum()/(len(label) if reduction == 'mean' else 1)


class LabelAndValue(nn.Module):
    reduction = 'mean'
    def forward(self, pred, label, value):
        loss = F.cross_entropy(pred[0], label, reduction='none') + (pred[1]-value).pow(2).mean(1)
        return loss.mean() if self.reduction == 'mean' else loss


@every_mixer
@pytest.mark.parametrize('loss', [LabelAndValue(), lambda pred, label, value: LabelAndValue()(pred, label, value)], ids=['with a reduction', 'a closure'])
@pytest.mark.filterwarnings('ignore:.*cannot be weighted sample by sample')
def test_several_inputs_and_targets(mixer, loss):
    "Two inputs get the same mix; of the targets the class is weighted, and the value blended"
    rng = torch.Generator().manual_seed(2)
    (x, y), vector, value = samples(32), torch.rand(32, 5, generator=rng), torch.rand(32, 2, generator=rng)
    dls = loaders((x, vector, y, value))
    dls.train.n_inp = dls.valid.n_inp = 2
    seen = []
    class Look(Callback):
        order, run_valid = 100, False
        def after_loss(self): seen.append((self.learn.xb, self.learn.yb, [p.detach() for p in self.learn.pred], self.learn.loss.detach(), self.learn.own, self.mixer.mix))
        def before_batch(self): pass
    class Own(Callback):
        order, run_valid = 5, False
        def before_batch(self): self.learn.own = self.learn.xb, self.learn.yb
    cb = mixer()
    look = Look()
    look.mixer = cb
    learner([cb, Own(), look], loss, Two(), dls).fit(2)
    assert len(seen) == 6
    for (a, b), (label, mixed_value), pred, found, (own_x, own_y), mix in seen:
        lam, j = mix.lam, mix.partner
        share = lam.view(-1, 1)
        torch.testing.assert_close(b, share*own_x[1] + (1-share)*own_x[1][j])
        torch.testing.assert_close(mixed_value, share*own_y[1] + (1-share)*own_y[1][j])
        assert torch.equal(label, own_y[0])
        torch.testing.assert_close(a, mix(own_x[0]))
        expected = weighted(mix, pred[0], label) + (pred[1]-mixed_value).pow(2).mean()
        torch.testing.assert_close(found, expected)


@every_mixer
def test_no_target(mixer):
    "The inputs of a batch without targets are mixed, as for an autoencoder that keeps its own loss"
    x, losses = samples(24)[0], []
    class Own(Callback):
        order = 5
        def before_batch(self): self.learn.own = self.learn.xb[0]
    class Keep(Callback):
        order, run_valid = 20, False
        def after_pred(self): losses.append((self.learn.own, self.learn.xb[0], self.cb.mix))
    items = [(one,) for one in x]
    dls = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8))
    cb, keep = mixer(), Keep()
    keep.cb = cb
    loss = CrossEntropyLossFlat()
    learn = learner([cb, Own(), keep], loss, linear(), dls)
    learn.fit(1)
    assert len(losses) == 3 and learn.loss_func is loss
    for own, mixed, mix in losses: assert not torch.equal(own, mixed) and torch.equal(mixed, mix(own))


def test_last_batch_of_one():
    "A batch of one has no partner: it is left as it is"
    learn = learner([MixUp(), spy := Spy()], dls=loaders(samples(8+17)))
    learn.fit(1)
    assert [len(row.x[0]) for row in spy.rows] == [8, 8, 1] and [row.mix is not None for row in spy.rows] == [True, True, False]
    for row in spy.rows: check(row)


def test_events_the_mixer_does_not_have():
    "They are not looked for in the learner and the model; one that is put on the mixer is called"
    class Asked(nn.Linear):
        asked = []
        def __getattr__(self, name): self.asked.append(name); return super().__getattr__(name)
    model, called, mixer = nn.Sequential(nn.Flatten(), Asked(samples(8)[0][0].numel(), 10)), [], MixUp(seed=1)
    mixer.learn = type('L', (), {'model': model, 'training': True, '__getattr__': lambda self, name: getattr(model[1], name)})()
    mixer('after_step')
    assert 'after_step' not in Asked.asked
    mixer.after_step = lambda: called.append('after_step')
    mixer('after_step')
    assert called == ['after_step']
    mixer.run = False
    mixer('after_step')
    mixer('after_fit')
    assert called == ['after_step'] and mixer.run
