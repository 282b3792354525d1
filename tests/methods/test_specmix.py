"SpecMix: bands of frequency and of time come from the partner"
import numpy as np
import pytest
import torch
from scipy import stats

from by_hand import devices, draw, losses_by_hand, masks_by_hand, nothing_is_read_off_the_device, on_a_device, per
from fastmix.all import Batch, MixChoice, SpecMix, arguments, check_mixer, mix_rng
from fastmix.methods.specmix import draw_bands


def each(m, size=(128, 200), seed=0, **kwargs): return draw(SpecMix(**kwargs), torch.zeros(m, 1, *size), np.full(m, .5), seed)


def literal(m, size, width, bands, rng):
    "Band after band, cell after cell"
    taken = np.zeros((m, *size), bool)
    for axis, length in enumerate(size):
        many, wide, where = rng.integers(0, bands+1, m), rng.uniform(0, width, (m, bands)), rng.random((m, bands))
        for i in range(m):
            inside = set()
            for b in range(many[i]):
                cells = round(wide[i, b]*length)
                first = int(where[i, b]*(length-cells+1))
                inside |= set(range(first, first+cells))
            if len(inside) == length: continue
            for cell in inside: taken[(i, cell) if axis == 0 else (i, slice(None), cell)] = True
    return ~taken


@pytest.mark.parametrize('size', [(20, 31), (7, 6), (1, 7), (2, 2), (1, 1)], ids=str)
@pytest.mark.parametrize('width, bands', [(.3, 3), (1., 1), (1, 4), (.05, 2), (0, 3)])
def test_it_is_the_algorithm_written_out(size, width, bands):
    mix = draw(SpecMix(width, bands), torch.zeros(30, 1, *size), np.full(30, .5), 3)
    expected = literal(30, size, width, bands, mix_rng(3))
    assert np.array_equal(mix.own.numpy(), expected) and expected.reshape(30, -1).any(1).all()
    np.testing.assert_allclose(mix.lam, expected.reshape(30, -1).mean(1), rtol=1e-6)


def test_whole_rows_and_columns_go():
    own = each(300).own
    assert torch.equal(own, own.any(2)[:, :, None] & own.any(1)[:, None])
    def pieces(o): return (o.int().diff(prepend=torch.zeros(len(o), 1), append=torch.zeros(len(o), 1)) == 1).sum(1)
    for axis in 1, 2: assert pieces(~own.any(axis)).max() == 3


def test_how_many_bands_how_wide_and_where():
    "By the Kolmogorov-Smirnov distance, of bands so long that rounding does not matter; and by chi-squared"
    one = draw_bands(6000, 2000, .3, 1, mix_rng(1))
    wide = one.sum(1)
    assert stats.binomtest(int((wide > 0).sum()), 6000, .5*(1-.5/600)).pvalue > .01
    wide, one = wide[wide > 0], one[wide > 0]
    assert stats.kstest(wide/2000, stats.uniform(0, .3).cdf).pvalue > .01
    assert stats.kstest(one.argmax(1)/(2000-wide+1), stats.uniform(0, 1).cdf).pvalue > .01
    narrow = draw_bands(1000, 4000, .002, 3, mix_rng(2)) # Of up to 8 cells, so that few of them meet
    pieces, q = (np.diff(narrow, prepend=False, axis=1) & narrow).sum(1), .5/8 # q: a band narrower than half a cell
    expected = sum(stats.binom.pmf(range(4), n, 1-q) for n in range(4))/4
    assert stats.chisquare(np.bincount(pieces, minlength=4), 1000*expected/expected.sum()).pvalue > .01


def test_lam_has_its_mean():
    "With one band: half of the draws have none, else .15 of the axis goes on average. 4 standard deviations"
    lam = each(2000, (100, 60), bands=1).lam
    assert lam.mean().item() == pytest.approx(.925**2, abs=4*lam.std().item()/2000**.5)
    lam = each(2000, (100, 60)).lam
    none = [(1 + q + q**2 + q**3)/4 for q in (.5/30, .5/18)] # q: a band narrower than half a cell
    assert (lam == 1).float().mean().item() == pytest.approx(none[0]*none[1], abs=4*.25/2000**.5)


def test_something_of_the_sample_stays():
    assert each(3000, (12, 9), width=1, bands=5).lam.min() > 0


@per
def test_loss_by_hand(per): losses_by_hand(lambda: SpecMix(per=per, seed=3))


@per
def test_masks_go_with_their_spectrograms(per): masks_by_hand(lambda: SpecMix(per=per, seed=1))


@devices
def test_on_a_device(device):
    on_a_device(lambda per: SpecMix(per=per), device)


def test_nothing_is_read_off_the_device(): nothing_is_read_off_the_device(lambda per: SpecMix(per=per, seed=0))


@per
def test_wide_bands_keep_what_a_mixer_promises(per):
    for size in (20, 30), (1, 7), (2, 1): check_mixer(SpecMix(1., 5, per=per), size, draws=5)


def test_it_does_not_look_at_the_values():
    "Silence is the sample's own. Other code counts it as the partner's, and writes into the batch"
    x = torch.zeros(4, 1, 20, 30)
    loud = draw(SpecMix(), x + torch.rand(4, 1, 20, 30), np.array([.5]), 5)
    silent = draw(SpecMix(), x, np.array([.5]), 5)
    assert torch.equal(loud.own, silent.own) and silent.lam < 1
    silent(x)
    assert (x == 0).all()


def test_bands_are_measured_along_their_own_axis():
    "Other code measures those of time by the number of frequencies. No piece is wider than three bands, nor outside"
    own = each(2000, (10, 400), bands=1).own
    assert (~own.any(2)).sum(1).max() == 3 and 115 < (~own.any(1)).sum(1).max() <= 120


@pytest.mark.parametrize('shape', [(4, 3), (4, 1, 30), (4, 1, 5, 6, 7)], ids=['table', 'signal', 'volume'])
def test_other_data_is_refused_by_name(shape):
    for x in torch.zeros(shape), torch.zeros(shape, dtype=torch.long):
        with pytest.raises(ValueError, match='SpecMix is for spectrograms.*CutMix or FMix, for tables MixUp'): SpecMix().check(Batch((x,)))


def test_arguments():
    assert arguments(SpecMix(.2, 2, 'sample')).items() >= dict(width=.2, bands=2, per='sample').items() and 'alpha' not in arguments(SpecMix())
    for bad, error in (-.1, ValueError), (1.1, ValueError), ('1', TypeError), (None, TypeError), (float('nan'), ValueError):
        with pytest.raises(error, match='`width` must be a number from 0 to 1'): SpecMix(width=bad)
    for bad, error in (0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ('3', TypeError):
        with pytest.raises(error, match='`bands` must be'): SpecMix(bands=bad)
    with pytest.raises(TypeError, match='SpecMix has no `alpha`'): SpecMix(alpha=.4)
    assert MixChoice(SpecMix).mixers[0].bands == 3
