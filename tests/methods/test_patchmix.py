"PatchMix: some of the cells of a grid come from the partner"
import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from by_hand import devices, draw, losses_by_hand, masks_by_hand, nothing_is_read_off_the_device, on_a_device, per
from fastmix.all import Batch, PatchMix, arguments, check_mixer, mix_rng
from fastmix.methods.patchmix import block_sides, blocks, scattered, spread

how = pytest.mark.parametrize('how', ['random', 'block'])
sizes = [(28, 28), (20, 31), (7, 6), (1, 7), (9,), (40,), (3, 5, 4), (1, 1)]


def corners(length, g): return [round(i*length/g) for i in range(g+1)]


def literal_spread(cells, size):
    "Every place of every cell, one after the other"
    own = np.zeros(size, bool)
    for cell in np.ndindex(cells.shape):
        own[tuple(slice(*corners(length, g)[i:i+2]) for i, length, g in zip(cell, size, cells.shape))] = cells[cell]
    return own


def literal_scattered(take, grid, rng):
    "The cells with the lowest numbers"
    numbers = rng.random((len(take), math.prod(grid)))
    out = np.zeros(numbers.shape, bool)
    for row, k, keys in zip(out, take, numbers):
        for cell in sorted(range(len(keys)), key=keys.__getitem__)[:k]: row[cell] = True
    return out.reshape(-1, *grid)


def literal_blocks(take, grid, rng):
    "One rectangle after the other, cell by cell; of the last, those that come first"
    m, d, n = len(take), len(grid), math.prod(grid)
    taken = [set() for _ in take]
    while any(len(cells) < k for cells, k in zip(taken, take)):
        left = [k - len(cells) for cells, k in zip(taken, take)]
        area = [rng.uniform(1, max(a, 1)) for a in left]
        ratio = [[rng.uniform(math.log(.3), -math.log(.3)) for _ in range(d-1)] for _ in take]
        keys = rng.random((m, n))
        side = np.ones((m, d), int)
        for i in range(m):
            first = math.exp((math.log(area[i]) - sum((d-1-j)*r for j, r in enumerate(ratio[i])))/d) # The product of all sides is the area
            for j in range(d): side[i, j] = min(max(round(first*math.exp(sum(ratio[i][:j]))), 1), grid[j])
        free = [max((c for c in range(n) if c not in taken[i]), key=lambda c: keys[i, c], default=0) for i in range(m)]
        cell = np.array([np.unravel_index(c, grid) for c in free]).reshape(m, d)
        low = np.array([[rng.integers(max(cell[i, j]-side[i, j]+1, 0), min(cell[i, j], grid[j]-side[i, j])+1) for j in range(d)] for i in range(m)])
        for i in range(m):
            inside = [c for c in range(n) if all(a <= b < a+s for a, b, s in zip(low[i], np.unravel_index(c, grid), side[i]))]
            taken[i] |= set([c for c in inside if c not in taken[i]][:left[i]])
    out = np.zeros((m, n), bool)
    for row, cells in zip(out, taken): row[list(cells)] = True
    return out.reshape(m, *grid)


@how
@pytest.mark.parametrize('size', sizes, ids=str)
def test_it_is_the_algorithm_written_out(how, size):
    lam = np.r_[0., 1., .5, mix_rng(1).random(5)]
    grid = [min(5, length) for length in size]
    take = np.array([round((1-share)*math.prod(grid)) for share in lam])
    cells = dict(random=literal_scattered, block=literal_blocks)[how](take, grid, mix_rng(4))
    expected = np.stack([literal_spread(~c, size) for c in cells])
    mix = draw(PatchMix(5, how), torch.zeros(8, 1, *size), lam, 4)
    assert np.array_equal(mix.own.numpy(), expected)
    np.testing.assert_allclose(mix.lam, expected.reshape(8, -1).mean(1), rtol=1e-6)


@how
def test_exactly_so_many_cells_each_of_them_whole(how):
    lam = mix_rng(0).random(200)
    mix = draw(PatchMix(14, how), torch.zeros(200, 1, 56, 28), lam)
    cells = mix.own.view(200, 14, 4, 14, 2).float().mean((2, 4))
    assert ((cells == 0) | (cells == 1)).all()
    assert (1-cells).sum((1, 2)).tolist() == [round((1-share)*196) for share in lam]


@how
@pytest.mark.parametrize('length', [14, 15, 20, 27, 31, 224])
def test_all_cells_hold_places_and_all_places_are_in_cells(how, length):
    whole = draw(PatchMix(14, how), torch.zeros(2, 1, length), np.array([0., 1.])).own
    assert not whole[0].any() and whole[1].all()
    which = spread(torch.arange(14)[None], (length,))[0]
    assert (which.diff() >= 0).all() and which.unique().numel() == 14
    assert which.bincount().max() - which.bincount().min() <= 1


def test_more_cells_than_places_are_as_many_as_places():
    own = draw(PatchMix(14), torch.zeros(400, 1, 1, 7), np.full(400, .5)).own
    assert set(own.sum((1, 2)).tolist()) <= {3, 4} and (own.float().mean(0) - .5).abs().max() < .1


@how
def test_where_the_cells_are(how):
    "Scattered exactly, to 4 standard deviations. In blocks a corner is taken less often than the middle, but not by a factor of 4"
    own = draw(PatchMix(8, how), torch.zeros(4000, 1, 8, 8), np.full(4000, .75)).own
    often = (~own).float().mean(0)
    if how == 'random': assert (often - .25).abs().max() < 4*(.25*.75/4000)**.5
    else: assert .25*often.max() < often.min() < often[4, 4] and often.mean().item() == pytest.approx(.25, abs=1e-6)


def test_blocks_hang_together():
    def pieces(how): return np.mean([ndimage.label(~own)[1] for own in draw(PatchMix(14, how), torch.zeros(200, 1, 14, 14), np.full(200, .7)).own.numpy()])
    assert pieces('block') < 6 < 2*pieces('block') < pieces('random')


def test_proportions_of_blocks_are_log_uniform():
    "By the Kolmogorov-Smirnov distance, of sides so long that rounding does not matter"
    sides = block_sides(np.full(2000, 1e8), (10**6, 10**6), mix_rng(0))
    assert stats.kstest(np.log(sides[:, 1]/sides[:, 0]), stats.uniform(np.log(.3), -2*np.log(.3)).cdf).pvalue > .01
    assert sides.prod(1) == pytest.approx(1e8, rel=1e-3)
    volume = block_sides(np.full(2000, 1e6), (10**5,)*3, mix_rng(1))
    assert volume.prod(1) == pytest.approx(1e6, rel=.06)
    for i in range(2): assert stats.kstest(np.log(volume[:, i+1]/volume[:, i]), stats.uniform(np.log(.3), -2*np.log(.3)).cdf).pvalue > .001
    assert (block_sides(np.array([3., 8.]), (20,), mix_rng(0)) == [[3], [8]]).all()


@pytest.mark.parametrize('grid', [(14, 14), (9,), (3, 4, 5), (1, 7)], ids=str)
def test_both_ways_take_what_they_are_told(grid):
    take = np.arange(math.prod(grid)+1)
    for way in scattered, blocks: assert (way(take, grid, mix_rng(0)).reshape(len(take), -1).sum(1) == take).all()


def test_lam_is_that_of_the_beta_distribution():
    "By the Kolmogorov-Smirnov distance, and to half a cell"
    mixer, batch = PatchMix(32, alpha=.4, per='sample'), Batch((torch.zeros(500, 1, 32, 32),))
    assert stats.kstest(mixer.draw_mix(batch, mix_rng(0)).lam.numpy(), stats.beta(.4, .4).cdf).pvalue > .01


@how
@per
def test_loss_by_hand(how, per): losses_by_hand(lambda: PatchMix(3, how, per=per, alpha=5., seed=3))


@how
@per
def test_masks_go_with_their_images(how, per):
    for size in (8, 6), (3, 4, 5): masks_by_hand(lambda: PatchMix(3, how, alpha=9., per=per, seed=1), size=size)


@devices
def test_on_a_device(device):
    on_a_device(lambda per: PatchMix(5, per=per), device)
    on_a_device(lambda per: PatchMix(5, 'block', per=per), device)


@how
def test_nothing_is_read_off_the_device(how): nothing_is_read_off_the_device(lambda per: PatchMix(4, how, per=per, seed=0))


@per
def test_blocks_keep_what_a_mixer_promises(per):
    for size in (20, 30), (1, 7), (9,), (3, 5, 4): check_mixer(PatchMix(5, 'block', per=per), size, draws=5)


def test_integers_are_chosen_too():
    x = torch.randint(0, 255, (4, 3, 9, 8), dtype=torch.uint8)
    mix = draw(PatchMix(3), x, np.array([.5]))
    assert torch.equal(mix(x), torch.where(mix.own[:, None], x, x[mix.partner]))


def test_arguments():
    assert arguments(PatchMix(4, 'block', .3, 'sample')).items() >= dict(grid=4, how='block', alpha=.3, per='sample').items()
    for bad, error in (1, ValueError), (0, ValueError), (-4, ValueError), (2.5, TypeError), ('4', TypeError), (True, TypeError), (None, TypeError):
        with pytest.raises(error, match='`grid` must be'): PatchMix(grid=bad)
    for bad in 'blocks', None, 1:
        with pytest.raises(ValueError, match="`how` must be 'random' or 'block'"): PatchMix(how=bad)
    for size in (), (2, 2, 2, 2):
        with pytest.raises(ValueError, match='PatchMix mixes places'): PatchMix().check(Batch((torch.zeros(4, 3, *size),)))
