"""MixUp, CutMix and their kin as one callback for any fastai Learner

Modules:

- `fastmix.callback`: One callback in `cbs`, and a `Learner` trains on mixed samples
- `fastmix.mix`: Draw a mix for a batch, and apply it to any tensor of that batch"""

__version__ = "0.1.0"
