"""Who the partner is: chosen by class, or from another loader. And what changes in the course of a fit."""
import copy
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import SchedCos, SchedLin
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage, set_seed
from torch import nn
from torch.utils.data import DataLoader as TorchLoader

from fastmix.all import Batch, CutMix, ManifoldMixUp, MixChoice, MixUp, Mixer, mix_rng, show_mix, show_mixers, without_hesitation
from fastmix.compare.arm import as_text
from fastmix.mixer import class_partners
from helpers import Spy, learner, linear, loaders, samples, weighted


def batches(seen): return [row.copy[0] for row in seen]


# By class

@pytest.mark.parametrize('partner', ['same', 'other'])
def test_partners_by_class_follow_their_law(partner):
    "Each allowed partner is as likely as the others: with 20,000 draws within 4 standard errors"
    y, rng, n = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]), np.random.default_rng(0), 20_000
    counts = torch.zeros(8, 8)
    for _ in range(n): counts[torch.arange(8), class_partners(y, rng, partner == 'same')] += 1
    allowed = (y[:, None] == y) == (partner == 'same')
    allowed.fill_diagonal_(False)
    lonely = ~allowed.any(1)
    assert (counts[lonely, lonely.nonzero().flatten()] == n).all()
    expected = allowed/allowed.sum(1, keepdim=True).clamp(min=1)
    error = (expected*(1-expected)/n).sqrt()
    assert ((counts/n - expected).abs() <= 4*error)[~lonely].all()


@pytest.mark.parametrize('make', [MixUp, CutMix], ids=['MixUp', 'CutMix'])
@pytest.mark.parametrize('partner', ['same', 'other'])
@pytest.mark.parametrize('shape', [(8,), (8, 1)], ids=str)
def test_a_fit_with_chosen_partners(make, partner, shape):
    x, y = samples(24)
    dls = loaders((x, y.view(-1, *shape[1:])))
    learn = learner([make(partner=partner, seed=1), spy := Spy()], dls=dls, loss_func=CrossEntropyLossFlat())
    learn.fit(3)
    assert len(spy.rows) == 6
    for row in spy.rows:
        own, other = row.y[0].flatten(), row.y[0].flatten()[row.mix.partner]
        lonely = row.mix.partner == torch.arange(8)
        assert (own == other)[~lonely].all() if partner == 'same' else (own != other)[~lonely].all()
        torch.testing.assert_close(row.loss, weighted(row.mix, row.pred, own))
        if partner == 'same': torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, own)) # Labels stay hard
        torch.testing.assert_close(row.x[0][lonely], row.copy[0][lonely])


@pytest.mark.parametrize('y', [torch.rand(8, 3), torch.zeros(8, 4, 4).long(), torch.rand(8)], ids=['soft', 'a mask', 'numbers'])
def test_without_a_class_there_is_no_such_partner(y):
    with pytest.raises(TypeError, match='a class number for each sample; got'): MixUp(partner='same').draw_partners(Batch((torch.rand(8, 3),), (y,)), mix_rng(0))


def test_chosen_partners_are_drawn_on_the_device():
    "The meta device has no data: what is read off it raises"
    batch = Batch((torch.zeros(8, 3, 4, 4, device='meta'),), (torch.zeros(8, device='meta').long(),))
    for make in MixUp, CutMix:
        mix = make(partner='other').draw_mix(batch, mix_rng(0))
        assert mix(batch.x).device.type == 'meta' and mix.partner.device.type == 'meta'


# From another loader

def source(n=20, bs=5, kind=DataLoader, start=100., **kwargs):
    "A loader whose sample `i` is `start + i` everywhere"
    items = [(torch.full((2, 4, 4), start+i), i % 3) for i in range(n)]
    return kind(items, **{{DataLoader: 'bs', TorchLoader: 'batch_size'}[kind]: bs}, shuffle=True, **kwargs)


class DropoutModel(nn.Module):
    "Keeps what it dropped"
    def __init__(self):
        super().__init__()
        self.model, self.seen = linear(), []
    def forward(self, x):
        mask = F.dropout(torch.ones(len(x), 8), .5, self.training)
        self.seen.append(mask)
        return self.model(x)*mask.mean()


def trained(mixer, epochs=2, **kwargs):
    set_seed(3)
    learn = learner([*([mixer] if mixer else []), spy := Spy()], model=DropoutModel(), dls=loaders(samples(40), shuffle=True, **kwargs))
    learn.fit(epochs)
    return learn, spy.rows


@pytest.mark.parametrize('kind', [DataLoader, TorchLoader])
@pytest.mark.parametrize('make', [MixUp, CutMix, lambda **kwargs: MixChoice(MixUp(**kwargs), CutMix)], ids=['MixUp', 'CutMix', 'in a choice'])
def test_the_first_loader_and_the_dropout_are_as_without(kind, make):
    "Also where the source draws from the global generators, as augmentation does"
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 20
        def __getitem__(self, i): return torch.full((2, 4, 4), 100. + torch.rand(()).item()*random.random()*np.random.rand()), i % 3
    noisy = DataLoader(Noisy(), bs=5, shuffle=True) if kind is DataLoader else TorchLoader(Noisy(), batch_size=5, shuffle=True)
    plain, without = trained(None)
    for loader in source(kind=kind), noisy:
        learn, rows = trained(make(source=loader))
        assert all(map(torch.equal, batches(rows), batches(without)))
        assert all(map(torch.equal, learn.model.seen, plain.model.seen))


def test_a_seed_repeats_the_partners_and_each_pass_has_another_order():
    def partners(seed, loader):
        rows = trained(MixUp(source=loader, seed=seed), epochs=4)[1]
        return torch.cat([((row.x[0] - row.mix.lam.view(-1, 1, 1, 1)*row.copy[0])/(1-row.mix.lam.view(-1, 1, 1, 1)))[:5, 0, 0, 0] for row in rows])
    loader = source()
    first, again, other = partners(1, loader), partners(1, loader), partners(2, loader)
    torch.testing.assert_close(first, again, equal_nan=True)
    assert not torch.allclose(first, other, equal_nan=True)
    seen = first.round()[first.isfinite()]
    assert set(seen.tolist()) <= {100. + i for i in range(20)} and len(seen.unique()) > 15


def test_the_batch_is_made_as_long_and_is_in_its_place():
    "Row i of the source, repeated or cut"
    x, y = torch.zeros(7, 2, 4, 4), torch.zeros(7).long()
    for bs in 3, 7, 20:
        batch = Batch((x,), (y,))
        mixer = MixUp(source=source(bs=bs), seed=0)
        under = mixer.next_source(batch, mix_rng(0), False)
        values = under.x[:, 0, 0, 0]
        assert len(values) == 7 and torch.equal(values[bs:], values[:7-bs] if bs < 7 else values[bs:])
        assert torch.equal(under.y, ((values-100) % 3).long())


def test_a_batch_of_one_is_mixed():
    learn = learner([MixUp(source=source(), fold=False, alpha=5., seed=0), spy := Spy()], dls=loaders(samples(11), bs=1, n_valid=8))
    learn.fit(1)
    assert len(spy.rows) == 3 and all(row.x[0].max() > 2 for row in spy.rows)


def test_a_batch_of_one_without_a_source_stays_clean():
    learn = learner([MixUp(), spy := Spy()], dls=loaders(samples(11), bs=1, n_valid=8))
    learn.fit(1)
    assert all(row.mix is None for row in spy.rows)


@pytest.mark.parametrize('weight', [None, torch.tensor([1., 4., .5])], ids=['plain', 'class weights'])
@pytest.mark.parametrize('make', [MixUp, CutMix, lambda **kwargs: CutMix(per='sample', **kwargs)], ids=['MixUp', 'CutMix', 'CutMix per sample'])
def test_the_loss_by_hand(weight, make):
    "Sources hold their class: 100 + i is of class i % 3"
    learn = learner([make(source=source(bs=8), seed=1), spy := Spy()], nn.CrossEntropyLoss(weight=weight))
    learn.fit(3)
    w = torch.ones(3) if weight is None else weight
    for row in spy.rows:
        other = learn.cbs.filter(lambda cb: isinstance(cb, Mixer))[0]
        x, own, lam = row.copy[0], row.y[0], row.mix.lam.expand(8)
        if row.mix.size is None: partner = ((row.x[0] - lam.view(-1, 1, 1, 1)*x)/(1-lam).clamp(min=1e-6).view(-1, 1, 1, 1)).mean((1, 2, 3))
        else: partner = row.x[0].amax((1, 2, 3))
        known = (lam < .95) & (partner > 50)
        y = torch.where(known, (partner.round()-100) % 3, 0).long()
        log = row.pred.log_softmax(1)
        own_w, partner_w = lam*w[own], (1-lam)*w[y]
        exact = -(own_w*log[range(8), own] + partner_w*log[range(8), y]).sum()/(own_w + partner_w).sum()
        if known.all(): torch.testing.assert_close(row.loss, exact, rtol=1e-3, atol=1e-4)
        assert other.source is not None
    assert len(spy.rows) == 6


def test_soft_labels_are_blended_with_the_sources():
    items = [(torch.full((2, 4, 4), 5.), torch.tensor([0., 0., 1.])) for _ in range(16)]
    own = [(torch.zeros(2, 4, 4), torch.tensor([1., 0., 0.])) for _ in range(16)]
    learn = learner([MixUp(source=DataLoader(items, bs=8), seed=1), spy := Spy()], nn.CrossEntropyLoss(), dls=DataLoaders(DataLoader(own, bs=8), DataLoader(own, bs=8)))
    seen = []
    learn.add_cb(Callback(after_loss=lambda self: seen.append(self.learn.yb[0])))
    learn.fit(1)
    for row, y in zip(spy.rows, seen): torch.testing.assert_close(y, torch.stack([row.mix.lam, 0*row.mix.lam, 1-row.mix.lam], 1))


def test_another_structure_is_said():
    for loader, said in ((DataLoader([torch.zeros(2, 4, 4)]*8, bs=4), 'same targets.*the source gives none'), (DataLoader([(torch.zeros(2, 5, 4), 0)]*8, bs=4), r'same inputs.*\(n, 2, 4, 4\).*\(n, 2, 5, 4\)'),
                         (DataLoader([(torch.zeros(2, 4, 4), 0.)]*8, bs=4), 'same targets.*int64.*float'), (DataLoader([(torch.zeros(2, 4, 4).double(), 0)]*8, bs=4), 'same inputs.*float64')):
        with pytest.raises(ValueError, match=said): learner(MixUp(source=loader)).fit(1)
    with pytest.raises(ValueError, match='gives no batch'): learner(MixUp(source=DataLoader([], bs=4))).fit(1)


def test_labels_may_be_missing_where_they_are_not_asked_for():
    loader = DataLoader([torch.full((2, 4, 4), 9.)]*8, bs=4)
    learn = learner([MixUp(source=loader, targets='keep', seed=1), spy := Spy()])
    learn.fit(1)
    for row in spy.rows:
        torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, row.y[0]))
        assert row.x[0].max() > 1


def test_arguments_that_make_no_sense():
    for bad, said in ((dict(source=3), 'DataLoader'), (dict(source=[1, 2]), 'DataLoader'), (dict(source='dls'), 'DataLoader')):
        with pytest.raises(TypeError, match=said): MixUp(**bad)
    with pytest.raises(ValueError, match='within the batch'): CutMix(source=source(), partner='same')
    with pytest.raises(TypeError, match='no `source`'): ManifoldMixUp(source=source())
    with pytest.raises(TypeError, match='no `source`'): MixChoice(MixUp, source=source())
    codes = Batch((torch.zeros(4, 3).long(),), (torch.zeros(4),), learn=None)
    with pytest.raises(ValueError, match='inside the network'): MixUp(source=source()).next_source(codes, mix_rng(0), True)


def test_copies_share_the_loader_and_begin_for_themselves():
    loader, rng = source(), mix_rng(0)
    mixer = MixUp(source=loader, seed=1)
    batch = Batch((torch.zeros(5, 2, 4, 4),), (torch.zeros(5).long(),))
    first = mixer.next_source(batch, rng, False)
    for copied in copy.deepcopy(mixer), copy.copy(mixer):
        assert copied.source is loader and copied.pool is None
        copied.next_source(batch, mix_rng(0), False)
    fresh, again = MixUp(source=loader), mix_rng(0)
    expected = [fresh.next_source(batch, again, False).y for _ in range(2)]
    assert torch.equal(first.y, expected[0]) and torch.equal(mixer.next_source(batch, rng, False).y, expected[1]) # The copies have not advanced it


@pytest.mark.parametrize('make', [lambda **kwargs: MixUp(**kwargs), lambda source, **kwargs: MixChoice(MixUp(source=source), MixUp(source=source), **kwargs)], ids=['alone', 'in a choice'])
def test_it_begins_anew_with_the_generator(make):
    "As for a new arm of a comparison, also in a part of a choice, which has no generator"
    mixer = make(source=source(), seed=3)
    def partners():
        mixer.rng = None
        return [row.x[0] for row in trained(mixer)[1]]
    first = partners()
    mixer.learn.remove_cb(mixer)
    assert all(map(torch.equal, first, partners()))


def test_pictures_do_not_advance_it():
    items = list(zip(torch.rand(24, 3, 8, 8), itertools.cycle([0, 1, 2])))
    dls, loader = DataLoaders(DataLoader(items, bs=8, shuffle=True), DataLoader(items, bs=8)), DataLoader(items, bs=8, shuffle=True)
    def seen(look):
        set_seed(1)
        learn = learner([MixUp(source=loader, seed=1), spy := Spy()], model=nn.Sequential(nn.Flatten(), linear(192)[1]), dls=dls)
        dls.train.rng = random.Random(2)
        if look: learn.show_mix(sources=True)
        learn.fit(1)
        if look: learn.show_mix()
        learn.fit(1)
        return [row.x[0] for row in spy.rows]
    assert all(map(torch.equal, seen(False), seen(True)))
    show_mix(dls, CutMix(source=loader), sources=True)
    show_mixers(dls, {'MixUp': MixUp(source=loader), 'CutMix': MixUp()})


def test_a_picture_of_a_batch_of_one():
    items = list(zip(torch.rand(6, 3, 8, 8), itertools.cycle([0, 1])))
    dls = DataLoaders(*[DataLoader(items, bs=1)]*2)
    assert show_mix(dls, MixUp(source=DataLoader(items, bs=4)), sources=True).shape == (1, 3)
    with pytest.raises(ValueError, match='larger batch size'): show_mix(dls, MixUp())


def test_the_picture_is_the_batch_to_come():
    items = list(zip(torch.rand(24, 3, 8, 8), itertools.cycle([0, 1, 2])))
    dls, loader = DataLoaders(DataLoader(items, bs=8), DataLoader(items, bs=8)), DataLoader(items, bs=8, shuffle=True)
    learn = learner([mixer := MixUp(source=loader, seed=1), spy := Spy()], model=nn.Sequential(nn.Flatten(), linear(192)[1]), dls=dls)
    from fastmix.show import next_samples
    shown = next_samples(dls, mixer, learn=learn).drawn.part(next_samples(dls, mixer, learn=learn).mix)[0]
    learn.fit(1)
    torch.testing.assert_close(shown, spy.rows[0].x[0].unflatten(1, (3, 8, 8)) if spy.rows[0].x[0].ndim == 2 else spy.rows[0].x[0])


def test_the_training_loader_can_be_its_own_source():
    plain, without = trained(None)
    set_seed(3)
    dls = loaders(samples(40), shuffle=True)
    learn = learner([MixUp(source=dls.train, seed=1), spy := Spy()], model=DropoutModel(), dls=dls)
    learn.fit(2)
    assert all(map(torch.equal, batches(spy.rows), batches(without)))


def test_types_are_kept():
    typed = Batch((TensorImage(torch.zeros(5, 2, 4, 4)),), (torch.zeros(5).long(),))
    under = MixUp(source=source()).next_source(typed, mix_rng(0), False)
    from fastmix.all import mix_inputs
    mix = MixUp().draw_mix(typed, mix_rng(0))
    assert type(mix_inputs(mix, typed.xb, under.xb)[0]) is TensorImage


def test_balanced_mixup():
    "Partners of a balanced loader have all classes alike, and the own share is large (arXiv 2109.09850)"
    items = [(torch.full((2, 4, 4), float(c)), c) for c in [0]*90 + [1]*7 + [2]*3]
    weights = torch.tensor([1/90]*90 + [1/7]*7 + [1/3]*3)
    sampler = torch.utils.data.WeightedRandomSampler(weights, 1000, generator=torch.Generator().manual_seed(0))
    mixer = MixUp(alpha=(1, .2), fold=False, source=TorchLoader(items, batch_size=50, sampler=sampler))
    batch, rng = Batch((torch.zeros(50, 2, 4, 4),), (torch.zeros(50).long(),)), mix_rng(0)
    classes, shares = torch.zeros(3), []
    for _ in range(40):
        classes += torch.bincount(mixer.next_source(batch, rng, False).y, minlength=3)
        shares.append(mixer.draw_mix(batch, rng).lam)
    assert ((classes/2000 - 1/3).abs() < 4*(2/9/2000)**.5).all()
    assert abs(1 - torch.cat(shares).mean() - .2/1.2) < .02


# In the course of a fit

def test_alpha_and_p_may_change():
    learn = learner([MixUp(p=SchedLin(1., 0.), seed=1), spy := Spy()], batches=50)
    learn.fit(4)
    mixed = [row.mix is not None for row in spy.rows]
    assert all(mixed[:5]) and sum(mixed[:100]) > 60 > 40 > sum(mixed[100:]) and not mixed[-1]
    learn = learner([MixUp(alpha=SchedLin(50., .05), fold=False, seed=1), spy := Spy()], batches=50)
    learn.fit(2)
    spread = [row.mix.lam.std().item() for row in spy.rows]
    assert np.mean(spread[:10]) < .08 and np.mean(spread[-10:]) > .15 # Standard deviations of Beta(50, 50): .05, of Beta(5, 5): .15


def test_what_a_function_gives_is_checked_when_it_is_given():
    with pytest.raises(ValueError, match='`p`.*got 2'): MixUp(p=lambda done: 2*done)
    with pytest.raises(TypeError, match="`p`.*got 'yes'"): MixUp(p=lambda done: 'yes')
    with pytest.raises(ValueError, match='`alpha`.*got 0.0'): MixUp(alpha=SchedLin(1., 0.))
    with pytest.raises(ValueError, match='`alpha`'): CutMix(alpha=lambda done: -1 if done == .5 else 1)


def test_schedules_are_told_apart_and_copied():
    assert len({as_text(MixUp(p=p)) for p in (SchedLin(1., 0.), SchedLin(1., .5), SchedCos(1., 0.), without_hesitation, 1.)}) == 5
    assert copy.deepcopy(MixUp(alpha=SchedLin(1., .2))).alpha(.5) == pytest.approx(.6)


def test_without_hesitation():
    "Mixed, then half, then less and less"
    learn = learner([MixUp(p=without_hesitation, seed=1), spy := Spy()], batches=100)
    learn.fit(2)
    mixed = np.array([row.mix is not None for row in spy.rows])
    assert mixed[:119].all() and 15 < mixed[121:179].sum() < 45 and mixed[180:].sum() < 12


# Decoupled

def decoupled_by_hand(pred, own, partner, weight=None):
    p, values = pred.double().softmax(1), []
    for row, a, b in zip(p, own.tolist(), partner.tolist()):
        if a == b: values.append(row.new_zeros(()))
        else:
            without = [(row[a]/(row.sum()-row[b])).log(), (row[b]/(row.sum()-row[a])).log()]
            values.append(-sum((1 if weight is None else weight[c])*value for c, value in zip((a, b), without)))
    return torch.stack(values).mean()


@pytest.mark.parametrize('weight', [None, torch.tensor([1., 4., .5])], ids=['plain', 'class weights'])
@pytest.mark.parametrize('make', [MixUp, CutMix], ids=['MixUp', 'CutMix'])
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_the_decoupled_term(weight, make, loss):
    losses = {}
    for decouple in 0., .3:
        learn = learner([make(decouple=decouple, seed=1), spy := Spy()], loss(weight=weight))
        learn.fit(1)
        losses[decouple] = spy.rows[0]
    row, plain = losses[.3], losses[0.]
    own, partner = row.y[0], row.y[0][row.mix.partner]
    torch.testing.assert_close(row.loss, plain.loss + .3*decoupled_by_hand(row.pred, own, partner, weight).float())


def test_a_sure_network_has_a_finite_term():
    from fastmix.all import Blend, Targets, decoupled_loss
    pred = torch.tensor([[200., 0., 0.], [0., 0., 0.]], requires_grad=True)
    value = decoupled_loss(nn.CrossEntropyLoss(), pred, Targets((torch.tensor([1, 0]),)), Blend(.5, [1, 0]))
    value.backward()
    assert value.isfinite() and pred.grad.isfinite().all()


def test_decoupled_needs_classes():
    with pytest.raises(ValueError, match='cross entropy; got'): learner(MixUp(decouple=.1), lambda pred, y: F.cross_entropy(pred, y)).fit(1)
    with pytest.raises(ValueError, match='`decouple`'): MixUp(decouple=-.1)
    with pytest.raises(TypeError, match='`decouple`'): MixUp(decouple=True)


def test_ignored_targets_have_no_decoupled_term():
    from fastmix.all import Blend, Targets, decoupled_loss
    pred, y = torch.randn(4, 3), torch.tensor([0, -100, 2, 1])
    value = decoupled_loss(nn.CrossEntropyLoss(), pred, Targets((y,)), Blend(.5, [1, 2, 3, 0]))
    kept = [decoupled_by_hand(pred[i:i+1], y[i:i+1], y[j:j+1]) for i, j in ((2, 3), (3, 0))]
    torch.testing.assert_close(value, (sum(kept)/4).float())
