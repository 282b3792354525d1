"""The λ-weighted loss, forward and backward, in every way to get it, and the plain loss beside it.

Ways that need no λ-weighted loss, because they are given soft targets, get them within the timed call: that is where their targets are made.
"""
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from fastai.layers import NoneReduce
from fastai.losses import CrossEntropyLossFlat
from torch import nn

from fastmix.all import Blend, LossFacts, MixLoss, Targets, rotation

from . import peers


class General:
    "A loss that fastmix cannot look into: it takes the general path, two full losses"
    def __init__(self, func): self.func, self.reduction = func, func.reduction
    def __call__(self, pred, y):
        self.func.reduction = self.reduction
        return self.func(pred, y)


def two_losses(loss, mix):
    "Own and partner, each a full loss unreduced, weighted, then reduced: what fastai's `MixUp` does, for targets of any shape"
    def run(pred, y):
        with NoneReduce(loss) as unreduced: own, partner = unreduced(pred, y), unreduced(pred, y[mix.partner])
        return torch.lerp(partner, own, mix.lam.view(-1, *[1]*(y.ndim-1)).expand(y.shape).reshape(own.shape)).mean()
    return run


def fastais(loss, y, mix):
    "The loss function that fastai's own `MixUp` puts in place"
    import fastai.callback.mixup as theirs
    mixer = theirs.MixUp()
    learn = peers.learner(torch.zeros(len(y), 1), y, mixer, loss_func=loss)
    mixer.lam, mixer.yb1 = mix.lam, (y[mix.partner],)
    return learn.loss_func


def losses(task, shape, seed=0):
    """The prediction, and the ways: each with `library`, `name`, `group`, and `run`, which returns the loss after its backward pass.

    `task` is 'classes', with a prediction of shape `(n, c)`, or 'segmentation', with `(n, c, h, w)`. λ is one per sample.
    """
    rng = torch.Generator().manual_seed(seed)
    pred = torch.randn(shape, generator=rng).requires_grad_()
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=rng)
    weight = torch.rand(shape[1], generator=rng) + .5
    lam = torch.rand(shape[0], generator=rng)
    mix = Blend(lam.numpy(), rotation(shape[0], 1))

    def run(func):
        def forward_and_backward():
            loss = func(pred, y)
            loss.backward()
            pred.grad = None
            return loss.detach()
        return forward_and_backward

    plain, weighted = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=weight)
    flat, flats = (CrossEntropyLossFlat, 'CrossEntropyLossFlat()') if task == 'classes' else (partial(CrossEntropyLossFlat, axis=1), 'CrossEntropyLossFlat(axis=1)')
    def mixed(loss):
        facts = LossFacts(loss, watching=False)
        facts.judge(True)  # as after the first epoch
        return MixLoss(loss, mix, Targets((y,)), facts)

    table = [
        ('torch', 'nn.CrossEntropyLoss(), not mixed', 'plain', plain),
        ('torch', 'nn.CrossEntropyLoss(weight), not mixed', 'plain, class weights', weighted),
        ('fastai', f'{flats}, not mixed', 'plain', flat()),
        ('fastmix', 'nn.CrossEntropyLoss()', 'mixed', mixed(plain)),
        ('fastmix', 'nn.CrossEntropyLoss(weight)', 'mixed, class weights', mixed(weighted)),
        ('fastmix', flats, 'mixed', mixed(flat())),
        ('fastmix', 'a loss that it does not know', 'mixed', mixed(General(nn.CrossEntropyLoss()))),
    ]
    if task == 'classes':
        table += [('fastai', 'MixUp, CrossEntropyLossFlat()', 'mixed', fastais(CrossEntropyLossFlat(), y, mix)),
                  ('fastai', 'MixUp, CrossEntropyLossFlat(weight)', 'mixed, class weights', fastais(CrossEntropyLossFlat(weight=weight), y, mix))]
        table += soft(shape[1], lam, mix.partner)
    else:
        table += [('fastai', f'two {flats}, weighted by hand', 'mixed', two_losses(flat(), mix))]
    return pred, [SimpleNamespace(library=library, name=name, group=group, run=run(func)) for library, name, group, func in table]


def soft(classes, lam, partner):
    "Losses against soft targets, made as the library makes them"
    ways, columns = [], lam.unsqueeze(1)

    def torchvisions(pred, y):
        own = F.one_hot(y, num_classes=classes).float()
        return F.cross_entropy(pred, own[partner].mul_(1-columns).add_(own.mul(columns)))
    ways.append(('torchvision', 'one-hot targets, nn.CrossEntropyLoss()', 'mixed', torchvisions))
    if 'timm' not in peers.missing:
        from timm.data.mixup import mixup_target
        from timm.loss import SoftTargetCrossEntropy
        loss = SoftTargetCrossEntropy()
        ways.append(('timm', 'mixup_target, SoftTargetCrossEntropy()', 'mixed', lambda pred, y: loss(pred, mixup_target(y, classes, columns, 0.))))
    return ways
