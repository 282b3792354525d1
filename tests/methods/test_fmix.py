"FMix: a threshold on low-frequency noise"
import math
import time

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from by_hand import devices, draw, losses_by_hand, masks_by_hand, nothing_is_read_off_the_device, on_a_device, per
from fastmix.all import Batch, FMix, Mask, MixChoice, MixUp, arguments, check_mixer, mix_rng
from fastmix.methods.fmix import by_parts, by_rank, kept_places, low_noise

host, sizes = torch.device('cpu'), [(20, 31), (7, 6), (1, 7), (9,), (12,), (3, 5, 4), (1, 1), (2,)]
every_size = pytest.mark.parametrize('size', sizes, ids=str)


def waves(white, sign):
    "A Fourier transform as it is defined, a sum over all places for each frequency"
    places = np.stack(np.meshgrid(*map(np.arange, white.shape), indexing='ij'), -1).reshape(-1, white.ndim)
    return np.array([(white.ravel()*np.exp(sign*2j*np.pi*(places/white.shape @ k))).sum() for k in places]).reshape(white.shape)


def literal_noise(white, decay):
    "Each wave of white noise over its frequency, which counts as one period of the longest side at least"
    spectrum, size = waves(white, -1), white.shape
    for k in np.ndindex(size):
        f = math.sqrt(sum((min(i, n-i)/n)**2 for i, n in zip(k, size)))
        spectrum[k] /= max(f, 1/max(size))**decay
    return (waves(spectrum, 1)/white.size).real


def literal_mask(noise, lam, soft):
    "1 for the largest, 0 for the smallest, steps between"
    n, own = noise.size, np.zeros(noise.size)
    kept = round(lam*n)
    ramp = min(int(soft*n), kept, n-kept)
    for rank, place in enumerate(np.argsort(-noise.ravel(), kind='stable')):
        if rank < kept-ramp: own[place] = 1
        elif rank < kept+ramp: own[place] = 1 - (rank - (kept-ramp) + .5)/(2*ramp)
    return own.reshape(noise.shape)


@pytest.mark.parametrize('size', [(8, 10), (7, 9), (1, 7), (9,), (3, 5, 4)], ids=str)
@pytest.mark.parametrize('decay', [0., 1.5, 3])
def test_it_is_the_algorithm_written_out(size, decay):
    for seed, soft in enumerate((0., .1, .5)):
        rng = mix_rng(seed)
        white = torch.randn(3, *size, generator=torch.Generator().manual_seed(int(rng.integers(2**63))))
        lam = np.array([.3, .62, .95])
        mix = draw(FMix(decay, soft=soft), torch.zeros(3, 1, *size), lam, seed)
        for own, share, w in zip(mix.own, lam, white.double().numpy()):
            np.testing.assert_allclose(own, literal_mask(literal_noise(w, decay), share, soft), atol=1e-6)


@every_size
@pytest.mark.parametrize('soft', [0., .1, .5])
def test_as_many_places_are_kept_as_can_be_told(size, soft):
    n, lam = math.prod(size), np.r_[0., 1., .5, mix_rng(1).random(13)]
    mix = draw(FMix(soft=soft), torch.zeros(16, 1, *size), lam)
    assert mix.own.dtype is (torch.float32 if mix.soft else torch.bool) and (soft or not mix.soft)
    torch.testing.assert_close(mix.own.double().flatten(1).sum(1), torch.tensor([float(round(share*n)) for share in lam], dtype=torch.double), atol=1e-4, rtol=0)
    torch.testing.assert_close(mix.lam.double(), torch.tensor([round(share*n)/n for share in lam], dtype=torch.double), atol=1e-6, rtol=0)


@every_size
def test_the_way_on_a_gpu_and_that_on_the_host_agree(size):
    for soft in 0., .05, .5:
        noise = low_noise(size, 3., 8, mix_rng(0), host).flatten(1).double()
        where = kept_places(mix_rng(2).random(8), noise.shape[1], soft)
        fast, right = by_parts(noise, *where), by_rank(noise, *where)
        assert fast.dtype == right.dtype
        torch.testing.assert_close(fast.float(), right.float(), atol=1e-6, rtol=0)


@devices
def test_the_way_on_a_device_keeps_as_many(device):
    lam = mix_rng(3).random(16)
    for soft in 0., .1:
        noise = low_noise((37, 50), 3., 16, mix_rng(0), torch.device(device)).flatten(1)
        own = by_rank(noise, *kept_places(lam, 37*50, soft)).cpu()
        torch.testing.assert_close(own.double().sum(1), torch.from_numpy(np.rint(lam*37*50)), atol=1e-3, rtol=0)
        assert (own.float() - by_parts(noise.cpu(), *kept_places(lam, 37*50, soft)).float()).abs().mean() < 1e-3 # Equal numbers stand in any order


@pytest.mark.parametrize('decay', [1., 2., 3.])
def test_the_power_falls_with_twice_the_decay(decay):
    "Within 2 %: 64 masks have some 16,000 independent waves in each of the many rings"
    for size in (128, 128), (96, 160), (512,):
        noise = low_noise(size, decay, 64, mix_rng(0), host).double().numpy()
        power = (np.abs(np.fft.fftn(noise, axes=range(1, noise.ndim)))**2).mean(0)
        frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, size), indexing='ij')))
        inside = (frequency > 2.5/min(size)) & (frequency < .45)
        slope = stats.linregress(np.log(frequency[inside]), np.log(power[inside])).slope
        assert slope == pytest.approx(-2*decay, rel=.02)


def test_it_is_alike_in_all_directions_and_not_mirrored():
    "Other code keeps a single wave along the width, or mirrors the noise about the centre"
    noise = low_noise((64, 64), 3., 300, mix_rng(0), host)
    spectrum = torch.fft.fft2(noise).abs().square().mean(0)
    for k in range(1, 8): assert spectrum[k, 0].item() == pytest.approx(spectrum[0, k].item(), rel=.35) # Sd of each mean: 1/√300·√2, of the ratio .12
    straight = spectrum[1:8, 0] + spectrum[0, 1:8]
    assert spectrum[0, 2]/spectrum[0, 1] == pytest.approx(2.**-6, rel=.35)
    assert (straight > 0).all()
    mirrored = noise.flip(1, 2).roll((1, 1), (1, 2))
    alike = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(noise, mirrored)]
    assert abs(np.mean(alike)) < .1 and np.std(alike) > .3


def test_masks_are_at_no_preferred_place():
    "Each place is kept as often as any other: 600 masks, sd of a place's mean .02"
    own = draw(FMix(), torch.zeros(600, 1, 12, 10), np.full(600, .5)).own.float().mean(0)
    assert (own - .5).abs().max() < .085


def test_larger_decay_makes_fewer_pieces():
    def pieces(decay): return np.mean([ndimage.label(own)[1] for own in draw(FMix(decay), torch.zeros(40, 1, 48, 48), np.full(40, .5)).own.numpy()])
    assert pieces(1.) > 5*pieces(3.) > 5*pieces(5.) and pieces(5.) < 2


def test_lam_is_that_of_the_beta_distribution():
    "By the Kolmogorov-Smirnov distance, and to half a place"
    rng, batch, mixer = mix_rng(0), Batch((torch.zeros(500, 1, 40, 50),)), FMix(alpha=.4, per='sample', decay=2.)
    lam = mixer.draw_mix(batch, rng).lam.numpy()
    assert stats.kstest(lam, stats.beta(.4, .4).cdf).pvalue > .01


@per
def test_loss_by_hand(per): losses_by_hand(lambda: FMix(per=per, seed=3))


@per
@pytest.mark.parametrize('soft', [0., .2])
def test_masks_go_with_their_images(per, soft):
    for size in (8, 6), (3, 4, 5): masks_by_hand(lambda: FMix(per=per, soft=soft, alpha=9., seed=1), bool(soft), size)


@devices
def test_on_a_device(device):
    on_a_device(lambda per: FMix(per=per), device)
    on_a_device(lambda per: FMix(soft=.1, per=per), device)


def test_nothing_is_read_off_the_device():
    nothing_is_read_off_the_device(lambda per: FMix(per=per, seed=0))
    nothing_is_read_off_the_device(lambda per: FMix(per=per, soft=.1, seed=0))


@per
def test_soft_masks_keep_what_a_mixer_promises(per):
    for size in (20, 30), (8, 8), (9,), (3, 5, 4): check_mixer(FMix(soft=.2, per=per), size, draws=5)


def test_a_soft_mask_averages_only_what_can_be_averaged():
    x = torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8)
    assert draw(FMix(), x, np.array([.5]))(x).dtype is torch.uint8
    with pytest.raises(TypeError, match='a floating mask averages'): draw(FMix(soft=.1), x, np.array([.5]))(x)


def test_in_half_precision_the_mask_is_as_exact():
    "Other code draws it in 16 bits, too"
    x = torch.rand(4, 3, 40, 50)
    lam = np.array([.1, .3, .6, .9])
    whole = draw(FMix(), x, lam)
    for dtype in torch.float16, torch.bfloat16, torch.float64: assert torch.equal(draw(FMix(), x.to(dtype), lam).own, whole.own)


def test_arguments():
    assert list(arguments(FMix()))[:4] == ['decay', 'alpha', 'soft', 'per']
    assert arguments(FMix(2., .3, .1, 'sample')).items() >= dict(decay=2., alpha=.3, soft=.1, per='sample').items()
    for bad, error in (-1, ValueError), (float('nan'), ValueError), ('3', TypeError), (True, TypeError):
        with pytest.raises(error, match='`decay` must be a number from 0'): FMix(decay=bad)
    for bad, error in (-.1, ValueError), (.6, ValueError), (None, TypeError):
        with pytest.raises(error, match='`soft` must be a number from 0 to 0.5'): FMix(soft=bad)
    for size in (), (2, 2, 2, 2):
        with pytest.raises(ValueError, match='FMix mixes places'): FMix().check(Batch((torch.zeros(4, 3, *size),)))


@pytest.mark.parametrize('decay', [0, 20, 200.])
def test_any_decay_makes_masks(decay):
    for size in (20, 31), (300,), (1, 1): assert draw(FMix(decay), torch.zeros(3, 1, *size), np.array([0., .5, 1.])).lam.tolist()[::2] == [0, 1]


def test_in_a_choice_and_at_another_size():
    choice = MixChoice(FMix(), MixUp(), seed=0)
    kinds = {type(choice.pick(None, rng := mix_rng(i)).draw_mix(Batch((torch.zeros(4, 1, 6, 6),)), rng)) for i in range(20)}
    assert Mask in kinds and len(kinds) == 2
    mix = draw(FMix(), torch.zeros(4, 1, 6, 8), np.array([.5]))
    assert torch.equal(mix.own_at((12, 16)), mix.own.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_drawing_takes_little_time():
    "Far from the measured 1 ms and 70 ms, so that a busy machine does not matter"
    x, lam = torch.zeros(64, 3, 224, 224), mix_rng(0).random(64)
    def fastest(m):
        times = []
        for i in range(5):
            start = time.process_time()
            draw(FMix(), x, lam[:m], i)
            times.append(time.process_time() - start)
        return min(times)
    assert fastest(1) < .01 and fastest(64) < .4
