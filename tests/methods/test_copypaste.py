"""CopyPaste: classes of the partner's mask, against a slow and literal version of the algorithm."""
import copy
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from fastai.torch_core import TensorMask
from fastai.vision.data import SegmentationDataLoaders
from fastai.data.transforms import get_image_files
from fastai.vision.augment import Resize
from torch import nn

from bench import gpu, peers
from fastmix.all import Batch, CopyPaste, CutMix, Mask, MixChoice, MixedBatch, MixUp, check_mixer, mix_rng, show_mix
from helpers import Spy, learner, loaders


def masks(n=6, size=(12, 10), classes=5, seed=0):
    "Blocks of classes, so that a mask has some of them and not others"
    rng = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, classes, (n, *[-(-side//4) for side in size]), generator=rng)
    for dim, side in enumerate(size, 1): blocks = blocks.repeat_interleave(4, dim).narrow(dim, 0, side)
    return blocks


def images(n=6, size=(12, 10)): return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def literal(x, y, partner, keys, share, classes, ignore):
    "The algorithm in loops, with the random number of each class as it was drawn: image, mask and what was chosen"
    x, y, keys = x.numpy().copy(), y.numpy().copy(), np.asarray(keys)
    new_x, new_y, chosen = x.copy(), y.copy(), []
    for i, j in enumerate(partner):
        there = [c for c in np.unique(y[j]) if 0 <= c < 256 and (classes is None or c in classes) and c not in ignore]
        there.sort(key=lambda c: -keys[j % len(keys), c+1])
        pasted = there[:max(1, math.floor(share*len(there) + 1e-9))]
        for place in np.ndindex(y.shape[1:]):
            if y[(j, *place)] not in pasted: continue
            new_y[(i, *place)] = y[(j, *place)]
            new_x[(i, slice(None), *place)] = x[(j, slice(None), *place)]
        chosen.append(pasted)
    return new_x, new_y, chosen


@pytest.mark.parametrize('size', [(12, 10), (17,), (4, 5, 6), (1, 9), (1, 1)], ids=str)
@pytest.mark.parametrize('given', [{}, dict(ignore=[0, 3]), dict(classes=[1, 2, 4], share=1.), dict(share=.3, ignore=(4,)), dict(share=.8), dict(per='batch')], ids=str)
def test_it_is_the_algorithm(size, given):
    x, y = images(7, size), masks(7, size)
    mixer = CopyPaste(**given)
    under = MixedBatch(mixer, Batch((x,), (TensorMask(y),)), mix_rng(2))
    rng = mix_rng(2) # The same draws again: λ, which is not used, the partner, then a number for each class
    rng.beta(1, 1, 1 if mixer.per == 'batch' else 7)
    shift = rng.integers(1, 7)
    keys = rng.random((1 if mixer.per == 'batch' else 7, len(mixer.allowed)), dtype=np.float32)
    partner = (np.arange(7) + shift) % 7
    new_x, new_y, chosen = literal(x, y, partner, keys, mixer.share, mixer.classes, mixer.ignore)
    assert (under.mix.partner.numpy() == partner).all() and type(under.mix) is Mask
    assert np.array_equal(under.inputs()[0], new_x) and np.array_equal(under.labels()[0], new_y)
    kept = np.array([(~np.isin(y[j], found)).mean() for j, found in zip(partner, chosen)])
    np.testing.assert_allclose(under.mix.lam, kept, atol=1e-6)
    assert min(size) == 1 or any(chosen)


@pytest.mark.parametrize('share, wanted', [(.01, 1), (.3, 3), (.5, 5), (.99, 9), (1., 10)])
def test_how_many_classes_and_each_as_often(share, wanted):
    "Of ten; how often each is chosen, within five standard errors"
    y = torch.arange(10).view(1, 2, 5).expand(2, -1, -1)
    mixer, rng, draws = CopyPaste(share=share), mix_rng(0), 1500
    pasted = torch.stack([~mixer.draw_mix(Batch((images(2, (2, 5)),), (y,)), rng).own.flatten(1) for _ in range(draws)])
    assert (pasted.sum(2) == wanted).all()
    p = wanted/10
    assert (pasted.float().mean((0, 1)) - p).abs().max() <= 5*math.sqrt(p*(1-p)/(2*draws)) + 1e-6
    if share == .5: assert not torch.equal(pasted[:, 0], pasted[:, 1]) # Each sample draws


def test_per_batch_the_same_classes_come_first():
    y = torch.arange(10).view(1, 2, 5).expand(4, -1, -1)
    for seed in range(10):
        own = CopyPaste(per='batch').draw_mix(Batch((images(4, (2, 5)),), (y,)), mix_rng(seed)).own
        assert (own == own[0]).all()


@pytest.mark.parametrize('void', [255, -100, 300, 3])
def test_what_the_loss_ignores_is_never_pasted(void):
    "-100 and 300 aren't, even if nobody says so"
    y = masks(8, classes=4)
    y[y == 3] = void
    for seed in range(20):
        mix = CopyPaste(share=1., ignore=[void] if void in (255, 3) else []).draw_mix(Batch((images(8),), (y,)), mix_rng(seed))
        pasted = mix.others(y)[~mix.own]
        assert pasted.numel() and not (pasted == void).any()


def test_larger_numbers_are_pasted_where_they_are_named():
    y = torch.tensor([0, 1000]).repeat(4, 3, 2)
    mix = CopyPaste([1000]).draw_mix(Batch((images(4, (3, 4)),), (y,)), mix_rng(0))
    assert torch.equal(mix.own, y == 0)


def test_without_an_allowed_class_a_sample_stays():
    y = masks()
    y[:3] = 0
    x = images()
    under = MixedBatch(CopyPaste(ignore=[0]), Batch((x,), (TensorMask(y),)), mix_rng(0))
    clean = under.mix.partner < 3
    assert clean.any() and torch.equal(under.inputs()[0][clean], x[clean]) and (under.mix.lam[clean] == 1).all() and (under.mix.lam[~clean] < 1).all()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64, torch.int32, torch.bool], ids=str)
@pytest.mark.parametrize('channel', [False, True])
def test_masks_of_every_kind(dtype, channel):
    y = masks(classes=2).to(dtype)
    expected = CopyPaste().draw_mix(Batch((images(),), (masks(classes=2),)), mix_rng(1)).own
    under = MixedBatch(CopyPaste(), Batch((images(),), (y[:, None] if channel else y,)), mix_rng(1))
    assert torch.equal(under.mix.own, expected) and under.labels()[0].dtype == dtype


@pytest.mark.parametrize('size, grid', [((24, 20), (12, 10)), ((12, 10), (24, 20)), ((12, 10), (36, 30))])
def test_a_mask_on_another_grid(size, grid):
    x, y = images(6, size), masks(6, grid)
    under = MixedBatch(CopyPaste(ignore=[0]), Batch((x,), (TensorMask(y),)), mix_rng(0))
    own = under.mix.own
    assert own.shape[1:] == grid and torch.equal(under.labels()[0], torch.where(own, y, y[under.mix.partner]))
    if size > grid: weight = F.interpolate(own[:, None].float(), size, mode='nearest')
    else: weight = F.avg_pool2d(own[:, None].float(), (grid[0]//size[0], grid[1]//size[1]))
    torch.testing.assert_close(under.inputs()[0], weight*x + (1-weight)*x[under.mix.partner])


# What it is not for

@pytest.mark.parametrize('y', [(torch.arange(6),), (torch.rand(6, 1, 12, 10),), (torch.zeros(6, 4, 12, 10).long(),), (torch.zeros(6, 3, 9).long(),), ()],
                         ids=['classes', 'floats', 'one mask a class', 'another size', 'none'])
def test_without_a_mask_it_is_refused(y):
    with pytest.raises(TypeError, match='CopyPaste is for segmentation.*CutMix'): MixedBatch(CopyPaste(), Batch((images(),), y), mix_rng(0))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match='CopyPaste mixes places.*MixUp'): MixedBatch(CopyPaste(), Batch((torch.rand(6, 4),), (torch.arange(6),)), mix_rng(0))


@pytest.mark.parametrize('given, error, text', [
    (dict(share=0), ValueError, '`share`'), (dict(share=1.1), ValueError, '`share`'), (dict(share='half'), TypeError, '`share`'), (dict(share=math.nan), ValueError, '`share`'),
    (dict(classes=[]), ValueError, 'nothing to paste'), (dict(classes=[1], ignore=[1]), ValueError, 'nothing to paste'), (dict(classes=[-1]), ValueError, '`classes`'),
    (dict(classes=3), TypeError, '`classes`'), (dict(classes=[1.5]), TypeError, '`classes`'), (dict(ignore='void'), TypeError, '`ignore`'), (dict(ignore=None), TypeError, '`ignore`'),
    (dict(alpha=1.), TypeError, 'no `alpha`'), (dict(per='pixel'), ValueError, '`per`')], ids=str)
def test_arguments_that_make_no_sense(given, error, text):
    with pytest.raises(error, match=text): CopyPaste(**given)


def test_arguments_are_kept():
    mixer = CopyPaste(range(1, 4), ignore={2})
    assert (mixer.classes, mixer.ignore, mixer.share) == ([1, 2, 3], [2], .5)


# In training

class Pixels(nn.Module):
    "A network without neighbours, that keeps what it was given"
    def __init__(self, classes=5):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 1)

    def forward(self, x): return self.layer(x)


def closure(pred, y): return F.cross_entropy(pred, y).sqrt()


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(ignore_index=0), CrossEntropyLossFlat(axis=1), nn.CrossEntropyLoss(weight=torch.tensor([1., 2., .5, 3., 1.])), FocalLossFlat(axis=1), closure],
                         ids=['ignore', 'flat', 'weights', 'focal', 'closure'])
@pytest.mark.parametrize('mask', [torch.Tensor, TensorMask])
@pytest.mark.parametrize('per', ['sample', 'batch'])
@pytest.mark.filterwarnings('error:.*one λ')
def test_the_loss_is_that_of_the_pasted_mask(loss, mask, per):
    x, y = images(24), masks(24)
    learn = learner([CopyPaste(ignore=[4], per=per, seed=1), spy := Spy()], loss, Pixels(), loaders((x, [mask(o) if mask is TensorMask else o for o in y]), bs=8))
    learn.fit(1)
    assert len(spy.rows) == 2
    for row in spy.rows:
        own, partner = row.mix.own, row.mix.partner
        target = torch.where(own, row.y[0].as_subclass(torch.Tensor), row.y[0].as_subclass(torch.Tensor)[partner])
        torch.testing.assert_close(row.x[0].as_subclass(torch.Tensor), torch.where(own[:, None], row.copy[0], row.copy[0][partner]))
        torch.testing.assert_close(row.loss.as_subclass(torch.Tensor), loss(row.pred.as_subclass(torch.Tensor), target))
        assert torch.equal(row.own[0], row.copy[0]) and not own.all()


def class_and_mask(pred, label, mask, reduction='mean'):
    values = F.cross_entropy(pred, mask, reduction='none').mean((1, 2)) + F.cross_entropy(pred.mean((2, 3)), label, reduction='none')
    return values.mean() if reduction == 'mean' else values


def test_a_class_beside_the_mask_is_weighted_by_what_was_kept():
    x, y, label = images(24), masks(24), torch.arange(24) % 5
    learn = learner([CopyPaste(seed=1), spy := Spy()], class_and_mask, Pixels(), loaders((x, label, y), bs=8))
    for dl in learn.dls: dl.n_inp = 1
    learn.fit(1)
    for row in spy.rows:
        label, mask = row.y
        mask = torch.where(row.mix.own, mask, mask[row.mix.partner])
        values = [class_and_mask(row.pred, o, mask, 'none') for o in (label, label[row.mix.partner])]
        torch.testing.assert_close(row.loss, (row.mix.lam*values[0] + (1-row.mix.lam)*values[1]).mean())


@pytest.mark.filterwarnings('ignore:.*one λ per sample')
def test_a_class_beside_the_mask_and_a_loss_that_is_one_number_are_refused():
    learn = learner([CopyPaste(seed=1)], lambda pred, label, mask: class_and_mask(pred, label, mask), Pixels(), loaders((images(24), torch.arange(24) % 5, masks(24)), bs=8))
    for dl in learn.dls: dl.n_inp = 1
    with pytest.raises(ValueError, match='CopyPaste weighs the labels of each sample'): learn.fit(1)


def test_in_a_choice_and_beside_the_clean_batch():
    for mixer in MixChoice(CopyPaste(), CutMix(), MixUp(), seed=0), CopyPaste(beside=True, seed=0):
        learner([mixer], nn.CrossEntropyLoss(), Pixels(), loaders((images(24), masks(24)), bs=8)).fit(2)


@pytest.mark.parametrize('per', ['sample', 'batch'])
@pytest.mark.parametrize('size', [(20, 30), (8, 8), (9,), (3, 5, 4)])
def test_it_keeps_what_a_mixer_promises(per, size):
    check_mixer(CopyPaste(per=per), size, draws=4)
    check_mixer(CopyPaste(per=per), size, y=masks(6, size), draws=4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('n', [2, 7])
def test_dtype_layout_and_odd_batches(dtype, layout, n):
    x, y = images(n).to(dtype).contiguous(memory_format=layout), masks(n)
    mix = CopyPaste().draw_mix(Batch((x,), (y,)), mix_rng(1))
    out, = mix.inputs((x,))
    assert out.dtype == dtype and out.stride() == x.stride() and torch.equal(out, torch.where(mix.own[:, None], x, x[mix.partner]))


def test_it_goes_on_in_a_copy_and_after_a_stop():
    batch = Batch((images(),), (masks(),))
    def draws(mixer): return [mixer.draw_mix(batch, mixer.rng).own.tolist() for _ in range(3)]
    one, other = CopyPaste(), CopyPaste()
    one.rng = mix_rng(4)
    draws(one)
    other.load_state_dict(one.state_dict())
    assert draws(copy.deepcopy(one)) == draws(other) == draws(one)


def test_a_source_gives_the_masks():
    "What is chosen is read off the partner's mask, not the own one"
    batch = Batch((images(4),), (torch.zeros(4, 12, 10).long(),))
    batch.source = Batch((images(4) + 1,), (masks(4),))
    under = MixedBatch(CopyPaste(share=1., ignore=[0]), batch, mix_rng(0))
    y = batch.source.yb[0][under.mix.partner]
    assert torch.equal(under.mix.own, y == 0) and torch.equal(under.labels()[0], y)
    assert ((under.inputs()[0] >= 1) == (y > 0)[:, None]).all()


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    x, y = torch.rand(8, 3, 6, 4, device='meta'), torch.zeros(8, 6, 4, dtype=torch.long, device='meta')
    step = gpu.training_step(peers.learner(x, y, CopyPaste(ignore=[0], seed=0), nn.CrossEntropyLoss(), nn.Conv2d(3, 5, 1, device='meta')), x, y)
    for _ in range(3): assert step().shape == ()


def test_drawing_reads_the_masks_only_twice():
    "3 to 4 ms for 64 of 224×224; more than four times that would be something else. The shortest of some, as other processes may be running"
    batch, rng, took = Batch((torch.rand(64, 1, 224, 224),), (masks(64, (224, 224), 12),)), mix_rng(0), []
    for _ in range(8):
        start = time.perf_counter()
        CopyPaste().draw_mix(batch, rng)
        took.append(time.perf_counter() - start)
    assert min(took) < .06, took


def test_on_photographs_of_streets(data):
    "CamVid's: void is never pasted, all of a chosen class is, and the picture is drawn"
    folder = data/'camvid_tiny'
    if not folder.is_dir(): pytest.skip(f'{folder} is not there')
    names = np.loadtxt(folder/'codes.txt', dtype=str)
    void = list(names).index('Void')
    dls = SegmentationDataLoaders.from_label_func(folder, get_image_files(folder/'images').sorted()[:24], codes=names, bs=8, num_workers=0, seed=0, item_tfms=Resize((48, 64), method='squish'),
                                                  label_func=lambda path: folder/'labels'/f'{path.stem}_P{path.suffix}')
    xb, yb = dls.one_batch()
    y, few = yb.as_subclass(torch.Tensor), 0
    for seed in range(5):
        mix = CopyPaste(ignore=[void]).draw_mix(Batch((xb,), (yb,)), mix_rng(seed))
        for kept, partner in zip(mix.own, y[mix.partner]):
            chosen, there = set(partner[~kept].tolist()), set(partner.flatten().tolist()) - {void}
            assert len(chosen) == len(there)//2 and chosen <= there and torch.equal(~kept, torch.isin(partner, torch.tensor(sorted(chosen))))
        few += (mix.lam > .95).sum()
    assert few < 20
    assert show_mix(dls, CopyPaste(ignore=[void]), max_n=2, sources=True).shape[0] == 2
    learner([CopyPaste(ignore=[void], seed=0), spy := Spy()], CrossEntropyLossFlat(axis=1, ignore_index=void), nn.Conv2d(3, len(names), 1), dls).fit(1)
    assert all(torch.isfinite(row.loss) for row in spy.rows)
