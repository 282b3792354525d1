"""MixUp, CutMix and their kin as one callback for any fastai Learner

fastmix trains a fastai `Learner` on **mixed samples**. Put `MixUp()` or `CutMix()` into `cbs`, and each training batch is mixed before the forward pass, inputs and targets alike. Class numbers can't be mixed, so for those the loss is weighted instead. Validation stays clean. Any loss function works. Stop with Ctrl-C, and your learner has its own loss back. And you can look at what your network saw.

Modules:

- `fastmix.batch`: What a method of mixing sees of a batch, and how its inputs and targets are mixed
- `fastmix.compare.cli`: One command that trains with and without mixing, and reports the results
- `fastmix.compare.run`: Does mixing help on your data? Train with and without it, paired by seed, and see
- `fastmix.data`: Images for a comparison: handwritten digits without a download, or your folder of photographs
- `fastmix.loss`: The loss of a mixed sample, for any loss function
- `fastmix.methods.augmix`: Trains for the same prediction on an image and two augmented views of it; different samples aren't mixed
- `fastmix.methods.cmixup`: MixUp for regression: the nearer two targets are, the more likely their samples are mixed
- `fastmix.methods.copypaste`: For segmentation: pastes some of the partner's classes, image and mask alike
- `fastmix.methods.cutmix`: Trains on samples with a region of another pasted in; each label counts by its share of the pixels
- `fastmix.methods.fmix`: Trains on samples with blobs of another, cut out along low-frequency noise; each label counts by its share of the places
- `fastmix.methods.gmix`: Fades another sample into each, around a random place, so that you see no edge
- `fastmix.methods.guidedmixup`: Averages two images, and at each pixel favours the one that stands out more; pairs images that stand out at different places
- `fastmix.methods.hmix`: Between CutMix and MixUp: pastes a region of another sample, and averages both around it
- `fastmix.methods.manifold_mixup`: Averages two samples inside the network, at a layer that is drawn for each batch
- `fastmix.methods.mix_choice`: Draws one of several mixers for each batch
- `fastmix.methods.mixup`: Trains on weighted averages of two or more samples, and on the same averages of their labels
- `fastmix.methods.patchmix`: Trains on samples with some patches of another, scattered or in blocks; each label counts by its share of the places
- `fastmix.methods.remix`: MixUp for imbalanced classes: if a rare class is mixed with a common one, the label is the rare one
- `fastmix.methods.resizemix`: Shrinks the whole partner and pastes it in, so that you can see what its label names
- `fastmix.methods.ricap`: Trains on crops of four images, tiled around a point; each label counts by the area of its tile
- `fastmix.methods.saliencymix`: Pastes a region around the place that stands out most in the partner, so that the region shows something
- `fastmix.methods.specmix`: Trains on spectrograms with bands of frequency and time from another; each label counts by its share of the cells
- `fastmix.methods.tabularswap`: Trains on rows of a table with some columns from another row: swap noise, and CutMix for tables
- `fastmix.methods.transmix`: Pastes regions as CutMix does, and weights labels by what a vision transformer's class token attends to
- `fastmix.metric`: What a metric means when the samples are mixed
- `fastmix.mix`: What a mixed sample is made of: a weighted average, a pasted region, or a weight for each place
- `fastmix.mixer`: One callback in `cbs`, and a `Learner` trains on mixed samples
- `fastmix.show`: Pictures of the next mixed batch, of one pair under several mixers, and of what alpha does"""

__version__ = "0.1.0"
