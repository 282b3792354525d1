"""Faults of other libraries' mixing that were reported or read, tried on the releases that are installed: `python -m bench.faults`

Each check returns a verdict and what it saw. The verdicts: 'fine'; 'wrong', the result isn't what it should be; 'refused', an error says that there is
no such thing; 'in place', the batch is written to. An error that nobody foresaw ends the run. The table goes to nbs/experiments/results/faults.csv, which the page about faults reads;
rows of libraries that are not installed stay as they are.
"""
import os
import sys
import warnings
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from . import report

FILE = Path(__file__).parent.parent/'nbs/experiments/results/faults.csv'
COLUMNS = ['library', 'version', 'call', 'question', 'verdict', 'seen', 'date']
checks = []


def check(library, call, question):
    "Register a check, which returns its verdict and what it saw"
    def register(run):
        checks.append(SimpleNamespace(library=library, call=call, question=question, run=run))
        return run
    return register


def telling(n=8, size=(33, 47)):
    "Images whose sample `i` is 1 in channel `i` and 0 elsewhere, so that the mean of a channel is a share; and their class numbers"
    return torch.eye(n)[:, :, None, None].expand(n, n, *size).clone(), torch.arange(n)


def labels_off(draw, draws=50):
    "How far the labels of mixed telling images are from what the images show: the mean over the batches that `draw` returns"
    off = []
    for seed in range(draws):
        torch.manual_seed(seed)
        np.random.seed(seed)
        x, labels = draw(*telling())
        off.append((torch.as_tensor(x).double().mean((2, 3)) - torch.as_tensor(labels).double()).abs().sum(1).mean().item()/2)
    return np.mean(off)


def label_verdict(off): return ('wrong', f'labels are off by {off:.3f} on average') if off > .001 else ('fine', 'they do')


def answer(run, kinds, verdict='refused'):
    "`verdict` with the error, in a line, where `run` raises one of `kinds`; 'fine' where it raises none"
    try: run()
    except kinds as error: return verdict, f'{type(error).__name__}: {" ".join(str(error).split())}'.rstrip(': ')
    return 'fine', 'yes'


# timm


def timm(**kwargs):
    from timm.data.mixup import Mixup
    return Mixup(**dict(mixup_alpha=0., label_smoothing=0., num_classes=8) | kwargs)


for mode in 'batch', 'pair', 'elem':
    @check('timm', f"Mixup(cutmix_alpha=1., mode='{mode}')", 'Do labels count by what the image shows?')
    def _(mode=mode): return label_verdict(labels_off(lambda x, y: timm(cutmix_alpha=1., mode=mode)(x, y)))


@check('timm', 'Mixup()', 'Is a batch of odd length mixed?')
def _(): return answer(lambda: timm(mixup_alpha=1.)(*telling(7)), AssertionError)


@check('timm', 'Mixup()', 'Is the batch that it was given left alone?')
def _():
    x, y = telling()
    np.random.seed(0)
    timm(mixup_alpha=1.)(x, y)
    return ('fine', 'yes') if torch.equal(x, telling()[0]) else ('in place', 'it is written to')


@check('timm', 'Mixup(cutmix_minmax=(.2, .8))', 'Does the region reach the last row and column?')
def _():
    from timm.data.mixup import rand_bbox_minmax
    np.random.seed(0)
    _, high, _, right = np.array([rand_bbox_minmax((3, 16, 16), (.2, .8)) for _ in range(4000)]).T
    reached = [np.mean(end == 16) for end in (high, right)]
    return 'fine' if min(reached) else 'wrong', f'in {min(reached):.0%} of the draws for 16×16'


@check('timm', 'Mixup(cutmix_minmax=(.3, .45))', 'Is an image of 4×4 mixed, in which both bounds are one pixel?')
def _(): return answer(lambda: timm(cutmix_minmax=(.3, .45))(*telling(size=(4, 4))), ValueError, 'wrong')


# torchvision


@check('torchvision', 'v2.CutMix()', 'Do labels count by what the image shows?')
def _():
    from torchvision.transforms import v2
    return label_verdict(labels_off(v2.CutMix(num_classes=8)))


@check('torchvision', 'v2.MixUp()', 'Do labels count by what the image shows?')
def _():
    from torchvision.transforms import v2
    return label_verdict(labels_off(v2.MixUp(num_classes=8)))


@check('torchvision', 'v2.CutMix()', 'Are masks mixed with their images?')
def _():
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    x, y = telling()
    return answer(lambda: v2.CutMix(num_classes=8)(x, tv_tensors.Mask(torch.zeros(8, 33, 47)), y), ValueError)


# kornia


def kornia(name, own=False, **kwargs):
    "Call a mix of kornia's; labels as shares of the classes, with λ as the own share or as the partner's"
    import kornia.augmentation as augmentation
    mixer = getattr(augmentation, name)(data_keys=['input', 'class'], **kwargs)

    def draw(x, y):
        x, found = mixer(x, y)
        a, b, lam = found.reshape(-1, 3).unbind(1)
        a, b = torch.eye(8)[a.long()], torch.eye(8)[b.long()]
        return x, (lam if own else 1-lam)[:, None]*a + (1-lam if own else lam)[:, None]*b
    return draw


@check('kornia', 'RandomMixUpV2()', 'Do labels count by what the image shows? λ as its page says: the share of the partner')
def _(): return label_verdict(labels_off(kornia('RandomMixUpV2')))


@check('kornia', 'RandomCutMixV2()', 'Is λ the own share, as in the paper whose code it follows?')
def _(): return label_verdict(labels_off(kornia('RandomCutMixV2', own=True)))


@check('kornia', 'RandomCutMixV2(use_correct_lambda=True)', 'Is λ the own share, as in the paper whose code it follows?')
def _(): return label_verdict(labels_off(kornia('RandomCutMixV2', own=True, use_correct_lambda=True)))


def boxes(seed, n=8, **kwargs):
    "The corners of kornia's regions: first and last column and row of each sample"
    import kornia.augmentation as augmentation
    torch.manual_seed(seed)
    cutmix = augmentation.RandomCutMixV2(use_correct_lambda=True, **kwargs)
    cutmix(torch.zeros(n, 1, 16, 16))
    box = cutmix._params['crop_src'][0]
    return box[:, 0], box[:, 2]


@check('kornia', 'RandomCutMixV2()', 'Does the region reach the last row and column?')
def _():
    reached = torch.cat([boxes(seed)[1] for seed in range(500)]).eq(15).float().mean(0).min().item()
    return 'fine' if reached else 'wrong', f'in {reached:.0%} of the draws for 16×16'


@check('kornia', 'RandomCutMixV2()', 'Has each sample a place of its own?')
def _():
    places = [len(boxes(seed, cut_size=(.7, .7))[0].unique(dim=0)) for seed in range(50)]
    return 'fine' if max(places) > 1 else 'wrong', f'{np.mean(places):.1f} places in 8 samples, with regions of one size'


@check('kornia', 'RandomMixUpV2(p=.5)', 'Is half of the samples mixed?')
def _():
    import kornia.augmentation as augmentation
    mixed = []
    for seed in range(1000):
        torch.manual_seed(seed)
        mixer, x = augmentation.RandomMixUpV2(p=.5), torch.rand(8, 1, 4, 4)
        mixer(x)
        lam = mixer._params.get('mixup_lambdas', torch.zeros(8))*(mixer._params['batch_prob'] > 0)
        mixed.append((lam > 0).float().mean().item())
    return 'fine' if abs(np.mean(mixed) - .5) < .06 else 'wrong', f'{np.mean(mixed):.0%} are'


@check('kornia', 'augmentation.PatchMix()', 'Does it say how much each label counts?')
def _(): return answer(lambda: kornia('PatchMix', patch_size=8)(*telling()), NotImplementedError)


# keras


def keras(name, *args):
    import keras
    return getattr(keras.layers, name)(*args, data_format='channels_first', seed=0)


def keras_draw(layer): return lambda x, y: (lambda out: (out['images'], out['labels']))(layer({'images': x, 'labels': torch.eye(8)[y]}))


@check('keras', 'layers.MixUp()', 'Do labels count by what the image shows?')
def _(): return label_verdict(labels_off(keras_draw(keras('MixUp', .4))))


@check('keras', 'layers.CutMix()', 'Do labels count by what the image shows?')
def _(): return label_verdict(labels_off(keras_draw(keras('CutMix', 1.))))


@check('keras', 'layers.MixUp()', 'Are masks mixed with their images?')
def _():
    from keras import layers
    images = telling()[0].permute(0, 2, 3, 1)
    masks = images[..., :1] # so a mask must become what the first channel becomes
    out = layers.MixUp(.4, data_format='channels_last', seed=0)({'images': images, 'segmentation_masks': masks})
    masked = torch.as_tensor(out['segmentation_masks'])
    if masked.shape != masks.shape: return 'wrong', f'masks of shape {tuple(masks.shape)} become {tuple(masked.shape)}'
    off = (torch.as_tensor(out['images'])[..., :1] - masked).abs().mean().item()
    return ('fine', 'yes') if off < .001 else ('wrong', f'they are off by {off:.3f}')


@check('keras', 'layers.MixUp()', 'Has each image as many labels of boxes as boxes?')
def _():
    from keras import layers
    layer = layers.MixUp(.4, data_format='channels_last', seed=0, bounding_box_format='xyxy')
    boxes = {'boxes': torch.tensor([[0., 0., 4., 4.], [2., 2., 6., 6.]]).repeat(4, 1, 1), 'labels': torch.zeros(4, 2)}
    out = layer({'images': torch.zeros(4, 8, 8, 3), 'bounding_boxes': boxes})['bounding_boxes']
    boxes, labels = (tuple(out[name].shape) for name in ('boxes', 'labels'))
    return 'fine' if boxes[:2] == labels[:2] else 'wrong', f'boxes {boxes}, labels {labels}'


def installed(library): return find_spec(library) is not None


def run():
    "The table of all checks whose library is installed"
    os.environ.update(KERAS_BACKEND='torch', KERAS_TORCH_DEVICE='cpu')
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for o in checks:
            if not installed(o.library): continue
            rows.append((o.library, version(o.library), o.call, o.question, *o.run(), date.today().isoformat()))
    return pd.DataFrame(rows, columns=COLUMNS)


def main():
    table = run()
    kept = report.read(FILE)[COLUMNS] if FILE.exists() else pd.DataFrame(columns=COLUMNS)
    whole = pd.concat([table, kept[~kept.library.isin(table.library)]])
    report.write(whole, FILE)
    print(whole.to_string(index=False))
    missing = {o.library for o in checks} - set(whole.library)
    if missing: sys.exit(f'not installed: {", ".join(sorted(missing))}')


if __name__ == '__main__': main()
