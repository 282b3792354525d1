"""MixUp, CutMix and their kin as one callback for any fastai Learner

fastmix trains a fastai `Learner` on **mixed samples**: put `MixUp()` or `CutMix()` into `cbs`, and the inputs are rewritten before the forward pass, the loss is weighted accordingly, and validation stays clean. It takes any loss function and every kind of target that can be mixed, leaves nothing behind, whatever ends the training, and shows you what your network saw.

Modules:

- `fastmix.callback`: One callback in `cbs`, and a `Learner` trains on mixed samples
- `fastmix.cli`: One command that trains with and without mixing, and shows what came of it
- `fastmix.compare`: Does mixing help on your data? Train with and without it, paired by seed, and see
- `fastmix.data`: Labelled images for a comparison: handwritten digits at once, or a folder of photographs
- `fastmix.loss`: What a mixed sample should be called, for any loss function
- `fastmix.metric`: What a metric means while the samples are mixed
- `fastmix.mix`: Draw a mix for a batch, and apply it to any tensor of that batch
- `fastmix.show`: Pictures of a mixed batch, as it would be trained on next; of one pair under several mixers; and of what alpha does"""

__version__ = "0.1.0"
