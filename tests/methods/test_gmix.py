"""GMix and SmoothMix: a Gaussian bump."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmix.all import Batch, GMix, MixChoice, MixedBatch, MixUp, Targets, arguments, check_mixer, mix_rng
from fastmix.compare.arm import as_text
from fastmix.loss import weighted_loss
from fastmix.methods.gmix import bump
from test_family import by_hand, classes, fit, one_number_by_hand, shares_seen

per = pytest.mark.parametrize('per', ['batch', 'sample'])
sigma = pytest.mark.parametrize('sigma', [None, (.25, .5)], ids=['GMix', 'SmoothMix'])
sizes = pytest.mark.parametrize('size', [(30,), (20, 31), (4, 6, 5), (1, 7), (1,)], ids=str)


def gmix(lam, size, centre):
    "The paper's weights, place by place, for any number of dimensions and unequal sides"
    minor, n, d = min(lam, 1-lam), math.prod(size), len(size)
    b = np.empty(size)
    for place in np.ndindex(*size):
        distance = sum((at - (c*length - .5))**2 for at, c, length in zip(place, centre, size))
        b[place] = math.exp(-math.pi*distance/(minor*n)**(2/d))
    return b if lam < .5 else 1 - b


def smoothmix(part, size, centre):
    b = np.empty(size)
    for place in np.ndindex(*size):
        b[place] = math.exp(-sum(((at - (c*length - .5))/(part*length))**2 for at, c, length in zip(place, centre, size))/2)
    return b


@per
@sigma
@sizes
def test_it_is_the_papers_algorithm(per, sigma, size):
    x, m = torch.rand(5, 2, *size), 5 if per == 'sample' else 1
    for seed in range(6):
        mix, rng = GMix(sigma=sigma, per=per).draw_mix(Batch((x,)), mix_rng(seed)), mix_rng(seed)
        lam = None if sigma else rng.beta(1, 1, m)
        centre = rng.random((m, len(size)))
        if sigma: own = [smoothmix(part, size, c) for part, c in zip(rng.uniform(*sigma, m), centre)]
        else: own = [gmix(share, size, c) for share, c in zip(lam, centre)]
        own = torch.tensor(np.stack(own)).float()
        torch.testing.assert_close(mix.own, own, atol=2e-5, rtol=0)
        torch.testing.assert_close(mix.lam, own.flatten(1).mean(1), atol=2e-5, rtol=0)
        weight = own[:, None]
        torch.testing.assert_close(mix(x), weight*x + (1-weight)*x[mix.partner], atol=1e-4, rtol=0)


def kept(mixer, lam=0., size=(48, 80), draws=1500):
    batch, rng = Batch((torch.zeros(2, 1, *size),)), mix_rng(0)
    return np.array([mixer.draw(batch, np.array([lam]), rng).lam.item() for _ in range(draws)])


def test_the_label_is_the_mean_weight_and_not_what_was_drawn():
    "Clipping takes from the minor share; in a square image .3 becomes .21, and .5 becomes .3"
    for aimed, found in (.3, .21), (.5, .7), (.7, .79): assert abs(kept(GMix(), aimed, (56, 56)).mean() - found) < .012
    assert (np.minimum(*(lambda lam: (lam, 1-lam))(kept(GMix(), .4))) <= .4 + 1e-3).all()


def test_the_mean_of_a_bump_that_is_not_clipped_is_the_share():
    for size in (4000,), (100, 120), (40, 50, 60):
        d, share = len(size), .003
        width = torch.full((1, d), (share*math.prod(size))**(1/d))
        middle = torch.tensor([[length/2 for length in size]])
        assert bump(middle, width, torch.ones(1, 1), size).mean().item() == pytest.approx(share, rel=1e-3)
        assert bump(middle, width, torch.zeros(1, 1), size).mean().item() == pytest.approx(1-share, rel=1e-3)


def test_a_bump_is_round_in_an_image_that_is_not_square():
    "The authors' code takes the height for both sides"
    batch = Batch((torch.zeros(2, 1, 40, 120),))
    for seed in range(60):
        own = GMix().draw(batch, np.array([.1]), mix_rng(seed)).own[0]
        row, column = np.unravel_index(own.argmax(), own.shape)
        if 10 <= row < 30 and 10 <= column < 110: break
    torch.testing.assert_close(own[row-8:row+9, column], own[row, column-8:column+9], atol=.12, rtol=0)
    assert own[:, column].sum() == pytest.approx(own[row].sum().item(), rel=.1) == pytest.approx((.1*40*120)**.5, rel=.15)


def test_smoothmix_has_no_label_inverted():
    "As in OpenMixup, where the mean of the partner's weight is the own label's: off by .24 on average"
    lam = kept(GMix(sigma=(.25, .5)), size=(56, 56))
    assert abs(lam.mean() - .43) < .015 and abs(abs(2*lam - 1).mean() - .24) < .015
    check_mixer(GMix(sigma=(.25, .5))) # Which measures the shares
    x = torch.eye(2)[:, :, None, None].expand(2, 2, 30, 40)
    for seed in range(10):
        mix = GMix(sigma=(.25, .5)).draw_mix(Batch((x,)), mix_rng(seed))
        torch.testing.assert_close(mix(x)[0].mean((1, 2)), torch.cat([mix.lam, 1-mix.lam]), atol=1e-5, rtol=0)


def test_the_centre_lies_anywhere():
    batch, rng = Batch((torch.zeros(2, 1, 10, 16),)), mix_rng(0)
    tops = np.array([np.unravel_index(GMix(sigma=(.1, .1)).draw_mix(batch, rng).own[0].argmax(), (10, 16)) for _ in range(3000)])
    for rows, length in zip(tops.T, (10, 16)):
        counts = np.bincount(rows, minlength=length)
        assert len(counts) == length and abs(counts - 3000/length).max() < 5*(3000/length)**.5


def test_sigma_is_uniform():
    "Read off the bump's steepness along the rows"
    batch, rng, found = Batch((torch.zeros(2, 1, 40, 50),)), mix_rng(0), []
    for _ in range(1000):
        row = GMix(sigma=(.25, .5)).draw_mix(batch, rng).own[0, :, 7].double().log()
        found.append((-1/row.diff().diff().mean().item())**.5/40)
    assert min(found) > .249 and max(found) < .501
    assert abs(np.histogram(found, 5, (.25, .5))[0] - 200).max() < 5*200**.5


@per
def test_the_ends(per):
    x = torch.rand(4, 2, 9, 9)
    for lam in 0., 1.:
        for seed in range(5):
            mix = GMix(per=per).draw_mix(Batch((x,)), mix_rng(seed), lam=lam)
            torch.testing.assert_close(mix(x), x if lam else x[mix.partner])


@per
@sigma
def test_the_loss_by_hand(per, sigma):
    weight, hot = torch.tensor([1., 4., .5]), F.one_hot(classes, 3).float()
    def mixer(**kwargs): return GMix(sigma=sigma, per=per, **kwargs)
    for loss, counts in (nn.CrossEntropyLoss(), None), (nn.CrossEntropyLoss(weight=weight), weight):
        for row in fit([mixer(seed=1)], epochs=2, loss=loss)[1]: torch.testing.assert_close(row['loss'], by_hand(row, weight=counts))
    for row in fit([mixer(seed=1)], epochs=2, y=hot)[1]: torch.testing.assert_close(row['loss'], F.cross_entropy(row['out'], shares_seen(row['seen']) @ hot))
    for row in fit([MixChoice(MixUp(), mixer(), seed=2)])[1]: torch.testing.assert_close(row['loss'], by_hand(row))


@sigma
def test_a_loss_that_is_one_number(sigma): one_number_by_hand(GMix(sigma=sigma, seed=1))


@per
def test_masks_are_weighed_place_by_place(per):
    x, mask, pred = torch.rand(4, 2, 8, 8), torch.randint(3, (4, 8, 8)), torch.randn(4, 3, 8, 8)
    for seed in range(4):
        mix, targets = GMix(per=per).draw_mix(Batch((x,)), mix_rng(seed)), Targets((mask,), x.shape)
        assert targets.fates(mix) == ['places']
        own = mix.own.expand(4, 8, 8)
        values = own*F.cross_entropy(pred, mask, reduction='none') + (1-own)*F.cross_entropy(pred, mask[mix.partner], reduction='none')
        torch.testing.assert_close(weighted_loss(nn.CrossEntropyLoss(), pred, (mask,), targets, mix), values.mean())


@per
@sigma
def test_what_a_mixer_promises(per, sigma):
    for size in (9,), (20, 30), (1, 7), (3, 5, 4): check_mixer(GMix(sigma=sigma, per=per), size, draws=5)


@per
@sigma
def test_nothing_is_read_off_the_device(per, sigma):
    "Torch's meta device has no data, so reading it raises. A mask per sample is made there"
    x, soft = torch.zeros(8, 3, 16, 16, device='meta'), torch.zeros(8, 5, device='meta')
    mix = GMix(sigma=sigma, per=per).draw_mix(Batch((x,)), mix_rng(0))
    assert mix.own.is_meta == (per == 'sample') and mix(x).shape == x.shape and mix(x.bfloat16()).dtype == torch.bfloat16
    assert mix.blend_labels(soft).shape == soft.shape and mix.weights.shape == (2, 8 if per == 'sample' else 1)


@pytest.mark.parametrize('given, error, match', [
    (dict(sigma=(.5, .25)), ValueError, '`sigma`.*0 < smallest'), (dict(sigma=(0, .5)), ValueError, '`sigma`'), (dict(sigma=(.5, 1.5)), ValueError, '`sigma`'),
    (dict(sigma=.5), TypeError, '`sigma`'), (dict(sigma=('a', 'b')), TypeError, '`sigma`'), (dict(sigma=(.2, .3, .4)), ValueError, '`sigma`'),
    (dict(sigma=(.25, .5), alpha=1.), ValueError, '`sigma`.*`alpha`.*one of the two'), (dict(alpha=0), ValueError, '`alpha`')], ids=str)
def test_arguments_that_make_no_sense(given, error, match):
    with pytest.raises(error, match=match): GMix(**given)


def test_arguments_and_data():
    assert GMix().alpha == 1. and GMix(sigma=[.25, .5]).alpha is None and GMix(sigma=[.25, .5]).sigma == (.25, .5)
    assert arguments(GMix(2., None, 'sample')) == arguments(GMix()) | dict(alpha=2., per='sample')
    assert len({as_text(mixer) for mixer in (GMix(), GMix(sigma=(.25, .5)), GMix(sigma=(.3, .5)), GMix(.5))}) == 4
    with pytest.raises(ValueError, match='GMix mixes places.*1 to 3 spatial.*Use MixUp'): MixedBatch(GMix(), Batch((torch.rand(4, 5),), (torch.zeros(4).long(),)), mix_rng(0))
