"""MixUp, CutMix and their kin as one callback for any fastai Learner

fastmix trains a fastai `Learner` on **mixed samples**. Put `MixUp()` or `CutMix()` into `cbs`, and each training batch is mixed before the forward pass, inputs and targets alike. Class numbers can't be mixed, so for those the loss is weighted instead. Validation stays clean. Any loss function works. Stop with Ctrl-C, and your learner has its own loss back. And you can look at what your network saw.

Modules:

- `fastmix.batch`: What a method of mixing sees of a batch, and how its inputs and targets are mixed
- `fastmix.compare.cli`: One command that trains with and without mixing, and shows what came of it
- `fastmix.compare.run`: Does mixing help on your data? Train with and without it, paired by seed, and see
- `fastmix.data`: Images for a comparison: handwritten digits without a download, or your folder of photographs
- `fastmix.loss`: The loss of a mixed sample, for any loss function
- `fastmix.methods.augmix`: Asks for the same prediction for an image and two augmented views of it. Nothing is mixed between samples
- `fastmix.methods.cmixup`: MixUp for regression: a sample's partner is likelier the nearer their targets are
- `fastmix.methods.copypaste`: For segmentation: pastes what belongs to some of the partner's classes, image and mask alike
- `fastmix.methods.cutmix`: Trains on samples with a region of another pasted in, and asks for both labels by their share of the pixels
- `fastmix.methods.fmix`: Trains on samples with blobs of another in them, cut out of low-frequency noise, and asks for both labels by their share of the places
- `fastmix.methods.gmix`: Trains on samples into which another fades, around a place that's drawn, so that there's no edge to be seen
- `fastmix.methods.guidedmixup`: Averages two images pixel by pixel, in favour of the one that stands out more there, and pairs images that stand out at different places
- `fastmix.methods.hmix`: Trains on samples with a region of another pasted in, and more of it shining through around, between CutMix and MixUp
- `fastmix.methods.manifold_mixup`: Trains on averages of what two samples have become inside the network, at a layer that is drawn for each batch
- `fastmix.methods.mix_choice`: Draws one of several mixers for each batch, so that a network is trained on more than one way of mixing
- `fastmix.methods.mixup`: Trains on weighted averages of two samples or more, and asks for the same average of their labels
- `fastmix.methods.patchmix`: Trains on samples with some of their patches from another, scattered or in blocks, and asks for both labels by their share of the places
- `fastmix.methods.remix`: MixUp for imbalanced classes: where a rare class is mixed with a common one, the label is the rare one's
- `fastmix.methods.resizemix`: Trains on samples with the whole of another, made small, pasted in, so that what the label names is there
- `fastmix.methods.ricap`: Trains on four images in one: a crop of each, tiled around a point, and labels by the area of the tiles
- `fastmix.methods.saliencymix`: Pastes a region around the partner's most conspicuous place, so that the region shows something
- `fastmix.methods.specmix`: Trains on spectrograms with bands of frequency and of time from another, and asks for both labels by their share of the cells
- `fastmix.methods.tabularswap`: Trains on rows of a table in which some columns are another row's: swap noise, and CutMix for tables
- `fastmix.methods.transmix`: Pastes regions as CutMix does, and lets a vision transformer say how much each label counts: by what its class token attends to
- `fastmix.metric`: What a metric means when the samples are mixed
- `fastmix.mix`: What a mixed sample is made of: a weighted average, a pasted region, or a weight for each place
- `fastmix.mixer`: One callback in `cbs`, and a `Learner` trains on mixed samples
- `fastmix.show`: Pictures of a mixed batch, as it would be trained on next; of one pair under several mixers; and of what alpha does"""

__version__ = "0.1.0"
