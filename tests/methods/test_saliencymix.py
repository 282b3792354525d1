"""SaliencyMix beside a literal version of itself, in a fit, and what other implementations get wrong."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench import gpu, peers
from fastai.losses import CrossEntropyLossFlat
from scipy.fft import dctn, idctn
from test_family import by_hand, fit
from torch import nn

from fastmix.all import Batch, Paste, SaliencyMix, check_mixer, mix_rng, spectral_residual


def literal_map(image, most=128):
    "The spectral residual of one image `(c, h, w)`, sum by sum"
    grey = image.astype(float).mean(0)
    times = min(1, most/max(grey.shape))
    h, w = (max(1, round(length*times)) for length in grey.shape)
    waves = dctn(grey, norm='ortho')[:h, :w]
    log = np.log(np.maximum(np.abs(waves), 1e-6*np.abs(waves).max() + 1e-12))
    found = np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            near = [log[min(max(i+a, 0), h-1), min(max(j+b, 0), w-1)] for a in (-1, 0, 1) for b in (-1, 0, 1)]
            found[i, j] = waves[i, j]*np.exp(-np.mean(near))
    found, out = np.abs(idctn(found, norm='ortho')) + 1e-12, np.zeros((h, w))
    for i in range(h):
        for j in range(w):
            for k in range(h):
                for m in range(w):
                    a, b = abs(i-k), abs(j-m)
                    if a <= min(3, h//10) and b <= min(3, w//10): out[i, j] += found[k, m]*np.exp(-(a*a + b*b)/18)
    return out/out.sum()


def literal_region(image, lam, size):
    "The box around the most salient place, clipped"
    seen, region = literal_map(image), []
    for at, n, length in zip(np.unravel_index(seen.argmax(), seen.shape), seen.shape, size):
        side = round(length*np.sqrt(1-lam))
        low = int(np.floor((at + .501)/n*length - side/2 + .5))
        region.append((max(low, 0), min(low+side, length)))
    return region


def pictures(n, size=(20, 30), seed=0):
    "Smooth images, each with something at another place"
    x, rng = torch.rand(n, 3, 5, 6, generator=torch.Generator().manual_seed(seed)), np.random.default_rng(seed)
    x = F.interpolate(x, size, mode='bilinear')
    for image in x:
        top, left = (int(rng.integers(length-2)) for length in size)
        image[:, top:top+3, left:left+3] += 1
    return x


@pytest.mark.parametrize('size', [(20, 30), (7, 5), (1, 7), (3, 1), (36, 12)])
def test_the_map_is_the_literal_one(size):
    x = pictures(3, size) if min(size) > 3 else torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(spectral_residual(x), [literal_map(image) for image in x.numpy()], atol=2e-6, rtol=1e-3)


def test_the_map_of_a_large_image_is_coarse():
    x = pictures(2, (44, 60))
    found = spectral_residual(x, most=30)
    assert found.shape == (2, 22, 30)
    np.testing.assert_allclose(found, [literal_map(image, 30) for image in x.numpy()], atol=2e-6, rtol=1e-3)
    assert spectral_residual(torch.rand(2, 1, 10, 400)).shape == (2, 3, 128)


@pytest.mark.parametrize('lam', [0., .3, .8, 1.])
def test_mixed_as_the_literal_version(lam):
    x = pictures(5)
    mix = SaliencyMix().draw_mix(Batch((x,)), mix_rng(1), lam=lam)
    assert type(mix) is Paste and mix.shift
    for i, (own, other) in enumerate(zip(x, x.roll(-mix.shift, 0))):
        (a, b), (c, d) = literal_region(other.numpy(), lam, (20, 30))
        out = own.clone()
        out[:, a:b, c:d] = other[:, a:b, c:d]
        assert torch.equal(mix(x)[i], out)
        assert mix.lam[i].item() == pytest.approx(1 - (b-a)*(d-c)/600)


def test_each_sample_has_the_box_of_its_own_partner():
    "Others paste one box for the whole batch, around what stands out in the first sample's partner"
    x = .05*torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for image, (top, left) in zip(x, ((4, 4), (4, 24), (24, 4), (24, 24))): image[:, top:top+4, left:left+4] = 1
    mix = SaliencyMix().draw_mix(Batch((x,)), mix_rng(0), lam=.8)
    assert len(np.unique(mix.region, axis=0)) == 4
    for region, partner in zip(mix.region, mix.partner):
        (a, b), (c, d) = region
        assert (x[partner, 0, a:b, c:d] == 1).sum() == 16 # The whole square


def test_an_image_that_is_not_involved_changes_nothing():
    x, other = pictures(6), pictures(6)
    other[0] = other[0].flip(-1) + .3
    mixes = [SaliencyMix().draw_mix(Batch((t,)), mix_rng(4)) for t in (x, other)]
    apart = [i for i in range(1, 6) if mixes[0].partner[i] != 0]
    assert len(apart) == 4 and np.array_equal(mixes[0].region[apart], mixes[1].region[apart])


@pytest.mark.parametrize('per, n', [('batch', 1), ('sample', 8)])
def test_shares_are_aimed_at_per_batch_or_per_sample(per, n):
    "Where nothing is clipped, the sides tell what was aimed at"
    x = torch.zeros(8, 1, 64, 64)
    x[:, :, 30:34, 30:34] = 1
    regions = SaliencyMix(per=per).draw_mix(Batch((x,)), mix_rng(3)).region
    assert len(np.unique(regions[:, 0, 1] - regions[:, 0, 0])) == n


def test_the_law_of_the_share():
    "In the middle nothing is clipped: λ is as drawn, uniform for alpha 1"
    x = torch.zeros(2, 1, 64, 64)
    x[:, :, 30:34, 30:34] = 1
    rng, mixer, batch = mix_rng(0), SaliencyMix(), Batch((x,))
    lam = np.sort([mixer.draw_mix(batch, rng).lam[0].item() for _ in range(600)])
    assert np.abs(lam - (np.arange(600)+.5)/600).max() < 1.63/600**.5 # Kolmogorov and Smirnov, 1 %


@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_it_keeps_what_a_mixer_promises(per):
    for size in (20, 30), (1, 7), (8, 8): check_mixer(SaliencyMix(per=per), size, draws=5)
    check_mixer(SaliencyMix(per=per, beside=True), draws=3)


class Logged(nn.NLLLoss):
    "A loss of one's own, with a reduction"
    def forward(self, pred, y): return super().forward(pred.log_softmax(1), y)


@pytest.mark.parametrize('loss, weight', [(nn.CrossEntropyLoss(), None), (Logged(), None), (CrossEntropyLossFlat(weight=torch.tensor([1., 4., .5])), torch.tensor([1., 4., .5]))],
                         ids=['plain', 'own', 'class weights'])
def test_the_loss_by_hand(loss, weight):
    for row in fit([SaliencyMix(seed=1, p=1.)], loss=loss)[1]: torch.testing.assert_close(row['loss'], by_hand(row, weight=weight))


def test_partners_from_a_source():
    "It is their salient place that counts"
    x, source = pictures(4), pictures(4, seed=9)
    batch = Batch((x,))
    batch.source = Batch((source,))
    mix = SaliencyMix().draw_mix(batch, mix_rng(0), lam=.7)
    for region, j in zip(mix.region, mix.partner): assert region.tolist() == [list(side) for side in literal_region(source[j].numpy(), .7, (20, 30))]


def test_bytes_and_lower_precision():
    x = (pictures(4)*120).round()
    first = SaliencyMix().draw_mix(Batch((x,)), mix_rng(1), lam=.6)
    for dtype in torch.uint8, torch.bfloat16, torch.float16, torch.float64:
        t = x.to(dtype)
        mix = SaliencyMix().draw_mix(Batch((t,)), mix_rng(1), lam=.6)
        assert np.abs(mix.region - first.region).max() <= 1 and mix(t).dtype is dtype


def test_nothing_stands_out():
    "Black and grey images have even maps, but for the border, and a box somewhere"
    for x in torch.zeros(2, 3, 40, 40), torch.full((2, 3, 40, 40), .7):
        seen = spectral_residual(x)[:, 3:-3, 3:-3]
        torch.testing.assert_close(seen, seen[:, :1, :1].expand_as(seen), rtol=1e-3, atol=0)
        assert (SaliencyMix().draw_mix(Batch((x,)), mix_rng(0), lam=.75).lam >= .75).all()


@pytest.mark.parametrize('size', [(20,), (4, 6, 8), ()])
def test_it_is_for_images(size):
    with pytest.raises(ValueError, match='SaliencyMix mixes places.*2 spatial'): check_mixer(SaliencyMix(), size, draws=1)


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises"
    for size in 16, 200:
        x, y = gpu.batch('meta', (4, 3, size, size), torch.float32)
        learn = peers.learner(x, y, SaliencyMix(p=1.), nn.CrossEntropyLoss(), nn.Sequential(nn.Conv2d(3, peers.CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to('meta'))
        step = gpu.training_step(learn, x, y)
        for _ in range(2): assert step().shape == ()


def test_gradients_are_not_followed():
    x = pictures(3).requires_grad_()
    assert not spectral_residual(x).requires_grad


@pytest.mark.cuda
def test_the_host_never_waits():
    x, mixer, rng = pictures(8, (64, 64)).cuda(), SaliencyMix(per='sample'), mix_rng(0)
    def draw():
        mix = mixer.draw_mix(Batch((x,)), rng)
        return mix(x), mix.weights
    draw()
    with gpu.no_waiting('cuda'): draw()
    assert spectral_residual(x).is_cuda
    torch.testing.assert_close(spectral_residual(x).cpu(), spectral_residual(x.cpu()), rtol=1e-2, atol=1e-6)
