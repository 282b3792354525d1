"""ResizeMix: the whole partner, shrunk and pasted."""
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastmix.all import Batch, MixChoice, MixedBatch, MixUp, Paste, ResizeMix, Shrunk, Targets, arguments, check_mixer, mix_rng
from fastmix.methods.resizemix import resized, smooth
from test_family import by_hand, classes, fit, one_number_by_hand, shares_seen

SIZE = 20, 31
per = pytest.mark.parametrize('per', ['batch', 'sample'])


def drawn(mixer, x, seed=0): return mixer.draw_mix(Batch((x,)), mix_rng(seed))


def shrink(plane, h, w):
    "One plane by PIL, which knows nothing of torch"
    if plane.dtype.is_floating_point: return torch.tensor(np.array(Image.fromarray(plane.float().numpy()).resize((w, h), Image.Resampling.BILINEAR)))
    rows, columns = (np.floor((np.arange(new)+.5)*old/new).astype(int) for new, old in ((h, plane.shape[0]), (w, plane.shape[1])))
    return plane[rows][:, columns]


def literal(mix, t, source=None):
    "The paper's algorithm, plane by plane"
    source, out = t if source is None else source, t.clone()
    planes, sources = out.view(len(t), -1, *t.shape[-2:]), source.reshape(len(t), -1, *t.shape[-2:])
    for i, ((top, bottom), (left, right)) in enumerate(np.broadcast_to(mix.region, (mix.n, 2, 2))):
        for c in range(planes.shape[1]):
            planes[i, c, top:bottom, left:right] = shrink(sources[mix.partner[i], c], bottom-top, right-left).to(t.dtype)
    return out


@per
@pytest.mark.parametrize('size', [SIZE, (1, 7), (7, 1), (2, 2), (16, 16)], ids=str)
def test_it_is_the_papers_algorithm(per, size):
    x, y, mask = torch.rand(6, 3, *size), torch.rand(6, 3, *size), torch.randint(9, (6, *size))
    for seed in range(12):
        mix = drawn(ResizeMix(per=per), x, seed)
        for source in None, y:
            for way in mix, mix.by_weights: torch.testing.assert_close(way(x, source), literal(mix, x, source), atol=1e-5, rtol=0)
        for way in mix, mix.by_weights: assert torch.equal(way(mask), literal(mix, mask))
        area = torch.tensor([(b-a)*(d-c) for (a, b), (c, d) in mix.region.tolist()])
        torch.testing.assert_close(mix.lam, 1 - area/(size[0]*size[1]))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@per
def test_both_ways_in_every_dtype_and_layout(dtype, layout, per):
    x = (torch.rand(6, 3, *SIZE)*4).to(dtype).contiguous(memory_format=layout)
    kept, mix = x.clone(), drawn(ResizeMix(per=per), x, 3)
    fast, slow = mix(x), mix.by_weights(x)
    assert fast.dtype == slow.dtype == dtype and fast.stride() == slow.stride() == x.stride() and torch.equal(x, kept)
    torch.testing.assert_close(fast.double(), slow.double(), atol={2: .05, 8: 1e-5}.get(x.element_size(), 0), rtol=0)


def test_partners_that_are_no_rotation():
    x = torch.rand(6, 3, *SIZE)
    for regions in [[(2, 9), (5, 20)]], [[(2, 9), (5, 20+i)] for i in range(6)]:
        mix = Shrunk(regions, SIZE, [3, 3, 0, 1, 2, 5])
        torch.testing.assert_close(mix(x), literal(mix, x), atol=1e-5, rtol=0)
        on_device = Shrunk(torch.tensor(regions), SIZE, torch.tensor([3, 3, 0, 1, 2, 5]))
        on_device.region = torch.tensor(regions)
        torch.testing.assert_close(on_device(x), literal(mix, x), atol=1e-5, rtol=0)


def test_gradients_reach_own_and_partner():
    x, mix = torch.rand(2, 1, 8, 8, dtype=torch.float64), Shrunk([(1, 5), (2, 5)], (8, 8), [1, 0])
    for way in mix, mix.by_weights:
        assert torch.autograd.gradcheck(way, (x.clone().requires_grad_(),), eps=1e-6, atol=1e-5)


def test_a_column_is_resized_right():
    "Torch's own `interpolate` makes all rows alike there"
    x = torch.arange(20.)[:, None].expand(1, 1, 20, 8)
    found = resized(x, (5, 1))[0, 0, :, 0]
    torch.testing.assert_close(found, (smooth(torch.tensor([[0, 5]]), 20, 20)[0, :5] @ torch.arange(20.)))
    assert (found.diff() > 3).all()


# The law of the side, the place and λ

def regions(mixer, size=(50, 80), draws=4000):
    batch, rng = Batch((torch.zeros(2, 1, *size),)), mix_rng(0)
    return np.concatenate([mixer.draw_mix(batch, rng).region for _ in range(draws)])


def test_the_side_is_uniform_in_its_scope():
    "So the partner has .243 of the area on average; to read the numbers as bounds of λ, as mmpretrain does, would give .55"
    for scope in (.1, .8), (.3, .5):
        side = np.diff(regions(ResizeMix(scope)))[..., 0]/(50, 80)
        assert abs(side[:, 0] - side[:, 1]).max() <= .5/50 + .5/80 + 1e-9 # The proportions are kept
        for column, cell in zip(side.T, (1/50, 1/80)):
            assert scope[0] - cell/2 <= column.min() <= scope[0] + 2*cell and scope[1] - 2*cell <= column.max() <= scope[1] + cell/2
            counts = np.histogram(column + np.random.default_rng(0).uniform(-cell/2, cell/2, 4000), 10, scope)[0][1:-1]
            assert abs(counts - 400).max() < 5*400**.5
        low, high = scope
        assert abs(side.prod(1).mean() - (low*low + low*high + high*high)/3) < 4*.19/4000**.5


def test_alpha_draws_the_area_and_scope_bounds_it():
    area = np.diff(regions(ResizeMix(alpha=1)))[..., 0].prod(1)/4000
    assert abs((area > .63).mean() - .36) < 4*.48/4000**.5 and abs((area < .1).mean() - .1) < 4*.3/4000**.5
    assert area.min() >= 5*8/4000 and area.max() <= 40*64/4000


def test_the_region_lies_anywhere_within():
    "Never clipped, so the partner is never squeezed; and the last row and column are reached"
    found = regions(ResizeMix((.5, .5)), (8, 10))
    assert (np.diff(found)[..., 0] == (4, 5)).all() and (found >= 0).all() and (found[..., 1] <= (8, 10)).all()
    for lows, places in zip(found[..., 0].T, (5, 6)):
        counts = np.bincount(lows, minlength=places)
        assert len(counts) == places and abs(counts - 4000/places).max() < 5*(4000/places)**.5


def test_it_aims_at_a_share_that_was_asked_for():
    batch = Batch((torch.zeros(2, 1, 100, 100),))
    for lam, kept in (.75, .75), (0., .36), (1., .99): assert ResizeMix().draw_mix(batch, mix_rng(0), lam=lam).lam.item() == pytest.approx(kept, abs=.01)


# Masks go where their images go

@per
def test_masks_are_never_weighed_place_by_place(per):
    x = torch.rand(6, 3, 8, 12)
    for seed in range(10):
        mix = drawn(ResizeMix(per=per), x, seed)
        for size in (8, 12), (16, 24), (4, 6), (2, 3), (6, 9):
            mask = torch.randint(5, (6, *size))
            targets = Targets((mask, mask[:, None].float()), x.shape)
            assert targets.fates(mix) == ['paste', 'paste']
            new, soft = targets.mixed(mix)
            assert set(new.unique().tolist()) <= set(mask.unique().tolist()) and soft.min() >= 0 and soft.max() <= 4
        assert Targets((torch.zeros(6, 2, 3).long(),), x.shape).fates(Paste([(1, 4), (0, 3)], (8, 12), mix.partner)) == ['places']


@per
def test_a_coarser_mask_shows_each_sample_by_its_share(per):
    "Sample i is class i: the part of a coarse mask that is the partner's is the partner's part of the image, within a border"
    x, mask = torch.rand(6, 3, 64, 96), torch.arange(6).view(6, 1, 1).repeat(1, 32, 48)
    for seed in range(10):
        mix = drawn(ResizeMix(per=per), x, seed)
        kept = (mix(mask) == mask).float().mean((1, 2))
        assert (kept - mix.lam).abs().max() < .03
        soft = mix(mask[:, None].double())[:, 0].mean((1, 2))
        torch.testing.assert_close(soft, (mix.lam*torch.arange(6) + (1-mix.lam)*mix.partner).double(), atol=1e-5, rtol=0)


@per
def test_what_is_bright_is_bright_in_the_mask(per):
    x = torch.zeros(4, 1, 32, 48)
    for i in range(4): x[i, :, 4+4*i:20+2*i, 6:30+3*i] = 1
    mask = x[:, 0].long()
    for seed in range(10):
        mix = drawn(ResizeMix((.4, .8), per=per), x, seed)
        assert ((mix(x)[:, 0] > .5) != mix(mask)).float().mean() < .02


# In training

@per
def test_the_loss_by_hand(per):
    weight = torch.tensor([1., 4., .5])
    for loss, counts in (nn.CrossEntropyLoss(), None), (nn.CrossEntropyLoss(weight=weight), weight):
        for row in fit([ResizeMix(per=per, seed=1)], loss=loss)[1]: torch.testing.assert_close(row['loss'], by_hand(row, weight=counts))


@per
def test_soft_labels_by_hand(per):
    y = nn.functional.one_hot(classes, 3).float()
    for row in fit([ResizeMix(per=per, seed=1)], y=y)[1]:
        torch.testing.assert_close(row['loss'], nn.functional.cross_entropy(row['out'], shares_seen(row['seen']) @ y))


def test_a_loss_that_is_one_number(): one_number_by_hand(ResizeMix(seed=1))


def test_in_a_choice():
    rows = fit([MixChoice(MixUp(), ResizeMix(), seed=2)], epochs=8)[1]
    assert {type(row['part']) for row in rows} == {MixUp, ResizeMix}
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row))


@per
def test_nothing_is_read_off_the_device(per):
    "Torch's meta device has no data, so reading it raises"
    x, mask, small = torch.zeros(8, 3, 16, 16, device='meta'), torch.zeros(8, 16, 16, device='meta').long(), torch.zeros(8, 8, 8, device='meta')
    for seed in range(5):
        mix = drawn(ResizeMix(per=per), x, seed)
        for t in x, x.bfloat16(), mask, small, small.long(): assert mix(t).shape == t.shape and mix(t).dtype == t.dtype


# Arguments

@pytest.mark.parametrize('bad, error', [((.1, .8, .9), ValueError), ((.5, .2), ValueError), ((0, .5), ValueError), ((.5, 1.1), ValueError),
                                        ((float('nan'), .5), ValueError), (.5, TypeError), (('a', 1), TypeError), (None, TypeError), ((True, True), TypeError)])
def test_a_scope_that_is_none(bad, error):
    with pytest.raises(error, match='`scope`.*0 < smallest'): ResizeMix(bad)


def test_arguments_are_kept():
    assert arguments(ResizeMix())['alpha'] is None and arguments(ResizeMix([.2, .4], 2.)) | dict(scope=(.2, .4), alpha=2.) == arguments(ResizeMix([.2, .4], 2.))
    for bad in 0, -1, (1, 2, 3): pytest.raises(ValueError, ResizeMix, alpha=bad)


def test_only_images():
    for x in torch.rand(4, 2, 9), torch.rand(4, 2, 3, 4, 5):
        with pytest.raises(ValueError, match='ResizeMix mixes places.*2 spatial'): MixedBatch(ResizeMix(), Batch((x,), (torch.zeros(4).long(),)), mix_rng(0))
    check_mixer(ResizeMix((1, 1)), (3, 4)) # All of the partner, and nothing else
