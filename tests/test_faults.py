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
attached = pytest.mark.parametrize('attached', [True, False], ids=['attached', 'given to fit'])


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


def check_untouched(learn, loss):
    "Is the learner what it would be without a mixer, with these weights?"
    pred, target = torch.eye(3), torch.tensor([0, 1, 1])
    assert learn.loss_func is loss and torch.equal(learn.loss_func(pred, target), F.cross_entropy(pred, target))
    plain = learner(loss_func=Loss(), model=learn.model, dls=learn.dls)
    for a, b in zip(learn.get_preds(with_loss=True), plain.get_preds(with_loss=True), strict=True): assert torch.equal(a, b)
    assert learn.loss_func is loss and not any(module._forward_pre_hooks for module in learn.model.modules())
    assert b'fastmix' not in cloudpickle.dumps(learn.one_batch) + cloudpickle.dumps([learn.loss_func, learn.cbs, learn.model])


def check_trains(learn, mixer, mixed=True):
    "Does another fit with `mixer` mix, and one without not?"
    own = learn.cbs.filter(lambda cb: isinstance(cb, Mixer))
    learn.remove_cbs(own).fit(1, cbs=(spy := Spy()))
    check_all(spy, 2, mixed=False)
    learn.fit(1, cbs=[spy := Spy(), *(own or [mixer()])])
    if mixer is not mixers['manifold']: check_all(spy, 2)
    assert all(row.mix for row in spy.rows)
    learn.add_cbs(own)


@attached
@every_mixer
@pytest.mark.parametrize('place', events + ['forward', 'loss', 'optimizer'])
def test_fault(place, mixer, attached):
    "Each exception, before and after the mixer's own turn at that event"
    loss = Loss()
    for i, fault in enumerate(faults):
        for order in (0, 60) if place in events else (0,):
            learn = learner(mixer() if attached else None, loss)
            broken_fit(learn, place, fault, order, () if attached else [mixer()])
            check_untouched(learn, loss)
            if i % 3 == 0: check_trains(learn, mixer)
