"""Properties of mixes and draws, for whatever batch. The reference is written out sample by sample."""
import copy
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import beta, chisquare, kstest

from fastmix.all import Blend, Paste, draw_lam, draw_partner, draw_region, mix_rng, region_around, rotation
from fastmix.draw import device_regions

settings.register_profile('fast', max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile('fast')

floats = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
whole = [torch.uint8, torch.int32, torch.int64, torch.bool]
seeds = st.integers(0, 2**32)
alphas = st.floats(-3, 3).map(lambda exponent: 10**exponent)
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=3)
layouts = ['contiguous', 'channels last', 'a slice', 'transposed']
paths = st.sampled_from(['rotation', 'index', 'gradient'])


def batch(n, size, dtype, layout, seed=0, channels=3):
    "A batch of random values, the same for the same arguments"
    values = torch.rand((n, channels, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)*200
    t = values.to(dtype) if dtype != torch.bool else values > 100
    if layout == 'channels last': return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == 'a slice': return torch.cat([t, t], 0)[n:]
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if layout == 'transposed' else t


def partners(n, path, rng):
    "A rotation, or partners that are none"
    if path != 'index': return draw_partner(n, rng)
    return np.array([rng.choice([j for j in range(n) if j != i]) for i in range(n)])


def regions(n, size, alpha, per_sample, rng): return draw_region(draw_lam(alpha, rng, n if per_sample else 1), size, rng)


def on_path(mix, t, path):
    "Call `mix` on `t`; for the gradient path, as on an activation"
    return mix(t.clone(memory_format=torch.preserve_format).requires_grad_() if path == 'gradient' else t)


def paste_each(t, region, partner):
    "Paste sample by sample"
    out = t.clone()
    for i, sides in enumerate(np.broadcast_to(region, (len(t), *region.shape[-2:]))):
        cells = (..., *(slice(low, high) for low, high in sides))
        out[i][cells] = t[int(partner[i])][cells]
    return out


def kept(out, t, path, layout):
    "Are dtype, shape and strides kept? Off the way of the mixers, through torch's own operations, the strides of torch's memory formats"
    strides = path == 'rotation' or layout in ('contiguous', 'a slice') or (layout == 'channels last' and t.ndim > 3)
    return out.dtype == t.dtype and out.shape == t.shape and not (strides and any(a != b for a, b, size in zip(out.stride(), t.stride(), t.shape) if size > 1))


@given(n=st.integers(2, 9), size=sizes, dtype=st.sampled_from(floats+whole), layout=st.sampled_from(layouts), path=paths, per_sample=st.booleans(), alpha=alphas, seed=seeds)
def test_paste(n, size, dtype, layout, path, per_sample, alpha, seed):
    "On every path each cell comes from own or partner at that place, and everything else about the tensor is kept"
    rng, path = np.random.default_rng(seed), path if dtype.is_floating_point else path.replace('gradient', 'rotation')
    region, partner, t = regions(n, size, alpha, per_sample, rng), partners(n, path, rng), batch(n, size, dtype, layout)
    before, mix = t.clone(), Paste(region, size, partner)
    out = on_path(mix, t, path)
    assert torch.equal(out, paste_each(t, region, partner))
    assert torch.equal(t, before) and t._version == 0 and out.data_ptr() != t.data_ptr()
    assert kept(out, t, path, layout)


@given(n=st.integers(2, 9), size=sizes, dtype=st.sampled_from(floats), layout=st.sampled_from(layouts), path=paths, per_sample=st.booleans(), alpha=alphas, seed=seeds)
def test_blend(n, size, dtype, layout, path, per_sample, alpha, seed):
    "On every path the average is that of own and partner, and everything else about the tensor is kept"
    rng = np.random.default_rng(seed)
    lam, partner, t = draw_lam(alpha, rng, n if per_sample else 1), partners(n, path, rng), batch(n, size, dtype, layout)
    before, mix = t.clone(), Blend(lam, partner)
    out = on_path(mix, t, path)
    share, own = torch.as_tensor(lam).reshape(-1, *[1]*(t.ndim-1)), t.double()
    expected = share*own + (1-share)*own[torch.as_tensor(partner)]
    torch.testing.assert_close(out.detach().double(), expected, rtol=0, atol=200*max(2*torch.finfo(dtype).eps, 1e-7))
    assert torch.equal(t, before) and t._version == 0 and out.data_ptr() != t.data_ptr()
    assert kept(out, t, path, layout)


@pytest.mark.parametrize('dtype', floats, ids=str)
def test_blend_keeps_the_untouched(dtype):
    "λ = 1 and λ = 0 give own and partner to the last bit"
    t = torch.randn(4, 999, dtype=dtype)
    for partner in rotation(4, 1), [1, 0, 3, 2]:
        assert torch.equal(Blend([1., 0., 1., 0.], partner)(t), torch.stack([t[0], t[partner[1]], t[2], t[partner[3]]]))


@pytest.mark.parametrize('dtype', [torch.complex64, torch.complex128], ids=str)
def test_blend_complex(dtype):
    t = torch.randn(3, 5, dtype=dtype)
    torch.testing.assert_close(Blend([.25, .5, 1.], [1, 2, 0])(t), torch.stack([.25*t[0] + .75*t[1], .5*t[1] + .5*t[2], t[2]]))


@pytest.mark.parametrize('view', [torch.conj, lambda t: t.conj().imag, lambda t: t.real], ids=['conjugate', 'negative', 'every second number'])
@pytest.mark.parametrize('side', [8, 64])
@pytest.mark.parametrize('per_sample', [False, True])
def test_paste_of_views(view, side, per_sample):
    t = view(torch.randn(4, 3, side, side, dtype=torch.complex64))
    mix = Paste(regions(4, (side, side), 1., per_sample, np.random.default_rng(0)), (side, side), rotation(4, 1))
    assert torch.equal(mix(t), mix(t.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()))
    assert not torch.equal(mix(t), t)


@pytest.mark.parametrize('path', ['rotation', 'index'])
@pytest.mark.parametrize('per_sample', [False, True])
def test_gradients(path, per_sample):
    "The gradient of a sample is its own share, and each partner's share of it"
    rng = np.random.default_rng(0)
    partner, t = partners(5, path, rng), torch.rand(5, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Blend(draw_lam(1., rng, 5 if per_sample else 1), partner), t)
    assert torch.autograd.gradcheck(Paste(regions(5, (4, 3), 1., per_sample, rng), (4, 3), partner), t)


@given(n=st.integers(2, 9), size=sizes, per_sample=st.booleans(), alpha=alphas, seed=seeds)
def test_lam_is_counted(n, size, per_sample, alpha, seed):
    "The share of cells that are kept is λ"
    rng = np.random.default_rng(seed)
    mix = Paste(regions(n, size, alpha, per_sample, rng), size, draw_partner(n, rng))
    t = torch.arange(n*math.prod(size)).view(n, 1, *size)
    kept = (mix(t) == t).float().flatten(1).mean(1)
    torch.testing.assert_close(kept, mix.lam.expand(n))


@given(n=st.integers(2, 6), size=sizes, scale=st.lists(st.integers(1, 3), min_size=3, max_size=3), per_sample=st.booleans(), seed=seeds)
def test_paste_scales(n, size, scale, per_sample, seed):
    "A tensor of a multiple of the size is pasted at the same place, cell by cell"
    rng = np.random.default_rng(seed)
    mix, small = Paste(regions(n, size, 1., per_sample, rng), size, draw_partner(n, rng)), torch.arange(n*math.prod(size)).view(n, 1, *size)
    def enlarge(t):
        for dim in range(len(size)): t = t.repeat_interleave(scale[dim], dim+2)
        return t
    assert torch.equal(mix(enlarge(small)), enlarge(mix(small)))


@pytest.mark.parametrize('partner', [rotation(3, 2), [1, 0, 0]], ids=['rotation', 'index'])
@pytest.mark.parametrize('size', [(5000,), (61, 71), (15, 17, 19)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.complex128], ids=str)
@pytest.mark.parametrize('layout', layouts)
def test_paste_large(size, partner, dtype, layout):
    "Large samples are pasted one by one, activations by a mask: with the same result"
    region, t = regions(3, size, 1., True, np.random.default_rng(4)), batch(3, size, dtype, layout, channels=2)
    mix = Paste(region, size, partner)
    assert t[0].numel() > 2**12
    assert torch.equal(mix(t), paste_each(t, region, partner))
    if dtype.is_floating_point: assert torch.equal(mix(t), mix(t.clone().requires_grad_()))


@given(n=st.integers(2, 100), seed=seeds)
def test_nobody_is_its_own_partner(n, seed):
    partner = draw_partner(n, np.random.default_rng(seed))
    assert (partner != np.arange(n)).all() and sorted(partner) == list(range(n))
    assert Blend(.5, partner).partner.tolist() == partner.tolist()


def test_every_partner_is_equally_likely():
    "chi-square, wrong in 1 of 1000 seeds"
    rng = np.random.default_rng(0)
    drawn = Counter(draw_partner(7, rng)[2] for _ in range(3000))
    assert set(drawn) == {0, 1, 3, 4, 5, 6} and chisquare(list(drawn.values())).pvalue > 1e-3


@pytest.mark.parametrize('alpha', [1e-3, .2, .4, 1., 8., 1e3, (.5, 2.)], ids=str)
def test_law_of_lam(alpha):
    "Kolmogorov-Smirnov against the Beta distribution, folded or not, one at a time or many; each wrong in 1 of 1000 seeds"
    law = beta(*(alpha if isinstance(alpha, tuple) else (alpha, alpha)))
    def folded(x): return np.where(x < .5, 0, law.cdf(x) - law.cdf(1-x))
    rng = np.random.default_rng(0)
    many, one = draw_lam(alpha, rng, 5000), [draw_lam(alpha, rng) for _ in range(1000)]
    inside = alpha != 1e-3 # there λ is 0 or 1 to the last bit, half of the time each
    for drawn in many, one: assert kstest(drawn, law.cdf).pvalue > 1e-3 if inside else abs(np.mean(drawn) - .5) < 3.3*.5/len(drawn)**.5
    if inside: assert kstest(draw_lam(alpha, rng, 5000, fold=True), folded).pvalue > 1e-3


@given(alpha=alphas, n=st.integers(2, 9), seed=seeds, fold=st.booleans())
def test_lam_is_a_share(alpha, n, seed, fold):
    lam = draw_lam(alpha, np.random.default_rng(seed), n, fold)
    assert lam.shape == (n,) and ((lam >= (.5 if fold else 0)) & (lam <= 1)).all()


@pytest.mark.parametrize('size, side', [(9, 4), (9, 5), (8, 3), (8, 8), (7, 1)])
def test_centre_is_uniform(size, side):
    "The centre of a region is uniform: each first cell, before clipping, has its exact probability (wrong in 1 of 1000 seeds)"
    low, high = draw_region(np.full(20_000, 1-side/size), (size,), np.random.default_rng(1))[:, 0].T
    first = np.where(high == size, high - np.minimum(side, size), low) # as if never clipped ...
    first = np.where(high < np.minimum(side, size), high-side, np.where(low > size-side, low, first)) # ... at either border
    starts = np.arange(-(side//2), size - (side+1)//2 + 1) # whole cells nearest to `centre - side/2`
    share = np.array([min(size, k + side/2 + .5) - max(0, k + side/2 - .5) for k in starts])
    seen = np.array([(first == k).sum() for k in starts])
    assert seen.sum() == 20_000 and chisquare(seen[share > 0], 20_000*share[share > 0]/size).pvalue > 1e-3


@pytest.mark.parametrize('size', [(5,), (4, 7), (3, 4, 5)], ids=str)
@pytest.mark.parametrize('lam', [.3, .8])
def test_every_cell_can_be_pasted(size, lam):
    "Corners too; and the two ends of each side alike (4.5 standard deviations)"
    draws = 20_000
    region = draw_region(np.full(draws, lam), size, np.random.default_rng(2))
    covered = np.zeros(size)
    for sides, times in Counter(map(lambda r: tuple(map(tuple, r)), region.tolist())).items(): covered[tuple(slice(*s) for s in sides)] += times
    assert covered.min() > 0
    for dim in range(len(size)): assert (abs(covered - np.flip(covered, dim)) < 4.5*(2*covered)**.5 + 1).all()


@pytest.mark.parametrize('size', [(100,), (40, 60), (20, 30, 40)], ids=str)
@pytest.mark.parametrize('lam', [0., .19, .5, .75, 1.])
def test_sides(size, lam):
    "The largest region of many has sides of (1-λ)^(1/d): that one was not clipped"
    low, high = np.moveaxis(draw_region(np.full(3000, lam), size, np.random.default_rng(3)), -1, 0)
    assert ((0 <= low) & (low <= high) & (high <= size)).all()
    assert (high-low).max(0).tolist() == [round(s * (1-lam)**(1/len(size))) for s in size]


@given(lam=st.floats(0, 1), size=st.lists(st.integers(1, 300), min_size=1, max_size=3), seed=seeds)
def test_a_region_alone(lam, size, seed):
    "Drawn for one λ, it is the region that many are drawn as"
    alone = draw_region(np.array([lam]), size, np.random.default_rng(seed))
    among = region_around(np.random.default_rng(seed).random((1, len(size))).repeat(2, 0), np.array([lam, lam]), size)
    assert alone.dtype == among.dtype and np.array_equal(alone, among[:1])


@given(n=st.integers(1, 9), size=sizes, alpha=alphas, seed=seeds)
def test_a_region_on_another_device(n, size, alpha, seed):
    "The arithmetic that a GPU does is that of the host"
    rng = np.random.default_rng(seed)
    centre, lam = rng.random((n, len(size))), draw_lam(alpha, rng, n)
    assert np.array_equal(device_regions(torch.from_numpy(centre), lam, size).numpy(), region_around(centre, lam, size))


@pytest.mark.parametrize('mix', [Blend(.5, [1, 2, 0]), Blend(.5, [1, 0, 0]), Paste([(0, 2)], (4,), [1, 2, 0]), Paste([(0, 2)], (4,), [1, 0, 0])], ids=repr)
@pytest.mark.parametrize('shape', [(2, 4), (4, 1, 4), ()], ids=str)
def test_another_batch(mix, shape):
    for use in mix, mix.blend, mix.others:
        with pytest.raises(ValueError, match='batch of 3'): use(torch.zeros(shape))


def test_a_mix_is_its_own():
    "What a mix was made from may change afterwards"
    lam, partner, region = np.array([.5, .5], dtype=np.float32), np.array([1, 0]), np.array([(1, 3)])
    mixes = Blend(lam, partner), Paste(region, (4,), partner)
    t = torch.rand(2, 1, 4)
    before = [mix(t) for mix in mixes]
    lam[:], partner[:], region[:] = 1, [0, 1], 0
    for mix, out in zip(mixes, before): assert torch.equal(mix(t), out) and mix.partner.tolist() == [1, 0] and mix.lam.max() == .5


def test_one_shape():
    "λ and regions always have a first dimension, of one or n, whether they were given with it or not"
    for lam in .2, [.2], np.array(.2), torch.tensor(.2): assert Blend(lam, [1, 2, 0]).lam.shape == (1,)
    for region in [(0, 2)], [[(0, 2)]], np.array([[0, 2]]): assert Paste(region, (6,), [1, 2, 0]).region.shape == (1, 1, 2)
    assert Paste([[(0, 2)], [(1, 6)], [(3, 3)]], (6,), [1, 2, 0]).lam.shape == (3,)
    assert Blend(.2, [1, 2, 0]).shares.shape == (2, 1) and Blend([.2, .5, .9], [1, 2, 0]).weights.shape == (2, 3)


@pytest.mark.parametrize('lam', [-.1, 1.1, math.nan, np.array([.5, 2.]), np.array([math.nan])])
def test_a_region_for_no_share_is_refused(lam):
    with pytest.raises(ValueError, match='own share and must lie in'): draw_region(np.atleast_1d(lam), (4, 4), np.random.default_rng(0))


def test_generator(monkeypatch):
    "Repeatable from a seed or from torch's state, which stays; another one for another seed, state or rank"
    def draws(seed=None, rank='0'):
        monkeypatch.setenv('RANK', rank)
        return tuple(mix_rng(seed).random(4))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draws() == draws() and draws(7) == draws(7) and torch.equal(torch.get_rng_state(), state)
    different = [draws(), draws(rank='1'), draws(7), draws(7, '1'), draws(8)]
    torch.rand(1)
    assert len({*different, draws()}) == 6


def test_rotations_are_the_callers_own():
    "Writing into drawn partners, or into a mix's, changes no other mix"
    partner, mix = rotation(5, 2), Blend(.5, rotation(5, 2))
    partner[:] = 0
    mix.partner[:] = 0
    assert rotation(5, 2).tolist() == Blend(.5, rotation(5, 2)).partner.tolist() == [2, 3, 4, 0, 1]


@pytest.mark.parametrize('mix', [Blend([.1, .2, .9], rotation(3, 1)), Paste([(0, 2), (1, 3)], (4, 4), rotation(3, 2)), Blend(.3, [2, 2, 0])], ids=str)
def test_mixes_can_be_copied(mix):
    t = torch.rand(3, 1, 4, 4)
    for other in pickle.loads(pickle.dumps(mix)), copy.deepcopy(mix):
        assert torch.equal(other(t), mix(t)) and torch.equal(other.partner, mix.partner) and torch.equal(other.lam, mix.lam)
