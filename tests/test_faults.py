"""Whatever ends a fit, and wherever: afterwards the learner is as if nothing had happened."""
import copy
import pickle
import subprocess
import sys

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
from torch import nn

from fastmix.callback import CutMix, ManifoldMixUp, MixChoice, Mixer, MixUp
from helpers import Spy, check_all, learner, samples

events = [event for event in core._events if event != 'after_create']
cancels = {name: getattr(core, f'Cancel{name.capitalize()}Exception') for name in 'step backward batch train valid epoch fit'.split()}
faults = [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, *cancels.values()]
leads = dict(after_cancel_backward='before_backward', after_cancel_step='before_step', after_cancel_batch='after_pred', after_cancel_train='after_batch',
             after_cancel_validate='before_validate', after_cancel_epoch='after_train', after_cancel_fit='before_epoch')
mixers = dict(mix_up=MixUp, cut_mix=CutMix, choice=lambda: MixChoice(MixUp(), CutMix(per='sample')), manifold=lambda: ManifoldMixUp(layers='1'))
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
    preds, targets, losses = learn.get_preds(with_loss=True)
    out = learn.model(x).detach()
    torch.testing.assert_close((preds, targets, losses), (out.softmax(1), y, F.cross_entropy(out, y, reduction='none')))
    assert learn.loss_func is loss and torch.equal(learn.loss_func(out, y), F.cross_entropy(out, y))
    assert not any(module._forward_pre_hooks for module in learn.model.modules()) and b'fastmix' not in dump(learn)


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
