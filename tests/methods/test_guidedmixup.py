"""GuidedMixUp beside a literal version of itself, in a fit, and what other implementations get wrong."""
import numpy as np
import pytest
import torch
from bench import gpu, peers
from fastai.losses import CrossEntropyLossFlat
from test_family import by_hand, fit, shares_seen
from test_saliencymix import literal_map, pictures
from torch import nn

from fastmix.all import Batch, GuidedMixUp, Mask, MixedBatch, check_mixer, farthest_ring, mix_rng, spectral_residual


def literal_ring(distance):
    "From the most different pair on, always to the most different one that nobody has as partner"
    n = len(distance)
    first, now = max(((i, j) for i in range(n) for j in range(n) if i != j), key=lambda pair: distance[pair])
    partner, taken = {first: now}, {first, now}
    while len(taken) < n:
        partner[now] = max((j for j in range(n) if j not in taken), key=lambda j: distance[now, j])
        now = partner[now]
        taken.add(now)
    partner[now] = first
    return [partner[i] for i in range(n)]


def distances(n, seed):
    x = np.random.default_rng(seed).random((n, 5))
    return np.sqrt(((x[:, None] - x)**2).sum(2))


@pytest.mark.parametrize('n', [2, 3, 4, 9, 64])
def test_partners_are_the_literal_ring(n):
    for seed in range(5):
        d = distances(n, seed)
        kept = d.copy()
        partner = farthest_ring(d)
        assert partner.tolist() == literal_ring(d) and np.array_equal(d, kept)
        ring = [0]
        for _ in range(n-1): ring.append(int(partner[ring[-1]]))
        assert sorted(ring) == list(range(n)) and partner[ring[-1]] == 0


@pytest.mark.parametrize('d', [np.zeros((5, 5)), np.full((6, 6), np.nan)], ids=['alike', 'NaN'])
def test_a_ring_whatever_the_images(d):
    partner = farthest_ring(d)
    assert sorted(partner) == list(range(len(d))) and (partner != np.arange(len(d))).all()


def enlarged(seen, size):
    "Bilinear, pixel by pixel"
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            at = [(min(max((k+.5)*n/length - .5, 0), n-1)) for k, n, length in zip((i, j), seen.shape, size)]
            (a, b), (p, q) = [int(v) for v in at], [v - int(v) for v in at]
            c, d = min(a+1, seen.shape[0]-1), min(b+1, seen.shape[1]-1)
            out[i, j] = (1-p)*((1-q)*seen[a, b] + q*seen[a, d]) + p*((1-q)*seen[c, b] + q*seen[c, d])
    return out


@pytest.mark.parametrize('size', [(20, 30), (12, 140)], ids=['as it is', 'enlarged'])
def test_mixed_as_the_literal_version(size):
    x = pictures(3, size) + .1*torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(4)) # Waves too small for 32 bits are none
    mix = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(0))
    maps = [literal_map(image) for image in x.numpy()]
    apart = np.array([[np.sqrt(((a - b)**2).sum()) for b in maps] for a in maps])
    assert type(mix) is Mask and mix.partner.tolist() == literal_ring(apart)
    maps = np.stack([enlarged(seen, size) for seen in maps])
    for i, j in enumerate(mix.partner.tolist()):
        own = maps[i]/(maps[i] + maps[j])
        np.testing.assert_allclose(mix.own[i], own, atol=2e-4)
        np.testing.assert_allclose(mix(x)[i], own*x[i].numpy() + (1-own)*x[j].numpy(), atol=3e-4)
        assert mix.lam[i].item() == pytest.approx(own.mean(), abs=1e-4)


def test_the_weights_of_a_pair_add_up_to_one():
    x = pictures(2)
    mix = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(0))
    torch.testing.assert_close(mix.own.sum(0), torch.ones(20, 30))
    torch.testing.assert_close(mix.lam.sum(), torch.tensor(1.))


def test_the_ring_is_used():
    "Another implementation finds the partners, and mixes with others"
    x = pictures(16)
    seen = spectral_residual(x).flatten(1)
    mix = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(0))
    partner = farthest_ring(torch.cdist(seen, seen).numpy())
    assert mix.partner.tolist() == partner.tolist()
    out, own = mix(x), mix.own[:, None]
    torch.testing.assert_close(out, own*x + (1-own)*x[partner])


def test_what_stands_out_stays():
    "A bright square counts for more than the smooth place of its partner"
    x = .02*torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    x[0, :, 8:12, 8:12], x[1, :, 28:32, 28:32] = 1, 1
    own = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(0)).own
    assert own[0, 8:12, 8:12].min() > .6 and own[0, 28:32, 28:32].max() < .4


def test_it_keeps_what_a_mixer_promises():
    for size in (20, 30), (1, 7), (8, 8), (5, 1): check_mixer(GuidedMixUp(), size, draws=5)
    check_mixer(GuidedMixUp(beside=True), draws=3)
    for n in 2, 3, 7: check_mixer(GuidedMixUp(), n=n, draws=3)


class Logged(nn.NLLLoss):
    "A loss of one's own, with a reduction"
    def forward(self, pred, y): return super().forward(pred.log_softmax(1), y)


@pytest.mark.parametrize('loss, weight', [(nn.CrossEntropyLoss(), None), (Logged(), None), (CrossEntropyLossFlat(weight=torch.tensor([1., 4., .5])), torch.tensor([1., 4., .5]))],
                         ids=['plain', 'own', 'class weights'])
def test_the_loss_by_hand(loss, weight):
    for row in fit([GuidedMixUp(seed=1, p=1.)], loss=loss)[1]:
        assert (shares_seen(row['seen']) > .01).sum() == 16
        torch.testing.assert_close(row['loss'], by_hand(row, weight=weight))


def test_masks_are_weighted_pixel_by_pixel():
    "Class numbers have nothing in between; floating masks are averaged as the images are"
    x, y = pictures(4), torch.randint(0, 3, (4, 20, 30), generator=torch.Generator().manual_seed(0))
    soft = y.float()[:, None]
    under = MixedBatch(GuidedMixUp(), Batch((x,), (y, soft)), mix_rng(0))
    assert under.targets.fates(under.mix) == ['places', 'paste']
    own = under.mix.own[:, None]
    torch.testing.assert_close(under.labels()[1], own*soft + (1-own)*soft[under.mix.partner])
    assert under.labels()[0] is y


def test_bytes_and_what_it_does_not_have():
    for xb in (torch.zeros(2, 3, 8, 8).byte(),), (torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8).long()):
        with pytest.raises(TypeError, match='GuidedMixUp averages pixels.*SaliencyMix'): MixedBatch(GuidedMixUp(), Batch(xb), mix_rng(0))
    for given in dict(alpha=1.), dict(per='sample'), dict(partner='same'), dict(source=None):
        with pytest.raises(TypeError, match=f'GuidedMixUp has no `{next(iter(given))}`'): GuidedMixUp(**given)
    for size in (20,), (4, 6, 8):
        with pytest.raises(ValueError, match='GuidedMixUp mixes places.*2 spatial'): check_mixer(GuidedMixUp(), size, draws=1)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(dtype, layout):
    x = pictures(4).to(dtype).contiguous(memory_format=layout)
    mix = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(1))
    assert mix(x).dtype is dtype and mix(x).stride() == x.stride()


def test_images_that_say_nothing():
    "NaN stays where it is; black images count as a half"
    x = pictures(4)
    x[1] = np.nan
    mix = GuidedMixUp().draw_mix(Batch((x,)), mix_rng(0))
    clean = [i for i in range(4) if i != 1 and mix.partner[i] != 1]
    assert (mix.own[1] == .5).all() and mix(x)[clean].isfinite().all()
    torch.testing.assert_close(GuidedMixUp().draw_mix(Batch((torch.zeros(4, 3, 9, 9),)), mix_rng(0)).own, torch.full((4, 9, 9), .5))


def test_only_the_distances_are_read_off_the_device(monkeypatch):
    "Torch's meta device has no data, so reading it raises: the distances are read once a batch, and nothing else"
    read = []
    def cpu(t):
        read.append(tuple(t.shape))
        return torch.rand(t.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.Tensor, 'cpu', cpu)
    for size in 16, 200:
        x, y = gpu.batch('meta', (4, 3, size, size), torch.float32)
        learn = peers.learner(x, y, GuidedMixUp(p=1.), nn.CrossEntropyLoss(), nn.Sequential(nn.Conv2d(3, peers.CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to('meta'))
        step = gpu.training_step(learn, x, y)
        for _ in range(2): assert step().shape == ()
    assert read == [(4, 4)]*4


@pytest.mark.cuda
def test_the_host_waits_once(monkeypatch):
    x, mixer, rng, read = pictures(8, (64, 64)).cuda(), GuidedMixUp(), mix_rng(0), []
    cpu = torch.Tensor.cpu
    def counted(t):
        read.append(tuple(t.shape))
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode(0)
        out = cpu(t)
        torch.cuda.set_sync_debug_mode(mode)
        return out
    monkeypatch.setattr(torch.Tensor, 'cpu', counted)
    def draw():
        mix = mixer.draw_mix(Batch((x,)), rng)
        return mix(x), mix.weights
    draw()
    with gpu.no_waiting('cuda'): draw()
    assert read == [(8, 8)]*2
