"""Every library's way to mix one batch: fastmix, fastai, timm, torchvision, kornia, and keras on its torch backend.

A way is a function without arguments that mixes the batch `x`, `y` and returns the mixed inputs. Each is the library's
documented call with its documented arguments, on plain tensors, with labels as it takes them. λ comes from the same distribution wherever
it can be chosen: Beta(.4, .4) for MixUp, Beta(1, 1) for CutMix.
"""
import importlib.util
import inspect
import os
import re
from itertools import product
from types import SimpleNamespace

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from torch import nn

import fastmix.all as ours
from fastmix.all import mix_rng
from fastmix.mixer import example_batch

ALPHA = {'MixUp': .4, 'CutMix': 1.}
SIDES = .2, .8
CLASSES = 10
LIBRARIES = 'fastmix', 'fastai', 'timm', 'torchvision', 'kornia', 'keras'
missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]


def way(library, name, method, per, run, in_place=False, kind='call'):
    return SimpleNamespace(library=library, name=name, method=method, per=per, run=run, in_place=in_place, kind=kind)


def learner(x, y, cbs, loss_func=None, model=None):
    "A `Learner` in the midst of training, that runs only the callback `cbs`"
    learn = Learner(DataLoaders(*[DataLoader([(x[0], y[0])])]*2, device=x.device), nn.Identity() if model is None else model,
                    loss_func=loss_func or CrossEntropyLossFlat(), cbs=cbs)
    for cb in learn.cbs[:]:
        if cb is not cbs: learn.remove_cb(cb)
    learn.training, learn.pct_train, learn.n_epoch, learn.epoch = True, 0., 1, 0
    for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)
    return learn


class Same:
    "A loader that gives the same batch `n` times"
    def __init__(self, x, y, n): self.x, self.y, self.n, self.device = x, y, n, x.device
    def __iter__(self): return ((self.x, self.y) for _ in range(self.n))
    def __len__(self): return self.n


def callback_step(mixer, x, y):
    "The callback's events of one batch"
    learn = learner(x, y, mixer)

    def run():
        learn.xb, learn.yb = (x,), (y,)
        learn('before_batch')
        mixed = learn.xb[0]
        learn('after_batch')
        learn.xb = learn.yb = None
        return mixed
    return run


def masks(n, size, classes=4, parts=14):
    "Masks `(n, *size)` of blocks, as a class of a photograph has its areas: `parts` of them to a side"
    y = torch.randint(0, classes, (n, *[parts]*len(size)), generator=torch.Generator().manual_seed(0))
    for dim, side in enumerate(size, 1): y = y.repeat_interleave(-(-side//parts), dim).narrow(dim, 0, side)
    return y.contiguous()


def every_method(shape):
    """Every method of fastmix that mixes the input itself, and a batch of `shape` that it is for: name, mixer, batch, 'batch' or 'sample'.

    Of a table the first two sides are its rows and columns.
    """
    for cls, per in product(ours.all_mixers.values(), ('batch', 'sample')):
        arguments = inspect.signature(cls).parameters
        if cls is ours.MixChoice: continue
        mixer = cls(seed=0, **(dict(per=per) if 'per' in arguments else {}), **(dict(counts=[1]*CLASSES) if 'counts' in arguments else {}))
        if mixer.per != per: continue
        batch = example_batch(mixer.data, shape)
        if mixer.data == 'mask': batch.yb = masks(shape[0], shape[2:]),
        if mixer.place(batch, mix_rng(0)) is None and (not mixer.places or len(batch.size) in mixer.places): yield cls.__name__, mixer, batch, per


def fastmix(x, y):
    "The methods that other libraries have as well"
    for method, per in product(ALPHA, ('batch', 'sample')):
        mixer, rng = getattr(ours, method)(per=per, seed=0), mix_rng(0)
        yield way('fastmix', f"{method}(per='{per}')", method, per, lambda mixer=mixer, rng=rng: mixer.draw_mix(ours.Batch((x,)), rng)(x))
        yield way('fastmix', f"{method}(per='{per}')", method, per, callback_step(mixer, x, y), kind='callback')


def with_argument(cls, argument, value, shown, x, y):
    "A method with an argument, per batch and per sample; `kind` is the argument"
    for per in 'batch', 'sample':
        mixer = cls(per=per, seed=0, **{argument: value})
        yield way('fastmix', f"{cls.__name__}({argument}={shown or repr(value)}, per='{per}')", cls.__name__, per, callback_step(mixer, x, y), kind=argument)


def arguments(x, y):
    "The callbacks of methods with an argument that changes what they cost, and peers that have the same argument"
    yield from with_argument(ours.MixUp, 'k', 3, None, x, y)
    yield from with_argument(ours.MixUp, 'source', Same(x.flip(0), y, 1), 'loader', x, y)
    for partner in 'same', 'other': yield from with_argument(ours.MixUp, 'partner', partner, None, x, y)
    yield from with_argument(ours.CutMix, 'sides', SIDES, None, x, y)
    if 'timm' in missing: return
    from timm.data.mixup import Mixup
    for mode, per in ('batch', 'batch'), ('elem', 'sample'):
        mixup = Mixup(mixup_alpha=0., cutmix_minmax=SIDES, mode=mode, num_classes=CLASSES)
        yield way('timm', f"Mixup(cutmix_minmax={SIDES}, mode='{mode}')", 'CutMix', per, lambda mixup=mixup: mixup(x, y)[0], in_place=True, kind='sides')


def with_masks(x, y):
    "The callbacks that take what belongs to a class from another image, and its mask `y` along with it; and the peer that does"
    yield from with_argument(ours.CopyPaste, 'share', .5, None, x, y)
    if 'kornia' in missing: return
    from kornia.augmentation import RandomTransplantation
    transplant = RandomTransplantation(p=1.)
    yield way('kornia', 'RandomTransplantation(p=1.)', 'CopyPaste', 'sample', lambda: transplant(x, y)[0], kind='share')


def fastai(x, y):
    import fastai.callback.mixup as theirs
    yield way('fastai', 'MixUp()', 'MixUp', 'sample', callback_step(theirs.MixUp(), x, y), kind='callback')
    yield way('fastai', 'CutMix()', 'CutMix', 'batch', callback_step(theirs.CutMix(), x, y), in_place=True, kind='callback')


def timm(x, y):
    from timm.data.mixup import Mixup
    for method, setting in ('MixUp', 'mixup_alpha'), ('CutMix', 'cutmix_alpha'):
        if x.ndim > 4 and method == 'CutMix': continue # it would cut along the first two of three dimensions
        for mode, per in ('batch', 'batch'), ('pair', 'pair'), ('elem', 'sample'):
            alphas = {'mixup_alpha': 0., 'cutmix_alpha': 0., setting: ALPHA[method]}
            mixup = Mixup(**alphas, mode=mode, num_classes=CLASSES)
            yield way('timm', f"Mixup({setting}, mode='{mode}')", method, per, lambda mixup=mixup: mixup(x, y)[0], in_place=True)


def torchvision(x, y):
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    images = tv_tensors.Video(x) if x.ndim > 4 else x # its only type with five dimensions
    for method in 'MixUp', 'CutMix':
        transform = getattr(v2, method)(alpha=ALPHA[method], num_classes=CLASSES)
        yield way('torchvision', f'v2.{method}', method, 'batch', lambda transform=transform: transform(images, y)[0].as_subclass(torch.Tensor))


def kornia(x, y):
    from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
    for same, per in (True, 'batch'), (False, 'sample'):
        mixup = RandomMixUpV2(same_on_batch=same, data_keys=['input', 'class'])
        cutmix = RandomCutMixV2(same_on_batch=same, use_correct_lambda=True, data_keys=['input', 'class'])
        for method, augmentation in ('MixUp', mixup), ('CutMix', cutmix):
            yield way('kornia', f'{type(augmentation).__name__}(same_on_batch={same})', method, per,
                      lambda augmentation=augmentation: augmentation(x, y)[0])


def keras(x, y):
    os.environ.update(KERAS_BACKEND='torch', KERAS_TORCH_DEVICE=x.device.type) # read when it is imported
    from keras import layers
    last = x.ndim == 4 and not x.is_contiguous()
    settings = dict(data_format='channels_last' if last else 'channels_first', dtype=str(x.dtype).split('.')[-1])
    images = x.permute(0, 2, 3, 1) if last else x # the same memory, in the layout that it is told
    labels = torch.eye(CLASSES, device=y.device)[y]
    for method, layer in ('MixUp', layers.MixUp(ALPHA['MixUp'], **settings)), ('CutMix', layers.CutMix(1., **settings)):
        def run(layer=layer):
            mixed = layer({'images': images, 'labels': labels})['images']
            return mixed.permute(0, 3, 1, 2) if last else mixed
        yield way('keras', f'layers.{method}', method, 'sample', run)


def ways(x, y, refused=()):
    "Every way that is installed, but those of the names in `refused`"
    found = [w for name in LIBRARIES if name not in missing for w in globals()[name](x, y)]
    return [w for w in found if f'{w.library} {w.name}' not in refused]


def reason(error):
    "The first line of an error that says something: not fastai's about the event in which it occurred, and without colours"
    lines = [line.strip() for line in re.sub(r'\x1b\[\d+m', '', str(error)).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith('Exception')), type(error).__name__)


def refusals(x, y, offers=ways):
    """What goes wrong with such a batch, by the name of the way: the first line of the error. `x` is a small one from `numbered`.

    Nothing may go wrong in fastmix.
    """
    found = {}
    for way in offers(x, y):
        before = x.clone()
        try: check(way, x)
        except Exception as error:
            if way.library == 'fastmix': raise
            found[f'{way.library} {way.name}'] = reason(error)
        x.copy_(before)
    return found


def check(way, x):
    """Refuse a way that does not mix `x`, whose sample `i` must be filled with the number `i`.

    A blend is one value per sample, between the smallest and the largest; of a paste, each place is a whole sample's value, and a sample
    has two at most.
    """
    before, out = x.clone(), way.run()
    what = f'{way.library} {way.name}, {way.kind}'
    assert out.shape == x.shape and out.dtype == x.dtype and out.device == x.device, f'{what}: {out.dtype}, {tuple(out.shape)}'
    rows = out.reshape(len(x), -1)
    if way.method == 'MixUp':
        low, high = rows.float().aminmax(dim=1)
        assert (high-low < .05).all() and low.min() > -.05 and high.max() < len(x)-.95, f'{what} does not blend'
    else:
        assert torch.isin(rows.float(), torch.arange(len(x), device=x.device).float()).all() and max(len(row.unique()) for row in rows) <= 2, f'{what} does not paste'
    if not way.in_place: assert torch.equal(x, before), f'{what} writes into its batch'


def laid_out(x, dtype, layout):
    return x.to(getattr(torch, dtype)).contiguous(memory_format=torch.channels_last if layout == 'channels_last' else torch.contiguous_format)


def numbered(shape, dtype, layout):
    "A batch whose sample `i` is filled with the number `i`, and its labels"
    n = shape[0]
    x = torch.arange(n).view(n, *[1]*(len(shape)-1)).repeat(1, *shape[1:])
    return laid_out(x, dtype, layout), torch.arange(n) % CLASSES


def formula(mix, x):
    "What a mix of fastmix must make of `x`, sample by sample"
    lam, rows = mix.lam.expand(mix.n).to(torch.float64), []
    for i, (own, partner) in enumerate(zip(x.double(), x[mix.partner].double())):
        if mix.size is None: rows.append(lam[i]*own + (1-lam[i])*partner)
        else:
            region = mix.region[i if len(mix.region) > 1 else 0]
            cells = (..., *(slice(*side) for side in region.tolist()))
            rows.append(own.clone())
            rows[-1][cells] = partner[cells]
    return torch.stack(rows).to(x.dtype)


def check_formula(x, y):
    "Refuse fastmix itself unless calls and callbacks give what the formula says"
    for method, per in ('MixUp', 'batch'), ('MixUp', 'sample'), ('CutMix', 'batch'), ('CutMix', 'sample'):
        mixer = getattr(ours, method)(per=per, seed=0)
        learn = learner(x, y, mixer)
        learn.xb, learn.yb = (x,), (y,)
        learn('before_batch')
        for out in learn.xb[0], mixer.mix(x):
            torch.testing.assert_close(out, formula(mixer.mix, x), rtol=0, atol=4*torch.finfo(x.dtype).eps)
            assert out.stride() == x.stride(), f'{x.stride()} became {out.stride()}'
        learn('after_batch')
