"""Six published methods, written as a user would write them: what the architecture is measured by.

ResizeMix brings a kind of mix of its own; FMix draws a mask; SaliencyMix looks at the inputs, C-Mixup at the targets;
RegMixup trains on the clean batch, too; TransMix asks the network how much a label counts.
"""
import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

<<<<<<< HEAD
import fastmix.all
from fastmix.all import Blend, Mask, Mixer, MixUp, Paste, draw_partner
=======
from fastmix.all import Blend, CutMix, FMix, Mixer, MixUp, Paste, draw_partner, region_around, unwrap  # noqa: F401
>>>>>>> main


class Shrunk(Paste):
    "The whole partner, shrunk into a region of every sample"
    def __call__(self, t, source=None):
        out, partners = t.clone(), self.others(t, source)
        how = InterpolationMode.BILINEAR if t.is_floating_point() else InterpolationMode.NEAREST_EXACT
        for i, ((top, bottom), (left, right)) in enumerate(np.broadcast_to(self.region, (self.n, 2, 2))):
            out[i, ..., top:bottom, left:right] = resize(partners[i:i+1], [bottom-top, right-left], interpolation=how)[0]
        return out


class ResizeMix(Mixer):
    "The whole partner is shrunk and pasted in: ResizeMix (arXiv 2012.11101)"
    places = 2,

    def draw(self, batch, lam, rng):
        side = np.maximum(1, np.rint(rng.uniform(.1, .8, (len(lam), 1))*batch.size))
        low = np.floor(rng.random(side.shape)*(batch.size - side + 1))
        return Shrunk(np.stack([low, low+side], -1).astype(int), batch.size, draw_partner(batch.n, rng))


<<<<<<< HEAD
class FMix(Mixer):
    "Places are chosen by a threshold on low-frequency noise: FMix (arXiv 2002.12047)"
    places = 1, 2, 3

    def draw(self, batch, lam, rng):
        return Mask(np.stack([self.mask(batch.size, share, rng) for share in lam]), draw_partner(batch.n, rng))

    def mask(self, size, lam, rng):
        waves = np.meshgrid(*map(np.fft.fftfreq, size[:-1]), np.fft.rfftfreq(size[-1]), indexing='ij')
        frequency = np.maximum(np.sqrt(sum(wave**2 for wave in waves)), 1/max(size))
        real, imaginary = rng.normal(size=(2, *frequency.shape))
        noise = np.fft.irfftn((real + 1j*imaginary)/frequency**3, size, axes=range(len(size)))
        return (noise.ravel().argsort().argsort() >= noise.size - round(lam*noise.size)).reshape(size)


class SaliencyMix(fastmix.all.SaliencyMix):
    "The published one, in every batch"
    def __init__(self, p=1., **kwargs): super().__init__(p=p, **kwargs)
=======
class SaliencyMix(Mixer):
    "The region lies around the partner's most salient pixel: SaliencyMix (arXiv 2006.01791), by spectral residual, per image"
    places = 2,

    def draw(self, batch, lam, rng):
        partner, waves = draw_partner(batch.n, rng), torch.fft.fft2(batch.x.float().mean(1))
        log = waves.abs().clamp(min=1e-8).log()
        residual = log - F.avg_pool2d(log[:, None], 3, 1, 1)[:, 0]
        salient = torch.fft.ifft2(torch.polar(residual.exp(), waves.angle())).abs().flatten(1).argmax(1)[partner]
        h, w = batch.size
        centre = torch.stack([(salient.div(w, rounding_mode='floor') + .5)/h, (salient % w + .5)/w], 1)
        return Paste(region_around(centre, lam, batch.size), batch.size, partner)
>>>>>>> main


class CMixUp(Mixer):
    "Partners with a similar target are likelier: C-Mixup (arXiv 2210.05775), for regression"
    def draw(self, batch, lam, rng):
        if not batch.y.is_floating_point(): raise TypeError(f'CMixUp is for regression, and the target is of {batch.y.dtype}: take MixUp')
        y = batch.y.float().view(batch.n, -1)
        likely = -torch.cdist(y/y.std(0), y/y.std(0))**2/(2*.5**2)
        gumbel = torch.from_numpy(rng.gumbel(size=likely.shape)).to(likely)
        return Blend(lam, (likely + gumbel).fill_diagonal_(-np.inf).argmax(1))


class RegMixUp(MixUp):
    "The clean batch beside the mixed one: RegMixup (arXiv 2206.14502)"
    def draw(self, batch, lam, rng): return [None, super().draw(batch, lam, rng)]


class TransMix(fastmix.all.TransMix):
    "The published one, for a network of these tests"
    def __init__(self, attention='attention', **kwargs): super().__init__(attention, **kwargs)
