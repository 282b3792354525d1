"""HMix: a region pasted, and an average around it."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmix.all import Batch, CutMix, HMix, Mask, MixChoice, MixedBatch, MixUp, Targets, arguments, check_mixer, mix_rng
from fastmix.loss import weighted_loss
from test_family import by_hand, classes, fit, one_number_by_hand, shares_seen

per = pytest.mark.parametrize('per', ['batch', 'sample'])
sizes = pytest.mark.parametrize('size', [(30,), (20, 31), (5, 6, 8), (1, 7), (1,)], ids=str)


def literal(lam, r, size, centre):
    "The paper's weights, place by place: nothing in a region of `r` times the partner's share, and what makes the mean λ around it"
    side = [round(length*(r*(1-lam))**(1/len(size))) for length in size]
    low = [int(np.floor(c*length - s/2 + .5)) for c, length, s in zip(centre, size, side)]
    bounds = [(max(a, 0), min(a+s, length)) for a, s, length in zip(low, side, size)]
    area = np.prod([b-a for a, b in bounds])/np.prod(size)
    own = np.full(size, min(1., lam/(1-area)) if area < 1 else 0.)
    for place in np.ndindex(*size):
        if all(a <= at < b for at, (a, b) in zip(place, bounds)): own[place] = 0
    return own


@per
@sizes
def test_it_is_the_papers_algorithm(per, size):
    x = torch.rand(5, 2, *size)
    for seed in range(6):
        for r in .5, .2, 1.:
            mix, m = HMix(r=r, per=per).draw_mix(Batch((x,)), mix_rng(seed)), 5 if per == 'sample' else 1
            rng = mix_rng(seed)
            lam, centre = rng.beta(1, 1, m), rng.random((m, len(size)))
            own = torch.tensor(np.stack([literal(*o) for o in zip(lam, [r]*m, [size]*m, centre)])).float()
            torch.testing.assert_close(mix.own, own)
            torch.testing.assert_close(mix.lam, own.flatten(1).mean(1))
            weight = own[:, None]
            torch.testing.assert_close(mix(x), weight*x + (1-weight)*x[mix.partner])


def test_the_share_is_what_was_drawn():
    "However the border clips; but for half a place, where what is rounded leaves too little outside"
    batch, rng = Batch((torch.zeros(2, 1, 50, 70),)), mix_rng(0)
    for r in 0., .3, .5, .9:
        for lam in rng.random(200): assert HMix(r=r).draw(batch, np.array([lam]), rng).lam.item() == pytest.approx(lam, abs=1e-5)
    aimed = rng.random(500)
    found = np.array([HMix(r=1.).draw(batch, np.array([lam]), rng).lam.item() for lam in aimed])
    assert abs(found - aimed).max() < .02 # Where the region is all, its rounded sides are λ


def test_without_a_region_it_is_mixup_and_with_nothing_else_cutmix():
    x, rng = torch.rand(4, 3, 16, 16), mix_rng
    for seed in range(20):
        for lam in .2, .7:
            own = HMix(r=0).draw(Batch((x,)), np.array([lam]), rng(seed)).own
            torch.testing.assert_close(own, torch.full_like(own, lam))
            whole, cut = (mixer.draw(Batch((x,)), np.array([.75]), rng(seed)) for mixer in (HMix(r=1.), CutMix()))
            assert torch.equal(whole.own > 0, cut.own)
            if cut.lam.item() == .75: torch.testing.assert_close(whole(x), cut(x)) # Nothing clipped
    assert any(CutMix().draw(Batch((x,)), np.array([.75]), rng(seed)).lam.item() == .75 for seed in range(20))


@per
def test_the_ends(per):
    x = torch.rand(4, 2, 9, 9)
    for lam, expected in (1., x), (0., None):
        for seed in range(5):
            mix = HMix(per=per).draw_mix(Batch((x,)), mix_rng(seed), lam=lam)
            torch.testing.assert_close(mix(x), x[mix.partner] if expected is None else expected)


@per
def test_the_loss_by_hand(per):
    weight = torch.tensor([1., 4., .5])
    for loss, counts in (nn.CrossEntropyLoss(), None), (nn.CrossEntropyLoss(weight=weight), weight):
        for row in fit([HMix(per=per, seed=1)], loss=loss)[1]: torch.testing.assert_close(row['loss'], by_hand(row, weight=counts))
    for row in fit([HMix(per=per, seed=1)], y=F.one_hot(classes, 3).float())[1]:
        torch.testing.assert_close(row['loss'], F.cross_entropy(row['out'], shares_seen(row['seen']) @ F.one_hot(classes, 3).float()))
    for row in fit([MixChoice(MixUp(), HMix(per=per), seed=2)])[1]: torch.testing.assert_close(row['loss'], by_hand(row))


def test_a_loss_that_is_one_number(): one_number_by_hand(HMix(seed=1))


@per
def test_masks_are_weighed_place_by_place(per):
    x, mask, pred = torch.rand(4, 2, 8, 8), torch.randint(3, (4, 8, 8)), torch.randn(4, 3, 8, 8)
    for seed in range(4):
        mix = HMix(per=per).draw_mix(Batch((x,)), mix_rng(seed))
        targets = Targets((mask,), x.shape)
        assert targets.fates(mix) == ['places'] and targets.mixed(mix)[0] is mask
        own = mix.own.expand(4, 8, 8)
        values = own*F.cross_entropy(pred, mask, reduction='none') + (1-own)*F.cross_entropy(pred, mask[mix.partner], reduction='none')
        torch.testing.assert_close(weighted_loss(nn.CrossEntropyLoss(), pred, (mask,), targets, mix), values.mean())
        heat = torch.rand(4, 1, 8, 8)
        torch.testing.assert_close(Targets((heat,), x.shape).mixed(mix)[0], mix(heat))


@per
def test_nothing_is_read_off_the_device(per):
    "Torch's meta device has no data, so reading it raises. A mask per sample is made there"
    x, soft = torch.zeros(8, 3, 16, 16, device='meta'), torch.zeros(8, 5, device='meta')
    mix = HMix(per=per).draw_mix(Batch((x,)), mix_rng(0))
    assert mix.own.is_meta == (per == 'sample') and mix(x).shape == x.shape and mix(x.bfloat16()).dtype == torch.bfloat16
    assert mix.blend_labels(soft).shape == soft.shape and mix.weights.shape == (2, 8 if per == 'sample' else 1)


@pytest.mark.parametrize('bad, error', [(1.1, ValueError), (-.1, ValueError), (float('nan'), ValueError), ('1', TypeError), (None, TypeError), (True, TypeError)])
def test_a_part_that_is_none(bad, error):
    with pytest.raises(error, match='`r` must be a number from 0 to 1'): HMix(r=bad)


def test_arguments_and_data():
    assert arguments(HMix(2., .3, 'sample')) == arguments(HMix()) | dict(alpha=2., r=.3, per='sample')
    with pytest.raises(ValueError, match='HMix mixes places.*1 to 3 spatial.*Use MixUp'): MixedBatch(HMix(), Batch((torch.rand(4, 5),), (torch.zeros(4).long(),)), mix_rng(0))
    assert type(HMix().draw_mix(Batch((torch.rand(2, 1, 4, 4),)), mix_rng(0))) is Mask
    for r in 0, 1: check_mixer(HMix(r=r, per='sample'), (9, 14), draws=5)
