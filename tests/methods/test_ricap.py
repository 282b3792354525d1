"""Four crops in one image."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn

import many
from fastmix.all import RICAP, Batch, MixChoice, MixedBatch, MixMetric, MixUp, check_mixer, mix_rng, plot_lam, rotation, show_mix, show_mixers
from fastmix.methods.ricap import Tiles, four_tiles
from many import N, SIZE, class_loss_by_hand, classes, fit, metric_by_hand, numbers, several, shares_seen, soft

per = pytest.mark.parametrize('per', ['batch', 'sample'])


def patched(x, mix, source=None):
    "The paper's algorithm, one sample after the other: crop four images, and patch them together"
    x, source = np.asarray(x), np.asarray(x if source is None else source)
    out, (H, W) = [], x.shape[-2:]
    up, along = H//mix.size[0], W//mix.size[1]
    for i in range(len(x)):
        (h, w), corners = mix.middle[i % len(mix.middle)], mix.corner[i % len(mix.corner)]
        sides, crops = [(h, w), (h, mix.size[1]-w), (mix.size[0]-h, w), (mix.size[0]-h, mix.size[1]-w)], []
        for tile, ((a, b), (top, left)) in enumerate(zip(sides, corners)):
            member = tile % (len(mix.partners)+1)
            image = x[i] if member == 0 else source[mix.partners[member-1, i]]
            crops.append(image[..., top*up:(top+a)*up, left*along:(left+b)*along])
        out.append(np.concatenate([np.concatenate(crops[:2], -1), np.concatenate(crops[2:], -1)], -2))
    return torch.from_numpy(np.stack(out))


@per
@pytest.mark.parametrize('n', [2, 3, 4, 9])
@pytest.mark.parametrize('size', [(8, 13), (1, 7), (1, 1), (16, 16)])
def test_it_is_what_the_paper_says(per, n, size):
    x, other = torch.rand(n, 3, *size), torch.rand(n, 3, *size)
    masks, large = torch.randint(0, 9, (n, *size)), torch.rand(n, 2*size[0], 3*size[1])
    for seed in range(8):
        mix = RICAP(1., per=per).draw_mix(Batch((x,)), mix_rng(seed))
        for t in x, masks, large, masks[:, None], x.double(): assert torch.equal(mix(t), patched(t, mix))
        assert torch.equal(mix(x, other), patched(x, mix, other))
        areas = [(h*w, h*(size[1]-w), (size[0]-h)*w, (size[0]-h)*(size[1]-w)) for h, w in mix.middle]
        expected = torch.zeros(min(n, 4), len(areas))
        for i, row in enumerate(areas):
            for tile, area in enumerate(row): expected[tile % min(n, 4), i] += area/(size[0]*size[1])
        torch.testing.assert_close(mix.shares, expected)


@per
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_all_ways_give_the_same_and_keep_type_and_layout(per, dtype):
    x = (9*torch.rand(5, 3, 8, 12)).to(dtype)
    for t in x, x.contiguous(memory_format=torch.channels_last), x[:, :, ::1, ::2].repeat(1, 1, 1, 2), x.transpose(2, 3).contiguous().transpose(2, 3):
        for seed in range(4):
            mix = RICAP(.7, per=per).draw_mix(Batch((t,)), mix_rng(seed))
            expected = mix.each_tile(t, t)
            for out in mix(t), mix.looked_up(t, t), mix.tiles_of_each(t, t): assert torch.equal(out, expected) and out.dtype == dtype and out.stride() == torch.empty_like(t).stride()
            if per == 'batch': assert torch.equal(mix.tiles_of_all(t, t), expected)
            chosen = Tiles(mix.middle, mix.corner, mix.size, mix.partners.flip(1).numpy()) # No rotations
            assert torch.equal(chosen(t), chosen.each_tile(t, t)) and torch.equal(chosen(t, t.flip(0)), chosen.each_tile(t, t.flip(0)))


@per
def test_gradients_pass(per):
    x = torch.rand(4, 2, 6, 8, requires_grad=True)
    mix = RICAP(1., per=per).draw_mix(Batch((x.detach(),)), mix_rng(3))
    mix(x).sum().backward()
    count = torch.zeros(4, 2, 6, 8)
    for i in range(4):
        for tile, who in enumerate(mix.of):
            member = i if who == 0 else mix.partners[who-1, i]
            count[member][mix.cells(tile, i, x)[1]] += 1
    assert torch.equal(x.grad, count)


def test_four_samples_always_differ():
    "Permutations, one for each tile, let a sample meet itself"
    met = set()
    for seed in range(600):
        mix = RICAP().draw_mix(Batch((torch.zeros(6, 1, 8, 8),)), mix_rng(seed))
        for i in range(6): assert len({i, *mix.partners[:, i].tolist()}) == 4
        met.add(tuple(mix.partners[:, 0].tolist()))
    assert len(met) == 5*4*3 # All that there are


def test_fewer_samples_than_four_take_turns():
    for n, of in (2, [0, 1, 0, 1]), (3, [0, 1, 2, 0]), (4, [0, 1, 2, 3]):
        mix = RICAP(per='sample').draw_mix(Batch((torch.zeros(n, 1, 9, 9),)), mix_rng(0))
        assert mix.of == of and mix.shares.shape == (n, n) and mix.partners.shape == (n-1, n)
        torch.testing.assert_close(mix.shares.sum(0), torch.ones(n))


@pytest.mark.parametrize('beta', [.3, 1.])
def test_the_law_of_the_areas_and_of_the_crops(beta):
    n = 20_000
    mix = RICAP(beta, per='sample').draw_mix(Batch((torch.zeros(n, 1, 101, 67),)), mix_rng(0))
    u, v = np.random.default_rng(5).beta(beta, beta, (2, 200_000))
    areas = np.stack([u*v, u*(1-v), (1-u)*v, (1-u)*(1-v)])
    error = 5*.5/n**.5 # Five standard errors of a mean of what lies in [0, 1]
    assert (mix.shares.mean(1) - .25).abs().max() < error
    assert abs(mix.shares.max(0).values.mean().item() - areas.max(0).mean()) < error
    assert abs((mix.shares.max(0).values > .95).float().mean().item() - (areas.max(0) > .95).mean()) < 2*error
    room = np.array([101, 67]) - mix.side
    where = mix.corner[room > 20]/room[room > 20]
    assert abs(where.mean() - .5) < error and (mix.corner >= 0).all() and (mix.corner <= room).all()
    assert (mix.corner == 0).any() and (mix.corner == room)[room > 20].any() # Both borders are reached


@per
@pytest.mark.parametrize('weight', [None, torch.tensor([1., 4., .5])])
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_the_loss_by_hand(per, weight, loss):
    rows = fit(RICAP(1., per=per, seed=1), loss(weight=weight))[1]
    assert several(rows, 4)
    for row in rows: torch.testing.assert_close(row.loss, class_loss_by_hand(row, weight))


def test_other_losses_by_hand():
    for row in fit(RICAP(1., per='sample', seed=1), nn.CrossEntropyLoss(), y=soft)[1]: torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, shares_seen(row) @ soft))
    for row in fit(RICAP(1., per='sample', seed=1), nn.MSELoss(), y=numbers, out=1)[1]: torch.testing.assert_close(row.loss, F.mse_loss(row.pred, shares_seen(row) @ numbers))
    for row in fit(RICAP(1., per='sample', seed=1), many.RootLoss())[1]: torch.testing.assert_close(row.loss, many.root_loss_by_hand(row))


class Pixels(many.Linear):
    def forward(self, x):
        self.seen = x
        self.out = torch.einsum('nihw,oi->nohw', x, self.layer.weight)
        return self.out


@per
def test_masks_go_with_their_images(per):
    "Each pixel has the one class of the image that is seen there, and nothing is weighted"
    y = classes.view(N, 1, 1).repeat(1, *SIZE)
    for row in fit(RICAP(1., per=per, seed=1), y=y, model=Pixels())[1]:
        assert torch.equal(row.y, classes[row.x.argmax(1)])
        torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, classes[row.x.argmax(1)]))


def test_a_mask_on_a_coarser_grid_is_refused():
    batch = Batch((torch.rand(4, 3, 8, 8),), (torch.zeros(4, 4, 4).long(),))
    with pytest.raises(ValueError, match='whole multiple'): MixedBatch(RICAP(), batch, mix_rng(0)).labels()
    batch = Batch((torch.rand(4, 3, 8, 8), torch.rand(4, 5)), (torch.zeros(4).long(),)) # A vector beside it is averaged
    under = MixedBatch(RICAP(1.), batch, mix_rng(0))
    rows = torch.stack([batch.xb[1], *(batch.xb[1][p] for p in under.mix.partners)])
    torch.testing.assert_close(under.inputs()[1], (under.mix.shares[:, :, None]*rows).sum(0))


def test_metrics_and_company():
    learn, rows = fit(RICAP(1., per='sample', seed=1), metrics=MixMetric(accuracy), epochs=1)
    assert learn.recorder.values[0][1] == pytest.approx(np.mean([metric_by_hand(row) for row in rows]), abs=1e-5)
    rows = fit(MixChoice(MixUp(), RICAP(1.), seed=2), epochs=4)[1]
    assert {type(row.part) for row in rows} == {MixUp, RICAP}
    for row in rows: torch.testing.assert_close(row.loss, class_loss_by_hand(row))
    for row in fit(RICAP(1., beside=True, seed=1))[1]: # Both means, of the clean batch and of the mixed one
        halves = [many.SimpleNamespace(x=x, pred=out) for x, out in zip(row.x.split(8), row.out.split(8))]
        assert shares_seen(halves[0]).max(1).values.min() == 1
        torch.testing.assert_close(row.loss, sum(map(class_loss_by_hand, halves))/2)


def test_what_it_promises_and_what_it_refuses():
    for size in (20, 30), (8, 8), (1, 7): check_mixer(RICAP(1., per='sample'), size, draws=6)
    for kwargs in {}, dict(beside=True): check_mixer(RICAP(**kwargs), draws=6)
    class Corners(RICAP):
        "Names the areas in another order than it pastes the tiles"
        def draw(self, batch, lam, rng):
            mix = super().draw(batch, lam, rng)
            mix._lam = mix._lam.roll(1, 0)
            return mix
    with pytest.raises(AssertionError, match='not those in the inputs'): check_mixer(Corners())
    for bad, error in (0, ValueError), (-1, ValueError), (float('inf'), ValueError), (float('nan'), ValueError), ('a', TypeError), (None, TypeError), (True, TypeError):
        with pytest.raises(error, match='`beta`'): RICAP(bad)
    with pytest.raises(TypeError, match='alpha'): RICAP(alpha=1)
    with pytest.raises(ValueError, match='otherwise than λ'): plot_lam(RICAP())
    for size in (9,), (4, 4, 4), ():
        with pytest.raises(ValueError, match='2 spatial dimensions'): MixedBatch(RICAP(), Batch((torch.rand(4, 3, *size),)), mix_rng(0))
    for middle, corner in ([[9, 0]], np.zeros((1, 4, 2), int)), ([[4, 4]], np.full((1, 4, 2), 5)), ([[4, 4]], np.full((1, 4, 2), -1)):
        with pytest.raises(ValueError, match='lie within'): Tiles(middle, corner, (8, 8), [rotation(4, k) for k in (1, 2, 3)])
    assert four_tiles([[0, 8]], (8, 8))[1].tolist() == [[[0, 8], [0, 0], [8, 8], [8, 0]]]


@per
def test_nothing_is_read_off_the_device(per):
    "Torch's meta device has no data, so reading it raises"
    x, y = torch.empty(8, 3, 16, 12, device='meta'), torch.empty(8, 16, 12, dtype=torch.long, device='meta')
    for kwargs in {}, dict(beside=True):
        under = MixedBatch(RICAP(per=per, **kwargs), Batch((x,), (y,)), mix_rng(0))
        assert under.inputs()[0].is_meta and under.labels()[0].shape == y.shape


def test_pictures_name_all_samples():
    names = 'temple', 'lake', 'flower', 'leaf'
    dls = DataLoaders(DataLoader(list(zip(torch.rand(4, 3, 9, 9), names)), bs=4), DataLoader([], bs=4))
    axes = show_mix(dls, RICAP(1., per='sample'), sources=True, max_n=2, seed=1)
    assert axes.shape == (2, 5)
    for row in axes:
        title = row[-1].get_title().replace('\n', ' ')
        assert all(name in title for name in names) and title.count('+') == 3
        assert [ax.get_title().split(':')[0] for ax in row[:-1]] == ['own', 'partner 1', 'partner 2', 'partner 3']
        assert sum(float(part.split()[0]) for part in title.split(' + ')) == pytest.approx(1, abs=.03)
    assert show_mixers(dls, {'RICAP': RICAP()}, lams=(.2, .6)).shape == (1, 2)
