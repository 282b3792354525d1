"""Whatever ends a fit, and wherever: afterwards the learner is as if nothing had happened."""
import copy
import gc
import pickle
import subprocess
import sys
import warnings
import weakref
from dataclasses import dataclass
from pickletools import genops

import cloudpickle
import pytest
import torch
import torch.nn.functional as F
from fastai.callback import core
from fastai.callback.core import Callback
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.interpret import Interpretation
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, Mixer, MixMetric, MixUp
from helpers import Spy, check, check_all, learner, samples

events = [event for event in core._events if event != 'after_create']
cancels = {name: getattr(core, f'Cancel{name.capitalize()}Exception') for name in 'step backward batch train valid epoch fit'.split()}
faults = [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, *cancels.values()]
leads = dict(after_cancel_backward='before_backward', after_cancel_step='before_step', after_cancel_batch='after_pred', after_cancel_train='after_batch',
             after_cancel_validate='before_validate', after_cancel_epoch='after_train', after_cancel_fit='before_epoch')
mixers = dict(mix_up=MixUp, cut_mix=CutMix, choice=lambda: MixChoice(MixUp(), CutMix(per='sample')), manifold=lambda: ManifoldMixUp(layers='0'))
every_mixer = pytest.mark.parametrize('mixer', mixers.values(), ids=mixers)


class Loss(nn.Module):
    "A user's loss, that can be made to fail"
    reduction, fail = 'mean', None
    def forward(self, pred, target):
        if self.fail: self.fail()
        return F.cross_entropy(pred, target, reduction=self.reduction)
    def activation(self, pred): return pred.softmax(1)


def callback(event, action, order=0):
    cb = Callback(**{event: lambda self: action()})
    cb.order = order
    return cb


def broken_fit(learn, place, fault, order=0, cbs=()):
    "A fit with a `fault` at an event, or in the forward pass, the loss, or the optimizer's step"
    raised = []
    def fail(*_):
        raised.append(fault)
        raise fault('a fault')
    def lead(): raise cancels[place.split('_')[2].replace('validate', 'valid')]()
    cbs, hook = [*cbs], None
    learn.create_opt()
    if place in leads: cbs.append(callback(leads[place], lead, order))
    if place in events: cbs.append(callback(place, fail, order))
    elif place == 'forward': hook = learn.model.register_forward_pre_hook(fail)
    elif place == 'loss': learn.loss_func.fail = fail
    elif place == 'optimizer': learn.opt.step = fail
    try: learn.fit(1, cbs=cbs)
    except fault: pass
    assert raised
    if hook: hook.remove()
    if place == 'loss': learn.loss_func.fail = None
    learn.create_opt()


def dump(learn):
    "The learner as an export would pickle it"
    (dls, opt), (learn.dls, learn.opt) = (learn.dls, learn.opt), (None, None)
    try: return cloudpickle.dumps(learn)
    finally: learn.dls, learn.opt = dls, opt


def check_untouched(learn, loss):
    "Is the learner what it would be without a mixer, with these weights?"
    x, y = next(iter(learn.dls.valid))
    out = learn.model.eval()(x).detach()
    assert learn.loss_func is loss and torch.equal(learn.loss_func(out, y), F.cross_entropy(out, y))
    assert not any(module._forward_pre_hooks for module in learn.model.modules()), 'a hook is left'
    assert not [name for _, name, _ in genops(dump(learn)) if str(name).startswith('fastmix.')] # the module of a class or function
    preds, targets, losses = learn.get_preds(with_loss=True)
    torch.testing.assert_close((preds, targets, losses), (out.softmax(1), y, F.cross_entropy(out, y, reduction='none')))
    assert learn.loss_func is loss


def check_trains(learn, mixer=MixUp):
    "Does another fit without the mixer train as usual, and one with it mix?"
    own = learn.cbs.filter(lambda cb: isinstance(cb, Mixer))
    learn.remove_cbs(own).fit(1, cbs=(spy := Spy()))
    check_all(spy, 2, mixed=False)
    learn.add_cbs(own).fit(1, cbs=[spy := Spy(), *([] if own else [mixer()])])
    check_all(spy, 2)


@pytest.mark.parametrize('mixer, attached', [('mix_up', True), ('cut_mix', False), ('choice', False), ('manifold', True)])
@pytest.mark.parametrize('place', events + ['forward', 'loss', 'optimizer'])
def test_fault(place, mixer, attached):
    "Each exception, before and after the mixer's own turn at that event; the mixer attached, or given to `fit`"
    loss, make = Loss(), mixers[mixer]
    for i, fault in enumerate(faults):
        for order in (0, 60) if mixer == 'mix_up' else (60*(i % 2),):
            learn = learner(make() if attached else None, loss)
            broken_fit(learn, place, fault, order, () if attached else [make()])
            check_untouched(learn, loss)
            if order == 0: check_trains(learn, make)


stateful = {f'fastmix.{name}' for name in ('mixer', 'layers', 'batch', 'draw', 'mix')} # not the loss, where torch's own `no_grad` would be interrupted


class Interrupt:
    "Ctrl-C at the `n`-th line that runs where something of the learner is changed"
    def __init__(self, n): self.n, self.at = n, None

    def __call__(self, frame, event, arg):
        if frame.f_globals.get('__name__') not in stateful: return
        if event == 'line':
            self.n -= 1
            if self.n == 0:
                self.at = frame.f_lineno
                raise KeyboardInterrupt
        return self

    def __enter__(self): self.before = sys.gettrace(); sys.settrace(self)
    def __exit__(self, *_): sys.settrace(self.before)


@pytest.mark.parametrize('mixer', ['mix_up', 'manifold'])
def test_interrupted_mixer(mixer):
    "Ctrl-C at every line of a mixer"
    n, loss = 0, Loss()
    while True:
        n += 1
        learn, interrupt = learner(mixers[mixer](), loss, batches=1), Interrupt(n)
        try:
            with interrupt: learn.fit(1)
        except KeyboardInterrupt: pass
        if interrupt.at is None: break
        assert learn.loss_func is loss, f'line {interrupt.at}'
        assert not learn.model[0]._forward_pre_hooks, f'line {interrupt.at}'
    assert n > 50


@pytest.mark.parametrize('order', [0, 60], ids=['before', 'after'])
@pytest.mark.parametrize('event', [event for event in events if 'cancel' not in event])
def test_removed(event, order):
    "The mixer is taken off at an event: the batch that is under way ends as it began, and the next ones are not mixed"
    def remove():
        seen.append(mixer.mix)
        learn.remove_cb(mixer)
    seen, loss, mixer = [], Loss(), MixUp(per='batch')
    learn = learner([mixer, spy := Spy()], loss)
    cb = callback(event, lambda: seen or remove(), order)
    learn.fit(1, cbs=cb)
    assert len(seen) == 1
    first_mixed = event in events[events.index('before_batch'):] and (event, order) != ('before_batch', 0)
    later_mixed = event in events[events.index('after_train'):]
    for row, was_mixed in zip(spy.rows, (first_mixed, later_mixed), strict=True):
        row.mix = (row.mix or seen[0]) if was_mixed else row.mix
        assert (row.mix is not None) == was_mixed
        check(row)
    check_untouched(learn.remove_cb(spy), loss)
    learn.add_cb(mixer)
    check_trains(learn)


@pytest.mark.parametrize('event', ['before_train', 'before_batch', 'after_batch', 'after_epoch'])
def test_added_later(event):
    "A mixer that is added in the middle of a fit mixes from then on, and a fault then leaves nothing behind"
    loss, spy = Loss(), Spy()
    learn = learner(None, loss, batches=3)
    def add():
        if not learn.cbs.filter(lambda cb: isinstance(cb, Mixer)): learn.add_cb(MixUp())
    def fail():
        if learn.epoch == 1 and learn.iter == 2: raise RuntimeError('a fault')
    with pytest.raises(RuntimeError): learn.fit(2, cbs=[spy, callback(event, add), callback('after_backward', fail)])
    assert [row.mix is not None for row in spy.rows[-2:]] == [True, True]
    for row in spy.rows: check(row)
    check_untouched(learn, loss)


@pytest.mark.parametrize('event', ['before_epoch', 'before_train', 'after_loss', 'after_batch', 'after_train', 'after_validate', 'after_epoch'])
@pytest.mark.parametrize('use', [lambda learn: learn.get_preds(with_loss=True), lambda learn: learn.validate(), Interpretation.from_learner], ids=['get_preds', 'validate', 'Interpretation'])
def test_fault_after_predictions(use, event):
    "Predictions are made in the middle of a fit, as loggers do; then comes a fault"
    used = []
    def predict():
        if used: return
        used.append(True)
        kept = {name: getattr(learn, name) for name in ('epoch', 'training', 'dl', 'n_iter', 'iter', 'xb', 'yb', 'pred', 'loss', 'loss_grad', 'pct_train') if hasattr(learn, name)}
        use(learn)
        for name, value in kept.items(): setattr(learn, name, value)
    def fail():
        if learn.epoch: raise KeyboardInterrupt
    loss, spy = Loss(), Spy()
    learn = learner([MixUp(), spy], loss)
    with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=[callback(event, predict), callback('after_backward', fail)])
    check(spy.rows[-1])
    assert spy.rows[-1].mix
    check_untouched(learn.remove_cb(spy), loss)
    check_trains(learn)


def cross_entropy(pred, target, reduction='mean'): return F.cross_entropy(pred, target, reduction=reduction)


@pytest.mark.parametrize('loss', [cross_entropy, CrossEntropyLossFlat(), nn.CrossEntropyLoss()], ids=['function', 'fastai', 'torch'])
@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_step', 'after_batch'])
def test_unreduced_within_a_batch(event, loss):
    "Unreduced losses are asked for while a mixed batch is under way: the loss is the user's afterwards"
    def predict():
        if not learn.training or losses: return
        kept = learn.dl, learn.n_iter, learn.xb, learn.yb
        losses.append(learn.get_preds(with_loss=True)[2])
        learn.dl, learn.n_iter, learn.xb, learn.yb = kept
    losses = []
    learn = learner(MixUp(), loss, batches=1)
    x, y = next(iter(learn.dls.valid))
    before = F.cross_entropy(learn.model(x), y, reduction='none').detach()
    learn.fit(1, cbs=callback(event, predict))
    if event in ('after_pred', 'after_loss'): torch.testing.assert_close(losses[0], before)
    assert learn.loss_func is loss and getattr(loss, 'reduction', 'mean') == 'mean'


@every_mixer
@pytest.mark.parametrize('stop', [False, True], ids=['finished', 'interrupted'])
def test_a_batch_goes_on_after_predictions(mixer, stop):
    "Validation in the midst of a batch is clean, and the batch's loss is weighted all the same; also in batches after one whose predictions were interrupted"
    def predict():
        if not learn.training or len(clean) == 2: return
        kept = {name: getattr(learn, name) for name in ('dl', 'n_iter', 'xb', 'yb', 'pred', 'training')}
        if stop and not clean:
            clean.append(None)
            with learn.added_cbs(callback('before_batch', fail)): learn.get_preds()
        clean.append(losses())
        for name, value in kept.items(): setattr(learn, name, value)
        learn.model.train()
    def fail(): raise KeyboardInterrupt
    def losses(): return learn.get_preds(with_loss=True)[2].tolist()
    clean, loss = [], Loss()
    learn = learner([mixer(), spy := Spy()], loss)
    plain = losses()
    try: learn.fit(1, lr=0., cbs=callback('after_pred', predict, order=10))
    except KeyboardInterrupt:
        check_untouched(learn, loss)
        learn.fit(1, lr=0., cbs=callback('after_pred', predict, order=10))
    assert clean == ([None, plain] if stop else [plain]*2)
    check_all(spy, 2)
    check_untouched(learn.remove_cb(spy), loss)


@every_mixer
@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'after_batch'])
def test_a_batch_within_a_batch(mixer, event):
    "A callback trains on one more batch in the midst of each: both are mixed and weighted"
    def one_more():
        if not learn.training or busy: return
        kept = {name: getattr(learn, name) for name in ('iter', 'xb', 'yb', 'pred', 'loss', 'loss_grad') if name in vars(learn)}
        row = getattr(spy, 'row', None)
        busy.append(True)
        learn.one_batch(0, samples(8))
        busy.clear()
        for name, value in kept.items(): setattr(learn, name, value)
        spy.row = row
    busy, loss = [], Loss()
    learn = learner([mixer(), spy := Spy()], loss)
    learn.fit(1, lr=0., cbs=callback(event, one_more, order=20))
    assert len(spy.rows) == 4 and all(row.mix for row in spy.rows)
    for row in spy.rows: check(row)
    check_untouched(learn.remove_cb(spy), loss)


def test_copies_of_a_metric():
    metric = MixMetric(accuracy)
    for make in copy.copy, copy.deepcopy: assert type(make(metric)) is MixMetric and make(metric).name == metric.name


@pytest.mark.parametrize('event, order', [('before_batch', 9), ('after_pred', 0)])
def test_a_loss_that_is_replaced_too_late_is_told(event, order):
    def replace(): learn.loss_func = nn.CrossEntropyLoss()
    learn = learner(MixUp(), Loss())
    with pytest.warns(UserWarning, match='the loss was replaced while a batch was mixed'): learn.fit(1, cbs=callback(event, replace, order))
    for event, order in ('before_batch', 0), ('after_loss', 0), ('after_batch', 0), ('before_epoch', 0):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            learn.fit(1, cbs=callback(event, replace, order))
        assert type(learn.loss_func) is nn.CrossEntropyLoss


@every_mixer
def test_copy(mixer):
    "A shallow copy of a mixer at work is a mixer"
    learn, copies = learner(mixer(), Loss()), []
    own = next(cb for cb in learn.cbs if isinstance(cb, Mixer))
    learn.fit(1, cbs=callback('after_pred', lambda: copies.append(copy.copy(own))))
    assert type(copies[0]) is type(own)
    learn = learner([copies[0], spy := Spy()], Loss())
    learn.fit(1)
    check_all(spy, 2)


@every_mixer
@pytest.mark.parametrize('when', ['before', 'in the middle', 'after a crash', 'after'])
def test_deepcopy(when, mixer):
    "A copy is a learner of its own, with a mixer that goes on from where the original is; both train as if there were no other"
    loss, copies = Loss(), []
    learn = learner(mixer(), loss)
    if when == 'in the middle': learn.fit(1, cbs=callback('after_validate', lambda: copies.append(copy.deepcopy(learn))))
    if when == 'after a crash': broken_fit(learn, 'after_pred', RuntimeError)
    if when == 'after': learn.fit(1)
    learn._end_cleanup()
    other = (copies or [copy.deepcopy(learn)])[0]
    other.remove_cbs(other.cbs.filter(lambda cb: type(cb) is Callback))
    own, others = (next(cb for cb in o.cbs if isinstance(cb, Mixer)) for o in (learn, other))
    assert type(others) is type(own) and others is not own and others.learn is other and other.loss_func is not loss
    for module in learn.model.modules(): assert module not in set(other.model.modules())
    spies = []
    for o in learn, other:
        o.fit(1, cbs=(spy := Spy()))
        check_all(spy, 2)
        spies.append(spy)
    for a, b in zip(*(spy.rows for spy in spies)): assert when == 'before' or a.mix.lam.tolist() == b.mix.lam.tolist() and a.mix.partner.tolist() == b.mix.partner.tolist()
    check_untouched(learn, loss)
    check_untouched(other, other.loss_func)


def test_pickled_mixer():
    "A mixer without a learner is pickled as what it is"
    for make in mixers.values():
        mixer = make()
        assert type(pickle.loads(pickle.dumps(mixer))) is type(mixer)


def test_a_used_mixer_lets_go_of_the_model_and_the_loss():
    for make in mixers.values():
        mixer, learn = make(), learner(loss_func=lambda pred, y: F.cross_entropy(pred, y))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)
            learn.fit(1, cbs=mixer)
        again, layer = pickle.loads(pickle.dumps(mixer)), weakref.ref(learn.model[-1])
        assert again.state_dict()['rng'] == mixer.state_dict()['rng'] is not None and again.state_dict()['per_sample'] is None, 'of another loss'
        del learn
        gc.collect()
        assert layer() is None


exports = {'before a fit': None, 'after a fit': 'nothing', 'after a fault': 'fault', **{event: event for event in ('before_epoch', 'before_train', 'after_train', 'after_validate', 'after_epoch')}}


def test_exported(tmp_path):
    "Whenever it was exported, with whatever mixer, it is loaded, predicts and trains where only fastai is installed"
    block = DataBlock((TransformBlock, TransformBlock), get_x=ItemGetter(0), get_y=ItemGetter(1), splitter=IndexSplitter([0, 1, 2, 3]))
    dls = block.dataloaders(list(zip(*samples(12))), bs=4, path=tmp_path, num_workers=0)
    x, expected = samples(12)[0][0], {}
    def fail(): raise KeyboardInterrupt
    for name, make in mixers.items():
        for when, event in exports.items():
            learn = learner(make(), dls=dls, model=nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), metrics=MixMetric(accuracy))
            file = f'{name} {when}.pkl'
            def export():
                learn.export(file)
                expected[file] = learn.model(x[None]).softmax(1)[0].tolist()
            if event == 'fault':
                with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=callback('after_loss', fail))
            elif event: learn.fit(1, cbs=() if event == 'nothing' else SafeExport(event, export))
            if event not in events: export()
    code = f"""if True:
        import sys
        sys.modules['fastmix'] = None # importing it raises an ImportError
        import torch
        from fastai.learner import load_learner
        from fastai.losses import CrossEntropyLossFlat
        from fastai.optimizer import Adam
        for file, expected in {expected}.items():
            learn = load_learner(file)
            assert type(learn.loss_func) is CrossEntropyLossFlat and learn.metrics[0].name == 'accuracy', file
            torch.testing.assert_close(learn.predict((torch.tensor({x.tolist()}), torch.tensor(0)))[2], torch.tensor(expected))
            pred, y = torch.eye(3), torch.tensor([0, 1, 1])
            assert learn.loss_func(pred, y) == torch.nn.functional.cross_entropy(pred, y), file"""
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, check=True)


class SafeExport(Callback):
    "Exports at an event, once, and then goes on with the batch"
    def __init__(self, event, export): self.event, self.export = event, export
    def __reduce__(self): return Callback, ()
    def __call__(self, name):
        if name != self.event or self.export is None: return
        kept = {name: getattr(self.learn, name) for name in ('dl', 'xb', 'yb', 'pred', 'loss') if hasattr(self.learn, name)}
        learn, export, self.export = self.learn, self.export, None
        export()
        for name, value in kept.items(): setattr(learn, name, value)


# A mixer where it must not be

def fits(learn, **kwargs):
    with learn.no_bar(): learn.fit(1, **kwargs)


@every_mixer
def test_a_mixer_that_is_there_twice(mixer):
    "It would mix twice; and what fastai leaves behind mixes nothing, which is said as well"
    mixer = mixer()
    learn = learner(mixer)
    with pytest.raises(ValueError, match='on one Learner would mix what is mixed already'): fits(learn, cbs=mixer)
    if mixer.learn is None:
        with pytest.raises(ValueError, match='give each Learner a mixer of its own'): fits(learn)


@every_mixer
def test_a_mixer_on_two_learners(mixer):
    mixer = mixer()
    first, second = learner(mixer), learner(mixer)
    with pytest.raises(ValueError, match='given to another Learner later'): fits(first)
    fits(second)


def test_a_mixer_added_to_another_in_the_middle_of_an_epoch():
    class Adds(Callback):
        def after_batch(self):
            if not hasattr(self.learn, 'cut_mix'): self.learn.add_cb(CutMix())
    with pytest.raises(ValueError, match='MixUp and CutMix on one Learner'): fits(learner([MixUp(), Adds()]))


def test_callbacks_of_others_need_not_be_hashable():
    @dataclass
    class Counts(Callback):
        n: int = 3
        def __eq__(self, other): return self is other
        __hash__ = None
    fits(learner(Counts()))
    fits(learner([MixUp(), Counts()]))
