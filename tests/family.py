"""Published methods, written as a user would write them: what the architecture is measured by.

ResizeMix brings a kind of mix of its own; FMix draws a mask; SaliencyMix looks at the inputs;
RegMixup trains on the clean batch, too; TransMix asks the network how much a label counts.
"""
import numpy as np
import torch
import torch.nn.functional as F

from fastmix.all import CutMix, FMix, Mixer, MixUp, Paste, ResizeMix, draw_partner, region_around, unwrap  # noqa: F401


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


class RegMixUp(MixUp):
    "The clean batch beside the mixed one: RegMixup (arXiv 2206.14502)"
    def draw(self, batch, lam, rng): return [None, super().draw(batch, lam, rng)]


class TransMix(CutMix):
    "Half of a label's weight is what the class token attends to: TransMix (arXiv 2111.09833)"
    reweighs = True

    def __init__(self, attention='attention', **kwargs):
        super().__init__(**kwargs)
        self.attention = attention

    def watch(self, learn): return self.attention, unwrap(learn.model).get_submodule(self.attention)

    def settle(self, mix, seen):
        row = seen.detach().mean(1)[:, 0, 1:]
        size = np.array(mix.size)
        grid = tuple(np.rint(size*(row.shape[1]/size.prod())**.5).astype(int).tolist())
        attended = (row*mix.own_at(grid).flatten(1)).sum(1)/row.sum(1)
        return .5*mix.lam + .5*attended
