"""Six published methods, written as a user would write them: what the architecture is measured by.

ResizeMix brings a kind of mix of its own; FMix draws a mask; SaliencyMix looks at the inputs, C-Mixup at the targets;
RegMixup trains on the clean batch, too; TransMix asks the network how much a label counts.
"""
import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

import fastmix.all
from fastmix.all import Blend, FMix, Mixer, MixUp, Paste, draw_partner  # noqa: F401


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


class SaliencyMix(fastmix.all.SaliencyMix):
    "The published one, in every batch"
    def __init__(self, p=1., **kwargs): super().__init__(p=p, **kwargs)


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
