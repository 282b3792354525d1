"""Published methods, written as a user would write them: what the architecture is measured by.

ResizeMix brings a kind of mix of its own; FMix draws a mask; SaliencyMix looks at the inputs;
RegMixup trains on the clean batch, too; TransMix asks the network how much a label counts.
"""
import fastmix.all
from fastmix.all import FMix, MixUp, ResizeMix  # noqa: F401


class SaliencyMix(fastmix.all.SaliencyMix):
    "The published one, in every batch"
    def __init__(self, p=1., **kwargs): super().__init__(p=p, **kwargs)


class RegMixUp(MixUp):
    "The clean batch beside the mixed one: RegMixup (arXiv 2206.14502)"
    def draw(self, batch, lam, rng): return [None, super().draw(batch, lam, rng)]


class TransMix(fastmix.all.TransMix):
    "The published one, for a network of these tests"
    def __init__(self, attention='attention', **kwargs): super().__init__(attention, **kwargs)
