"""CutMix: regions between two sides, and labels by the λ that was drawn. What it does by default is tested with the core."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmix.all import Batch, CutMix, MixChoice, MixUp, Paste, Targets, arguments, check_mixer, mix_rng
from fastmix.compare.arm import as_text
from test_family import Look, N, RootLoss, by_hand, classes, fit, learner, shares_seen

per = pytest.mark.parametrize('per', ['batch', 'sample'])


def drawn(mixer, size, seed=0, n=4): return mixer.draw_mix(Batch((torch.zeros(n, 1, *size),)), mix_rng(seed))


def regions(mixer, size, draws=3000):
    batch, rng = Batch((torch.zeros(2, 1, *size),)), mix_rng(0)
    return np.concatenate([mixer.draw_mix(batch, rng).region for _ in range(draws)])


# sides

@per
@pytest.mark.parametrize('size', [(30,), (20, 31), (5, 6, 8), (1, 7), (2, 2)], ids=str)
def test_what_is_kept_is_all_but_the_region(per, size):
    "Nothing is clipped, so the share is 1 - hw/HW, written out"
    x = torch.rand(5, 2, *size)
    for seed in range(10):
        mix = CutMix(sides=(.2, .8), per=per).draw_mix(Batch((x,)), mix_rng(seed))
        out, lam = x.clone(), mix.lam.expand(5)
        for i, sides in enumerate(np.broadcast_to(mix.region, (5, len(size), 2))):
            here = tuple(slice(low, high) for low, high in sides)
            out[(i, slice(None), *here)] = x[(mix.partner[i], slice(None), *here)]
            assert all(low >= 0 and high <= length and high-low == max(1, min(high-low, length)) for (low, high), length in zip(sides, size))
            assert lam[i].item() == pytest.approx(1 - np.prod([high-low for low, high in sides])/np.prod(size), abs=1e-6)
        assert type(mix) is Paste and torch.equal(mix(x), out)


def test_the_law_of_the_sides():
    "Uniform between the bounds, each dimension by itself, where the box is anywhere within the image"
    for low, high in (.2, .8), (.5, .5), (.3, 1.):
        found, size = regions(CutMix(sides=(low, high)), (100, 60)), np.array([100, 60])
        side = np.diff(found)[..., 0]/size
        assert (side >= low - .5/60 - 1e-9).all() and (side <= high + .5/60 + 1e-9).all()
        assert abs(side.mean(0) - (low+high)/2).max() < 4*(high-low)/12**.5/3000**.5 + 1e-9
        assert abs(side.std(0) - (high-low)/12**.5).max() < .01
        if low < high: assert abs(np.corrcoef(side.T)[0, 1]) < 4/3000**.5 # So the proportions vary
        assert (found[..., 0].min(0) == 0).all() and (found[..., 1].max(0) == size).all()
    corners = regions(CutMix(sides=(.5, .5)), (4, 6))[..., 0]
    for lows, places in zip(corners.T, (3, 4)):
        counts = np.bincount(lows)
        assert len(counts) == places and abs(counts - 3000/places).max() < 5*(3000/places)**.5 # The last row and column, too


def test_an_image_so_small_that_both_bounds_are_one_pixel():
    for size in (1, 1), (2, 3), (3,): assert (np.diff(regions(CutMix(sides=(.2, .3)), size, 50)) == 1).all()


@per
def test_sides_keep_what_a_mixer_promises(per):
    for size in (9,), (20, 30), (1, 7), (3, 5, 4): check_mixer(CutMix(sides=(.2, .8), per=per), size, draws=6)
    check_mixer(MixChoice(CutMix(sides=(.2, .8), per=per), MixUp()), draws=6)


@per
def test_sides_in_training(per):
    for row in fit([CutMix(sides=(.2, .8), per=per, seed=1)])[1]: torch.testing.assert_close(row['loss'], by_hand(row))


# nominal

@per
def test_nominal_changes_labels_and_no_pixel(per):
    x = torch.rand(6, 3, 12, 17)
    for seed in range(10):
        one, other = (CutMix(nominal=o, per=per).draw_mix(Batch((x,)), mix_rng(seed)) for o in (False, True))
        assert torch.equal(one(x), other(x)) and torch.equal(one.lam, other.lam)
        lam = mix_rng(seed).beta(1, 1, len(one.lam))
        np.testing.assert_allclose(other.weights, [lam, 1-lam], atol=1e-6)
        assert (other.weights[0] <= one.lam + .15).all() # Clipping keeps more; .15 for what is rounded


def test_nominal_is_a_half_on_average():
    found = [drawn(CutMix(nominal=True), (64, 64), seed) for seed in range(1500)]
    assert abs(np.mean([mix.weights[0] for mix in found]) - .5) < 4*.29/1500**.5
    assert np.mean([mix.lam for mix in found]) > .65


def nominal_loss(row, func=None):
    "Both labels' losses by the weights that the mix was drawn with"
    mix, x = row['batch'].mix, row['batch'].batch.x
    own = classes[shares_seen(x).argmax(1)]
    func = func or (lambda out, y: F.cross_entropy(out, y, reduction='none'))
    own_loss, other = func(row['out'], own), func(row['out'], own[mix.partner])
    return (mix.weights[0]*own_loss + mix.weights[1]*other).mean()


def kept(rows):
    rows = [row for row in rows if row['batch'].batch] # That of an epoch's last batch is let go
    assert len(rows) == 3
    return rows


@per
def test_nominal_in_training(per):
    rows = kept(fit([CutMix(nominal=True, per=per, seed=1)])[1])
    for row in rows: torch.testing.assert_close(row['loss'], nominal_loss(row))
    assert any(abs(row['loss'] - by_hand(row)) > 1e-3 for row in rows) # By what is seen it would be another
    soft = F.one_hot(classes, 3).float()
    for row in kept(fit([CutMix(nominal=True, per=per, seed=1)], y=soft)[1]): torch.testing.assert_close(row['loss'], nominal_loss(row))


def test_nominal_under_class_weights():
    weight = torch.tensor([1., 4., .5])
    for row in kept(fit([CutMix(nominal=True, per='sample', seed=1)], loss=nn.CrossEntropyLoss(weight=weight))[1]):
        mix, own = row['batch'].mix, classes[shares_seen(row['batch'].batch.x).argmax(1)]
        counts = torch.zeros(8, 3)
        for share, who in zip(mix.weights.expand(2, 8), (own, own[mix.partner])): counts[range(8), who] += share*weight[who]
        torch.testing.assert_close(row['loss'], -(counts*row['out'].log_softmax(1)).sum()/counts.sum())


@pytest.mark.filterwarnings('ignore:.*cannot be weighted sample by sample')
@per
def test_nominal_under_a_loss_that_is_one_number(per):
    "It has one λ for the batch, so nothing speaks against it"
    learn = learner([CutMix(nominal=True, per=per, seed=1), look := Look()], RootLoss())
    learn.fit(3)
    for row in kept(look.rows):
        assert row['batch'].mix.weights.shape == (2, 1)
        torch.testing.assert_close(row['loss'], nominal_loss(row, RootLoss()))


def test_masks_do_not_care():
    x, mask = torch.rand(4, 3, 8, 8), torch.arange(4).view(4, 1, 1).repeat(1, 8, 8)
    mix = CutMix(nominal=True).draw_mix(Batch((x,)), mix_rng(2))
    targets = Targets((mask,), x.shape)
    assert targets.fates(mix) == ['paste'] and torch.equal(targets.mixed(mix)[0], mix(mask))


@per
def test_nominal_keeps_what_a_mixer_promises(per):
    for size in (9,), (20, 30), (3, 5, 4): check_mixer(CutMix(nominal=True, per=per), size, draws=6)
    check_mixer(MixChoice(CutMix(nominal=True, per=per), MixUp()), draws=6)


@pytest.mark.parametrize('mixer', [CutMix(sides=(.2, .8)), CutMix(sides=(.2, .8), per='sample'), CutMix(nominal=True), CutMix(nominal=True, per='sample')], ids=as_text)
def test_nothing_is_read_off_the_device(mixer):
    "Torch's meta device has no data, so reading it raises"
    x, mask = torch.zeros(8, 3, 16, 16, device='meta'), torch.zeros(8, 16, 16, device='meta').long()
    mix = mixer.draw_mix(Batch((x,)), mix_rng(0))
    assert mix(x).shape == x.shape and mix(mask).dtype == mask.dtype and mix.blend_labels(torch.zeros(8, N, device='meta')).shape == (8, N)


# Arguments

@pytest.mark.parametrize('given, error, match', [
    (dict(sides=(.8, .2)), ValueError, '`sides`.*0 < smallest'), (dict(sides=(0, .2)), ValueError, '`sides`'), (dict(sides=(.2, 1.2)), ValueError, '`sides`'),
    (dict(sides=.5), TypeError, '`sides`'), (dict(sides=('a', 'b')), TypeError, '`sides`'), (dict(sides=()), ValueError, '`sides`'),
    (dict(sides=(.2, .8), alpha=1.), ValueError, '`sides`.*`alpha`.*one of the two'), (dict(sides=(.2, .8), nominal=True), ValueError, '`nominal=True`.*`sides`'),
    (dict(nominal='yes'), TypeError, '`nominal`'), (dict(nominal=1), TypeError, '`nominal`'), (dict(alpha=0), ValueError, '`alpha`')], ids=str)
def test_arguments_that_make_no_sense(given, error, match):
    with pytest.raises(error, match=match): CutMix(**given)


def test_arguments_are_kept_and_told():
    assert CutMix().alpha == 1. and CutMix(sides=[.2, .8]).alpha is None and arguments(CutMix(sides=[.2, .8]))['sides'] == (.2, .8)
    assert len({as_text(mixer) for mixer in (CutMix(), CutMix(sides=(.2, .8)), CutMix(sides=(.3, .8)), CutMix(nominal=True))}) == 4
    for mixer in CutMix(), CutMix(sides=(.2, .8)), CutMix(2., nominal=True): # What is told can be given again
        again = {name: value for name, value in arguments(mixer).items() if value is not None}
        assert arguments(CutMix(**again)) == arguments(mixer)


def test_a_subclass_that_reweighs_still_does():
    class Leaning(CutMix): reweighs = True
    assert Leaning().reweighs and not CutMix().reweighs and CutMix(nominal=True).reweighs


def test_without_them_nothing_has_changed():
    "The same draws in the same order: λ, the centre, the partner"
    rng = mix_rng(5)
    lam, centre, shift = rng.beta(1, 1, 1), rng.random(2), rng.integers(1, 4)
    mix, side = drawn(CutMix(), (20, 30), 5), np.rint(np.array([20, 30])*(1-lam)**.5)
    low = np.floor(centre*(20, 30) - side/2 + .5)
    assert mix.region[0].tolist() == np.stack([np.maximum(low, 0), np.minimum(low+side, (20, 30))], -1).tolist() and mix.shift == shift
