"""Every task and every loss: inputs, targets and loss are what they must be, by hand from λ and the partners."""
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import ColReader, IndexSplitter, RandomSplitter, get_image_files
from fastai.learner import Learner
from fastai.losses import (BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, FocalLossFlat, L1LossFlat,
                           LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat, MSELossFlat)
from fastai.optimizer import SGD
from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from fastai.text.all import (AWD_LSTM, BaseTokenizer, TextBlock, awd_lstm_clas_config, masked_concat_pool,
                             text_classifier_learner)
from fastai.torch_core import TensorImage, TensorMask, apply
from fastai.vision.all import BBoxBlock, BBoxLblBlock, ImageBlock, MaskBlock, PILMask, PointBlock, Resize, aug_transforms
from fastcore.foundation import L
from torch import nn
from torch.testing import assert_close

from fastmix.all import Batch, Blend, CutMix, ManifoldMixUp, MixChoice, MixLoss, MixUp, Targets, mix_inputs, mix_rng, rotation
from helpers import Spy, check, check_all, learner, linear, loaders, mixed, samples

mixers = {f'{mixer.__name__}, per {per}': partial(mixer, per=per, seed=1) for mixer in (MixUp, CutMix) for per in ('sample', 'batch')}
every_mixer = pytest.mark.parametrize('mixer', mixers.values(), ids=mixers)
mixups, cutmixes = (pytest.mark.parametrize('mixer', [m for name, m in mixers.items() if kind in name], ids=['per sample', 'per batch'])
                    for kind in ('MixUp', 'CutMix'))
ones = torch.ones_like
quiet = pytest.mark.filterwarnings('ignore:.*cannot be weighted sample by sample')


class Watch(Spy):
    "Keeps all inputs and outputs of the model"
    def after_pred(self): self.row.x, self.row.pred = self.learn.xb, apply(torch.Tensor.detach, self.learn.pred)


def fit(mixer, loss, data, model=None, **kwargs):
    "What the spy saw of the batches of 8 that a model was trained on, all but the first 8 samples"
    spy = Watch()
    learner([mixer, spy], loss, model, loaders(data), **kwargs).fit(1)
    assert len(spy.rows) == len(data[0])//8 - 1 and any((row.mix.lam < 1).any() for row in spy.rows)
    return spy.rows


def shares(mix): return mix.lam.expand(mix.n)
def plain(t): return t.as_subclass(torch.Tensor)


# Single label

weight = torch.tensor([.1, 1., 10.])


def cross_entropy(pred, y, weight=torch.ones(3), smooth=0., ignore=None):
    "One value per sample, from the definition"
    log_probs = pred - pred.logsumexp(1, keepdim=True)
    wanted = (1-smooth)*torch.eye(3)[y] + smooth/3
    return -(wanted*log_probs*weight).sum(1) * (y != ignore)


def focal(pred, y, weight=torch.ones(3)):
    ce = cross_entropy(pred, y, weight)
    return (1 - (-ce).exp())**2 * ce


def share_of_batch(y): return torch.full(y.shape, 1/len(y))
def counted(y): return y != 1
def weight_of(y): return weight[y]


class Squares(nn.Module):
    "A user's loss that has a reduction"
    def __init__(self):
        super().__init__()
        self.reduction = 'mean'
    def forward(self, pred, y):
        values = squares(pred, y)
        return values.mean() if self.reduction == 'mean' else values


def squares(pred, y): return (pred.softmax(1) - torch.eye(3)[y]).pow(2).sum(1)


# the loss; by hand its value for each sample, and what each target counts in the mean
losses = {
    'CrossEntropyLossFlat': (CrossEntropyLossFlat(), cross_entropy, ones),
    'CrossEntropyLossFlat, weights': (CrossEntropyLossFlat(weight=weight), partial(cross_entropy, weight=weight), weight_of),
    'nn.CrossEntropyLoss': (nn.CrossEntropyLoss(), cross_entropy, ones),
    'nn.CrossEntropyLoss, weights': (nn.CrossEntropyLoss(weight=weight), partial(cross_entropy, weight=weight), weight_of),
    'nn.CrossEntropyLoss, ignore_index': (nn.CrossEntropyLoss(ignore_index=1), partial(cross_entropy, ignore=1), counted),
    'nn.CrossEntropyLoss, smoothed': (nn.CrossEntropyLoss(label_smoothing=.2), partial(cross_entropy, smooth=.2), ones),
    'nn.CrossEntropyLoss, everything': (nn.CrossEntropyLoss(weight=weight, ignore_index=1, label_smoothing=.2),
                                        partial(cross_entropy, weight=weight, smooth=.2, ignore=1), lambda y: weight[y]*(y != 1)),
    'nn.CrossEntropyLoss, sum': (nn.CrossEntropyLoss(reduction='sum'), cross_entropy, share_of_batch),
    'F.cross_entropy': (F.cross_entropy, cross_entropy, ones),
    'F.cross_entropy, weights': (partial(F.cross_entropy, weight=weight), partial(cross_entropy, weight=weight), weight_of),
    'LabelSmoothingCrossEntropy': (LabelSmoothingCrossEntropy(.2), partial(cross_entropy, smooth=.2), ones),
    'LabelSmoothingCrossEntropyFlat': (LabelSmoothingCrossEntropyFlat(eps=.2), partial(cross_entropy, smooth=.2), ones),
    'FocalLoss': (FocalLoss(), focal, ones),
    'FocalLossFlat': (FocalLossFlat(), focal, ones),
    'FocalLossFlat, weights': (FocalLossFlat(weight=weight), partial(focal, weight=weight), ones),
    'nn.NLLLoss': (nn.NLLLoss(), cross_entropy, ones),
    'nn.NLLLoss, weights': (nn.NLLLoss(weight=weight), partial(cross_entropy, weight=weight), weight_of),
    "a user's Module": (Squares(), squares, ones),
}


@every_mixer
@pytest.mark.parametrize('name', losses)
def test_class_numbers(mixer, name):
    loss, value, counts = losses[name]
    model = nn.Sequential(linear(), nn.LogSoftmax(1)) if 'NLL' in name else linear()
    rows = fit(mixer(), loss, samples(40), model)
    for row in rows:
        (own,), lam = row.y, shares(row.mix)
        partner = own[row.mix.partner]
        total = lam*value(row.pred, own) + (1-lam)*value(row.pred, partner)
        assert_close(row.loss, total.sum() / (lam*counts(own) + (1-lam)*counts(partner)).sum())
        assert_close(row.x[0], mixed(row.mix, row.own[0]))
    assert (len(rows[-1].mix.lam) > 1) == (mixer().per == 'sample')


def root(pred, y): return squares(pred, y).mean().sqrt()


class Root(nn.Module):
    def forward(self, pred, y): return root(pred, y)


def smoothed_and_weighted(pred, y):
    "fastai's: the smoothing unweighted, the rest a weighted mean"
    nll = cross_entropy(pred, y, weight).sum()/weight[y].sum()
    return .2*cross_entropy(pred, y, smooth=1.).mean() + .8*nll


whole = {
    'closure': (lambda pred, y: root(pred, y), root),
    'Module': (Root(), root),
    'LabelSmoothingCrossEntropy, weights': (LabelSmoothingCrossEntropy(.2, weight=weight), smoothed_and_weighted),
}


@every_mixer
@pytest.mark.parametrize('loss, by_hand', whole.values(), ids=whole)
def test_a_loss_that_is_only_a_number(mixer, loss, by_hand):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        rows = fit(mixer(), loss, samples(40))
    said = ['one λ instead of one λ per sample' in str(w.message) for w in caught]
    assert sum(said) == (mixer().per == 'sample')
    for row in rows:
        (own,), lam = row.y, row.mix.lam.squeeze()
        assert lam.ndim == 0
        assert_close(row.loss, lam*by_hand(row.pred, own) + (1-lam)*by_hand(row.pred, own[row.mix.partner]))


# Floating targets

def random_targets(n, *size, ints=False, dtype=torch.float32):
    rng = torch.Generator().manual_seed(2)
    return torch.randint(0, 2, (n, *size), generator=rng) if ints else torch.rand(n, *size, generator=rng, dtype=torch.float64).to(dtype)


def binary(pred, y, pos_weight=1.): return -(pos_weight*y*F.logsigmoid(pred) + (1-y)*F.logsigmoid(-pred))


class Asymmetric(nn.Module):
    "A user's loss for multi-label data: easy negatives count less (arXiv 2009.14119)"
    def forward(self, pred, y): return asymmetric(pred, y).mean()


def asymmetric(pred, y):
    p = pred.sigmoid()
    return -y*p.log() - (1-y)*p.pow(4)*(1-p).log()


soft = {
    'soft labels': (nn.CrossEntropyLoss(), lambda pred, y: -(y*pred.log_softmax(1)).sum(1)),
    'multi-hot': (BCEWithLogitsLossFlat(), binary),
    'multi-hot, nn': (nn.BCEWithLogitsLoss(), binary),
    'pos_weight': (nn.BCEWithLogitsLoss(pos_weight=weight), partial(binary, pos_weight=weight)),
    'asymmetric': (Asymmetric(), asymmetric),
    'regression': (MSELossFlat(), lambda pred, y: (pred-y)**2),
    'regression, nn': (nn.MSELoss(), lambda pred, y: (pred-y)**2),
    'absolute': (L1LossFlat(), lambda pred, y: (pred-y).abs()),
}


@every_mixer
@pytest.mark.parametrize('loss, value', soft.values(), ids=soft)
def test_floating_targets_are_mixed(mixer, loss, value):
    x, _ = samples(40)
    for row in fit(mixer(), loss, (x, random_targets(40, 3).softmax(1))):
        lam, y = shares(row.mix)[:, None], row.y[0]
        assert_close(row.loss, value(row.pred, lam*y + (1-lam)*y[row.mix.partner]).mean())


@quiet
@every_mixer
@pytest.mark.parametrize('loss, value', [(BCEWithLogitsLossFlat(), binary), (BCEWithLogitsLossFlat(pos_weight=weight, flatten=False), partial(binary, pos_weight=weight)),
                                         (Asymmetric(), asymmetric)], ids=['flat', 'pos_weight', 'asymmetric'])
def test_integer_multi_hot_is_weighted(mixer, loss, value):
    for row in fit(mixer(), loss, (samples(40)[0], random_targets(40, 3, ints=True))):
        lam, y = shares(row.mix)[:, None], row.y[0]
        assert_close(row.loss, (lam*value(row.pred, y) + (1-lam)*value(row.pred, y[row.mix.partner])).mean())


@every_mixer
@pytest.mark.parametrize('loss', [MSELossFlat(), nn.MSELoss()], ids=['flat', 'nn'])
@pytest.mark.parametrize('size', [(1,), (3,)], ids=['number', 'vector'])
def test_regression_in_double_precision(mixer, loss, size):
    x, y = samples(40)[0].double(), random_targets(40, *size, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, *size)).double()
    seen = []
    for row in fit(mixer(), loss, (x, y), model, opt_func=SGD):
        assert row.x[0].dtype == torch.float64
        lam, y = shares(row.mix).double()[:, None], row.y[0]
        assert_close(row.loss, ((row.pred - lam*y - (1-lam)*y[row.mix.partner])**2).mean().to(row.loss.dtype))
        seen.append(row.loss)
    assert all(loss > 0 for loss in seen)


@mixups
def test_a_double_target_for_a_single_model(mixer):
    y = random_targets(40, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    for row in fit(mixer(), MSELossFlat(), (samples(40)[0], y), model):
        lam, y = shares(row.mix), row.y[0]
        assert y.dtype == torch.float64
        assert_close(row.loss, ((row.pred[:, 0] - (lam*y + (1-lam)*y[row.mix.partner]).float())**2).mean())


# Segmentation

class Reveal(Callback):
    "Adds the mask to the image, as a fourth channel"
    order = 4 # before the spy and the mixer
    def before_batch(self): self.learn.xb = TensorImage(torch.cat([plain(self.x), plain(self.y)[:, None]/32], 1)),


class Reader(nn.Module):
    "A model that reads the right mask off its input"
    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
    def forward(self, x): return 100*F.one_hot((x[:, 3]*32).round().long(), 32).permute(0, 3, 1, 2) + 0*self.zero


def camvid(data):
    folder = data/'camvid_tiny'
    return DataBlock((ImageBlock, MaskBlock), get_items=lambda path: get_image_files(path).sorted()[:20], splitter=IndexSplitter(range(2)),
                     get_y=lambda file: folder/'labels'/f'{file.stem}_P.png').dataloaders(folder/'images', bs=6, num_workers=0)


def pets(data):
    folder = data/'oxford-pets-160'
    def mask(file): return PILMask.create(np.array(PILMask.create(folder/'trimaps'/f'{file.stem}.png')) - 1)
    return DataBlock((ImageBlock, MaskBlock), get_items=lambda path: get_image_files(path).sorted()[::40], splitter=IndexSplitter(range(2)), get_y=mask,
                     item_tfms=Resize(64), batch_tfms=aug_transforms(size=48)).dataloaders(folder/'images', bs=6, num_workers=0)


@pytest.fixture(params=[camvid, pets], ids=['camvid', 'pets'], scope='module')
def masks(request, data): return request.param(data)


def segment(mixer, dls, loss, model=None, **kwargs):
    spy, torch_model = Watch(), model or nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 32, 1))
    learner([mixer, spy, Reveal()], loss, torch_model, dls, **kwargs).fit(1)
    assert len(spy.rows) >= 2
    for row in spy.rows:
        assert type(row.own[0]) is TensorImage and type(row.y[0]) is TensorMask
        assert all((y != row.y[0][0]).any() for y in row.y[0][1:])
    return spy.rows


@cutmixes
@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(axis=1), nn.CrossEntropyLoss(), F.cross_entropy, FocalLossFlat(axis=1),
                                  nn.CrossEntropyLoss(weight=torch.linspace(0, 1, 32), ignore_index=21)], ids=lambda loss: repr(loss)[:30])
def test_a_perfect_model_of_pasted_masks_has_no_loss(masks, mixer, loss):
    rows = segment(mixer(), masks, loss, Reader())
    for row in rows:
        assert row.loss < 1e-6
        assert_close(plain(row.pred).argmax(1), mixed(row.mix, plain(row.y[0])))
    assert any(F.cross_entropy(row.pred, row.y[0]) > .1 for row in rows), 'the masks were pasted'


def pixels(pred, y): return plain(pred).logsumexp(1) - plain(pred).gather(1, plain(y)[:, None])[:, 0]


def dice(pred, y):
    "One minus the overlap, for each sample and class"
    wanted = F.one_hot(plain(y), 32).movedim(-1, 1)
    p = plain(pred).softmax(1)
    return 1 - (2*(p*wanted).sum((2, 3)) + 1e-6)/((p + wanted).sum((2, 3)) + 1e-6)


def whole_dice(pred, y):
    "A user's, over the batch as a whole"
    wanted = F.one_hot(plain(y), 32).movedim(-1, 1)
    p = plain(pred).softmax(1)
    return (1 - 2*(p*wanted).sum((0, 2, 3))/(p + wanted).sum((0, 2, 3))).mean()


segmentation = {
    'CrossEntropyLossFlat': (CrossEntropyLossFlat(axis=1), pixels, torch.mean),
    'nn.CrossEntropyLoss': (nn.CrossEntropyLoss(), pixels, torch.mean),
    'F.cross_entropy': (F.cross_entropy, pixels, torch.mean),
    'DiceLoss': (DiceLoss(), dice, torch.sum),
    'DiceLoss, mean': (DiceLoss(reduction='mean'), dice, torch.mean),
    "a user's Dice": (whole_dice, None, None),
}


@quiet
@mixups
@pytest.mark.parametrize('loss, value, reduce', segmentation.values(), ids=segmentation)
def test_mixup_weighs_both_masks_in_every_pixel(masks, mixer, loss, value, reduce):
    rows = segment(mixer(), masks, loss)
    for row in rows:
        own, lam = row.y[0], row.mix.lam.squeeze()
        partner = own[row.mix.partner]
        if value:
            at_own, at_partner = value(row.pred, own), value(row.pred, partner)
            lam = shares(row.mix).view(-1, *[1]*(at_own.ndim-1))
            expected = reduce(lam*at_own + (1-lam)*at_partner)
        else: expected = lam*loss(row.pred, own) + (1-lam)*loss(row.pred, partner)
        assert_close(plain(row.loss), expected)
        assert_close(plain(row.x[0]), mixed(row.mix, plain(row.own[0])))
    assert (len(rows[-1].mix.lam) > 1) == (mixer().per == 'sample' and value is not None)


@pytest.mark.parametrize('loss, value, reduce', segmentation.values(), ids=segmentation)
def test_cutmix_needs_only_the_pasted_mask(masks, loss, value, reduce):
    for row in segment(CutMix(per='sample', seed=1), masks, loss):
        y = mixed(row.mix, plain(row.y[0]))
        assert_close(plain(row.loss), reduce(value(row.pred, y)) if value else whole_dice(row.pred, y))


# Image to image

convolution = partial(nn.Conv2d, 2, 3, 3, padding=1)


@every_mixer
@pytest.mark.parametrize('loss', [MSELossFlat(), nn.L1Loss(), lambda pred, y: (pred-y).abs().mean()], ids=['flat', 'nn', 'closure'])
@pytest.mark.parametrize('kind', [plain, TensorImage], ids=['tensor', 'TensorImage'])
def test_a_target_image_is_mixed_like_the_input(mixer, loss, kind):
    x, y = samples(40)[0], random_targets(40, 3, 4, 4)
    for row in fit(mixer(), loss, (x, [kind(image) for image in y]), convolution()):
        assert type(row.y[0]) is (TensorImage if kind is TensorImage else torch.Tensor)
        assert_close(plain(row.loss), loss(row.pred, mixed(row.mix, plain(row.y[0]))))


@every_mixer
def test_a_larger_target_image_is_mixed_in_the_same_place(mixer):
    def twice(x): return x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    x, _ = samples(40)
    for row in fit(mixer(), nn.MSELoss(), (x, twice(x)), nn.ConvTranspose2d(2, 2, 2, 2)):
        assert_close(row.loss, F.mse_loss(row.pred, twice(mixed(row.mix, row.own[0]))))


@every_mixer
def test_a_depth_map_is_mixed_like_the_input(mixer):
    x, y = samples(40)[0], random_targets(40, 4, 4)
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten(1, 2))
    for row in fit(mixer(), nn.MSELoss(), (x, y), model): assert_close(row.loss, F.mse_loss(row.pred, mixed(row.mix, row.y[0])))


# Several inputs, several targets, no target

class Two(nn.Module):
    "Two inputs, two outputs"
    def __init__(self, n_in=32+5):
        super().__init__()
        self.number, self.value = nn.Linear(n_in, 3), nn.Linear(n_in, 2)
    def forward(self, a, b):
        features = torch.cat([a.flatten(1), b.flatten(1)], 1)
        return self.number(features), self.value(features)


def both(pred, number, value, reduction='mean'):
    "A loss of two targets"
    values = F.cross_entropy(pred[0], number, reduction='none') + (pred[1] - value).pow(2).sum(1)
    return values.mean() if reduction == 'mean' else values


@quiet
@every_mixer
@pytest.mark.parametrize('loss', [both, lambda pred, number, value: both(pred, number, value)], ids=['function', 'closure'])
def test_several_inputs_and_targets_get_one_mix(mixer, loss):
    (x, number), spy = samples(40), Watch()
    vectors, values = random_targets(40, 5), random_targets(40, 2)
    dls = loaders((x, vectors, number, values))
    dls.n_inp = 2
    learner([mixer(), spy], loss, Two(), dls).fit(1)
    for row in spy.rows:
        mix, (image, vector), (number, value) = row.mix, row.own, row.y
        lam = shares(mix)
        def blended(t): return lam[:, None]*t + (1-lam)[:, None]*t[mix.partner]
        assert_close(row.x, (mixed(mix, image), blended(vector)))
        at_own, at_partner = (both(row.pred, t, blended(value), 'none') for t in (number, number[mix.partner]))
        assert_close(row.loss, (lam*at_own + (1-lam)*at_partner).mean())
    assert len(spy.rows) == 4 and (len(spy.rows[-1].mix.lam) > 1) == (mixer().per == 'sample' and loss is both)


@every_mixer
def test_two_images_of_one_sample_get_one_mix(mixer):
    (x, y), spy = samples(40), Watch()
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = linear()
        def forward(self, a, b): return self.body(a) - self.body(b)
    dls = loaders((x, x+1, y))
    dls.n_inp = 2
    learner([mixer(), spy], nn.CrossEntropyLoss(), Pair(), dls).fit(1)
    for row in spy.rows:
        check(row)
        assert_close(row.x[1], row.x[0]+1)


@cutmixes
@pytest.mark.parametrize('kind', [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize('size', [(16,), (8, 8)], ids=['signals', 'images'])
def test_masks_of_several_classes_at_once_are_pasted_whatever_their_dtype(mixer, kind, size):
    x, _ = samples(40, size)
    for row in fit(mixer(), BCEWithLogitsLossFlat(), (x, (x > .5).to(kind)), Threshold()): assert row.loss < 1e-6


class Threshold(nn.Module):
    "Reads the mask off the input"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1e6))
    def forward(self, x): return self.scale*(x - .5)


class Rebuild(Callback):
    "The target of an autoencoder is what it was given"
    def after_pred(self): self.learn.yb = self.learn.xb


@every_mixer
def test_no_target(mixer):
    data, spy = samples(40)[:1], Watch()
    dls = loaders(data)
    learn = learner([mixer(), spy, Rebuild()], nn.MSELoss(), nn.Conv2d(2, 2, 3, padding=1), dls)
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert len(spy.rows) == 4 and all((p != q).any() for p, q in zip(learn.model.parameters(), before))
    for row in spy.rows: assert_close(row.loss, F.mse_loss(row.pred, mixed(row.mix, row.copy[0])))


@every_mixer
def test_an_autoencoder_leaves_the_labels_of_its_data_out(mixer):
    spy, calls = Watch(), []
    class Loss(nn.MSELoss):
        def forward(self, *args):
            calls.append(args)
            return super().forward(*args)
    learner([mixer(), spy, Rebuild()], Loss(), nn.Conv2d(2, 2, 3, padding=1), loaders(samples(40))).fit(1)
    for row in spy.rows: assert_close(row.loss, F.mse_loss(row.pred, mixed(row.mix, row.copy[0])))
    assert len(calls) == 4 + 1, 'the last one in validation'


@quiet
@every_mixer
def test_a_loss_called_on_the_way_changes_nothing(mixer):
    "One with fewer targets"
    class Aside(Callback):
        order = 60
        def after_pred(self):
            self.learn.loss_func(self.learn.pred, self.learn.yb[0])
    x, y = samples(40)
    def loss(pred, a, b=None): return F.cross_entropy(pred, a) + (0 if b is None else F.cross_entropy(pred, b))
    spy, dls = Watch(), loaders((x, y, (y+1) % 3))
    dls.n_inp = 1
    learner([mixer(), spy, Aside()], loss, dls=dls).fit(1)
    for row in spy.rows:
        lam, own = shares(row.mix), row.y
        partner = tuple(o[row.mix.partner] for o in own)
        each = partial(F.cross_entropy, reduction='none')
        assert_close(row.loss, sum((lam*each(row.pred, o) + (1-lam)*each(row.pred, p)).mean() for o, p in zip(own, partner)))


@every_mixer
@pytest.mark.parametrize('make', [lambda: Scaled(), lambda: partial(Scaled(), scale=2.)], ids=['given', 'in a partial'])
def test_arguments_of_a_loss_object(mixer, make):
    "Given with the call, or before"
    given = {} if isinstance(make(), partial) else dict(scale=2.)
    pred, (x, y) = torch.randn(8, 3), samples(8)
    mix = mixer().draw_mix(Batch((x,)), mix_rng(0))
    own, partner = (F.cross_entropy(pred, t, reduction='none') for t in (y, y[mix.partner]))
    lam = shares(mix)
    assert_close(MixLoss(make(), mix, Targets((y,)))(pred, y, **given), 2*(lam*own + (1-lam)*partner).mean())


class Scaled(nn.Module):
    reduction = 'mean'
    def forward(self, pred, y, scale=1.): return scale*F.cross_entropy(pred, y, reduction=self.reduction)


@every_mixer
def test_a_target_that_comes_after_the_mix_belongs_to_the_mixed_sample(mixer):
    "A teacher's prediction of the mixed image, added to the targets: it counts with both labels alike, and that is said once"
    class Add(Callback):
        def after_pred(self): self.learn.yb = (*self.learn.yb, self.learn.pred.detach() + 1)
    def loss(pred, y, teacher=None, reduction='mean'):
        one = F.cross_entropy(pred, y, reduction='none') + (0 if teacher is None else (pred-teacher).pow(2).sum(1))
        return getattr(torch, reduction)(one) if reduction != 'none' else one
    learn = learner([mixer(), spy := Spy(), Add()], loss, batches=3)
    with pytest.warns(UserWarning, match='was not there when the batch was mixed') as told: learn.fit(2)
    assert len([w for w in told if 'was not there' in str(w.message)]) == 1
    for row in spy.rows:
        lam, own = shares(row.mix), row.y[0]
        each = partial(F.cross_entropy, reduction='none')
        assert_close(row.loss, (lam*each(row.pred, own) + (1-lam)*each(row.pred, own[row.mix.partner])).mean() + 3)


def test_targets_by_name_are_refused_in_a_mixed_batch():
    class ByName(Callback):
        def after_pred(self): self.learn.loss_func(self.learn.pred, target=self.learn.y)
    with pytest.raises(TypeError, match='takes its targets by position'): learner([MixUp(seed=1), ByName()], nn.CrossEntropyLoss()).fit(1)


@every_mixer
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat, nn.NLLLoss], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize('n', [2, 7])
def test_class_weights_of_another_length_are_refused(mixer, loss, n):
    for cbs in [], [mixer()]:
        with pytest.raises(RuntimeError, match='weight'): learner(cbs, loss(weight=torch.ones(n))).fit(1)


@every_mixer
@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), LabelSmoothingCrossEntropyFlat(), nn.CrossEntropyLoss()], ids=repr)
def test_a_model_in_double_precision_has_the_loss_that_it_has_without_mixing(mixer, loss):
    x, y = samples(24)
    types = {fit(cb, loss, (x.double(), y), linear().double())[0].loss.dtype if cb else loss(torch.rand(4, 3).double(), y[:4]).dtype for cb in (mixer(), None)}
    assert len(types) == 1


def test_inputs_in_a_list_of_fastcore_are_mixed():
    x, y = samples(4)
    mix = Blend(.75, rotation(4, 1))
    mixed_inputs = mix_inputs(mix, (x, L(x, {'more': L(x)})))
    assert type(mixed_inputs[1]) is L and type(mixed_inputs[1][1]['more']) is L
    for t in mixed_inputs[0], mixed_inputs[1][0], mixed_inputs[1][1]['more'][0]: assert_close(t, mix(x))


@pytest.mark.parametrize('make, message', [
    (lambda: ManifoldMixUp(layers=5), '`layers` must hold names, modules or module types; got 5'),
    (lambda: MixChoice(MixUp, CutMix, weights=['a', 'b']), '`weights` must be 2 numbers'),
    (lambda: MixChoice(MixUp, CutMix, weights={'a': 1}), '`weights` must be 2 numbers'),
    (lambda: MixUp().load_state_dict({'rng': 5}), 'not the state of a mixer'),
    (lambda: MixUp().load_state_dict({'rng': {'bit_generator': 'MT19937'}}), 'not the state of a mixer'),
    (lambda: MixUp().load_state_dict(None), 'not the state of a mixer'),
])
def test_errors_name_what_is_wrong(make, message):
    with pytest.raises((TypeError, ValueError), match=message): make()


def test_a_wrong_state_changes_nothing():
    mixer = MixUp(seed=0)
    learner(mixer, nn.CrossEntropyLoss()).fit(1)
    before = mixer.state_dict()
    with pytest.raises(ValueError): mixer.load_state_dict({'rng': {'bit_generator': 'MT19937'}, 'per_sample': False})
    assert mixer.state_dict() == before


# Signals, volumes, vectors

@every_mixer
@pytest.mark.parametrize('size', [(30,), (5, 7), (4, 5, 6)], ids=['signals', 'images', 'volumes'])
def test_signals_and_volumes(mixer, size):
    data = samples(40, size)
    for row in fit(mixer(), nn.CrossEntropyLoss(), data, linear(data[0][0].numel())): check(row)


@mixups
@pytest.mark.parametrize('complex', [False, True], ids=['real', 'complex'])
def test_vectors(mixer, complex):
    x, y = samples(40, (9,))
    x = torch.complex(*x.unbind(1)) if complex else x.flatten(1)
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear(9 if complex else 18)
        def forward(self, x): return self.linear(x.abs())
    for row in fit(mixer(), nn.CrossEntropyLoss(), (x, y), Model()): check(row)


def test_there_is_no_region_in_a_vector():
    with pytest.raises(ValueError, match=r'CutMix mixes places.*\(8, 32\).*Use MixUp'): fit(CutMix(), None, (samples(40)[0].flatten(1), samples(40)[1]))


# Tables

def adult(data, target, block):
    table = pd.read_csv(data/'adult'/'adult.csv', nrows=160, skipinitialspace=True)
    table['part-time'] = 1 - table['hours-per-week']/100
    names = dict(cat_names=['workclass', 'education', 'occupation'], cont_names=['age', 'education-num'])
    return TabularDataLoaders.from_df(table, procs=[Categorify, FillMissing, Normalize], y_names=target, y_block=block, bs=32, num_workers=0,
                                      valid_idx=range(32), **names)


def log_loss(pred, y): return -pred.log_softmax(1).gather(1, y.view(-1, 1).long())[:, 0]


def joined(model, codes, values):
    "What a tabular model gives to its first dense layer"
    embedded = [embed(codes[:, i]) for i, embed in enumerate(model.embeds)]
    return torch.cat([*embedded, model.bn_cont(values)], 1)


class NoHooks(Callback):
    "After every batch all hooks are gone"
    order = 20
    def after_batch(self): assert not any(m._forward_pre_hooks for m in self.learn.model.modules())


@mixups
@pytest.mark.parametrize('target', ['salary', 'hours-per-week', 'part-time'], ids=['class', 'integer', 'float'])
def test_tables_are_mixed_where_they_have_become_numbers(data, mixer, target):
    classes, spy = target == 'salary', Watch()
    learn = tabular_learner(adult(data, target, CategoryBlock() if classes else RegressionBlock()), layers=[8], cbs=[mixer(), spy, NoHooks()],
                            n_out=2 if classes else 1)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=0)
    learn.model.train()
    assert len(spy.rows) == 4
    for row in spy.rows:
        lam, (codes, values), y = shares(row.mix), row.own, row.y[0]
        assert codes.dtype == torch.int64 and torch.equal(row.x[0], codes)
        with torch.no_grad(): assert_close(row.pred, learn.model.layers(mixed(row.mix, joined(learn.model, codes, values))))
        if target == 'part-time': assert_close(row.loss, ((row.pred - mixed(row.mix, y))**2).mean())
        else:
            value = log_loss if classes else lambda pred, y: (pred - y)[:, 0]**2
            assert_close(row.loss, (lam*value(row.pred, y) + (1-lam)*value(row.pred, y[row.mix.partner])).mean())


# Texts

def reviews(data, step, bptt=8, n=48):
    "Texts of `step` to 45 words"
    table = pd.read_csv(data/'imdb_sample'/'texts.csv', nrows=n)
    table['text'] = [' '.join(text.split()[:step*(1 + i % (45//step))]) for i, text in enumerate(table.text)]
    block = DataBlock((TextBlock.from_df('text', tok=BaseTokenizer(), rules=[], seq_len=bptt, n_workers=1), CategoryBlock), get_x=ColReader('text'),
                      get_y=ColReader('label'), splitter=RandomSplitter(.17, seed=0))
    return block.dataloaders(table, bs=8, num_workers=0)


def reader(dls, *cbs, bptt=8, max_len=24, **kwargs):
    "A small reader, without dropout; fastai's `WeightDropout` cannot train with `weight_p=0`"
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=10, n_layers=2, output_p=0., hidden_p=0., input_p=0., embed_p=0., weight_p=1e-9)
    return text_classifier_learner(dls, AWD_LSTM, seq_len=bptt, max_len=max_len, config=config, pretrained=False, drop_mult=1., lin_ftrs=[8], ps=[0.],
                                   cbs=cbs, **kwargs)


def pooled(model, tokens, bptt=8):
    "What a text classifier gives to its first dense layer"
    return masked_concat_pool(*model[0](tokens), bptt)


class Reading(Watch):
    def after_loss(self):
        super().after_loss()
        self.row.loss = self.learn.loss_func(self.learn.pred, *self.learn.yb).detach() # what the RNN's regularisation is added to


@mixups
@pytest.mark.parametrize('step', [1, 8], ids=['any length', 'whole chunks'])
def test_texts_are_mixed_when_they_have_been_read(data, mixer, step):
    dls, spy = reviews(data, step), Reading()
    learn = reader(dls, mixer(), spy, NoHooks())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=0)
    learn.model.train()
    for row in spy.rows:
        tokens, lam, y = plain(row.own[0]), shares(row.mix), plain(row.y[0])
        with torch.no_grad():
            features = pooled(learn.model, tokens)
            assert_close(row.pred, learn.model[1].layers(mixed(row.mix, features)), rtol=1e-4, atol=1e-4)
            if step == 8: # so that fastai's model reads each text as if it were alone
                alone = [pooled(learn.model, text[text != 1][None])[0] for text in tokens]
                assert_close(features, torch.stack(alone))
        assert_close(row.loss, (lam*log_loss(row.pred, y) + (1-lam)*log_loss(row.pred, y[row.mix.partner])).mean())
    batches = [row.own[0] for row in spy.rows]
    assert any((tokens[:, 0] == 1).any() for tokens in batches), 'padded in front: the model reads a part of the batch at a time'
    assert step == 8 or any((tokens[:, -1] == 1).any() for tokens in batches), 'padded at the end'
    assert any(tokens.shape[1] > 24 for tokens in batches), 'longer than what the model keeps'


# Points and boxes

@every_mixer
@pytest.mark.parametrize('blocks, target', [((PointBlock,), [[3, 4]]), ((BBoxBlock, BBoxLblBlock), None)], ids=['points', 'boxes'])
def test_points_and_boxes_are_refused(mixer, blocks, target):
    image, boxes = np.zeros((12, 12, 3), dtype=np.uint8), ([[1, 2, 6, 7]], ['cat'])
    get_y = [lambda _: target] if target else [lambda _: boxes[0], lambda _: boxes[1]]
    block = DataBlock((ImageBlock, *blocks), getters=[lambda _: image, *get_y], n_inp=1, splitter=IndexSplitter([0, 1]))
    dls = block.dataloaders(range(8), bs=3, num_workers=0)
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3*12*12, 4)), loss_func=nn.MSELoss(), cbs=mixer())
    kind = 'TensorPoint' if target else 'TensorBBox'
    with learn.no_bar(), pytest.raises(TypeError, match=f'mixing is not defined for a target of type {kind}.*Train without a mixer'): learn.fit(1)


@pytest.mark.parametrize('size', [(), (4, 3)], ids=str)
@pytest.mark.parametrize('partner', [rotation(5, 2), [1, 0, 0, 4, 2]], ids=['rotation', 'index'])
@pytest.mark.parametrize('settings', [{}, {'weight': True}, {'ignore_index': 2}, {'weight': True, 'ignore_index': 2, 'label_smoothing': .1}], ids=str)
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64], ids=str)
def test_cross_entropy_by_its_definition(size, partner, settings, dtype):
    "Both targets of each place, weighted and ignored one by one; and its second derivatives are right, as the plain loss's are"
    torch.manual_seed(0)
    pred, own = torch.randn(5, 4, *size, dtype=torch.float64, requires_grad=True), torch.randint(0, 4, (5, *size)).to(dtype)
    settings = settings | ({'weight': torch.tensor([1., 3., .5, 2.], dtype=torch.float64)} if 'weight' in settings else {})
    if dtype != torch.int64: settings, own = settings | {'ignore_index': 200 if dtype == torch.uint8 else -7}, own.masked_fill(own == 1, 200 if dtype == torch.uint8 else -7)
    mix = Blend([.3, 1., .6, .8, 0.], partner)
    ones = settings.get('weight', torch.ones(4, dtype=torch.float64))
    lam, value, norm = mix.lam.double().view(-1, *[1]*len(size)), 0., 0.
    for y, share in (own.long(), lam), (own.long()[torch.as_tensor(partner)], 1-lam):
        counted = share * torch.where(y == settings.get('ignore_index', -100), 0., ones[y.clamp(0, 3)])
        value = value + (share*F.cross_entropy(pred, y, reduction='none', **settings)).sum()
        norm = norm + counted.sum()
    for loss in nn.CrossEntropyLoss(**settings), partial(F.cross_entropy, **settings), CrossEntropyLossFlat(axis=1, **settings), CrossEntropyLossFlat(flatten=False, **settings):
        switched = MixLoss(loss, mix, Targets((own,)))
        of_fastai = isinstance(loss, CrossEntropyLossFlat) # which gives single precision for double
        assert_close(switched(pred, own), (value/norm).to(torch.float32 if of_fastai else torch.float64))
        if not size and dtype == torch.int64 and not of_fastai: assert torch.autograd.gradgradcheck(lambda p: switched(p, own), (pred,))


# Losses that leave targets out, or take another reduction badly

def picks(pred, target, reduction='mean'): return F.cross_entropy(pred[target >= 0], target[target >= 0], reduction=reduction)
def ignores(pred, target, reduction='mean'): return F.cross_entropy(pred, target, ignore_index=-1, reduction=reduction)


def later_left_out(loss, epochs=1):
    "A fit with a loss that is told of an ignored target only after the first batches"
    x, y = samples(8*7)
    y[40:].masked_fill_(torch.arange(16) % 2 == 0, -1)
    learn = learner([mixer := MixUp(), spy := Spy()], loss_func=loss, dls=loaders((x, y)))
    with learn.no_bar(): learn.fit(epochs)
    return mixer, spy


def test_a_loss_that_picks_its_targets_says_so():
    with pytest.raises(ValueError, match=r"leaves targets out cannot be weighted with one λ per sample. Give the mixer per='batch'"): later_left_out(picks)


def test_a_loss_with_another_mean_is_found_out():
    with pytest.warns(UserWarning, match='has left targets out') as warned: mixer, spy = later_left_out(ignores, 3)
    assert len([w for w in warned if 'has left targets out' in str(w.message)]) == 1
    assert [int(len(row.mix.lam) > 1) for row in spy.rows] == [0] + [1]*5 + [0]*12
    for row in spy.rows[6:]:
        lam = row.mix.lam.squeeze()
        assert_close(row.loss, lam*ignores(row.pred, *row.y) + (1-lam)*ignores(row.pred, row.y[0][row.mix.partner]))


def test_what_was_seen_of_one_loss_says_nothing_of_the_next():
    "The first one is interrupted after a batch in which it has left targets out"
    def stop():
        if learn.iter == 2: raise KeyboardInterrupt
    x, y = samples(8*5)
    y[16:].masked_fill_(torch.arange(24) % 2 == 0, -1)
    learn = learner([MixUp(), spy := Spy()], loss_func=ignores, dls=loaders((x, y)))
    with learn.no_bar(), pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Callback(after_batch=lambda cb: stop()))
    assert [int(len(row.mix.lam) > 1) for row in spy.rows] == [0, 1, 1]
    learn.dls, learn.loss_func = loaders(samples(8*4)), FocalLossFlat()
    with warnings.catch_warnings(), learn.no_bar():
        warnings.simplefilter('error', UserWarning)
        learn.fit(2)
    assert {int(len(row.mix.lam) > 1) for row in spy.rows[4:]} == {1}


@every_mixer
def test_targets_nested_in_whatever_and_names_beside_them(mixer):
    "Every tensor is a target of its own, what is no tensor passes as it is"
    (x, y), seen = samples(24), []
    def loss(pred, target, reduction='mean'):
        seen.append(target['names'])
        return F.cross_entropy(pred, target['of'][0], reduction=reduction) + F.cross_entropy(pred, target['of'][1][0], reduction=reduction)
    class Nest(Callback):
        order = 1
        def before_batch(self): self.learn.yb = ({'of': (self.learn.y, [2-self.learn.y]), 'names': ['a']*8},)
    learn = learner([mixer(), spy := Spy(), Nest()], loss, dls=loaders((x, y)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.fit(1)
    for row in spy.rows:
        lam, own = shares(row.mix), row.y[0]['of'][0]
        expected = sum((share*F.cross_entropy(row.pred, t, reduction='none')).mean() for share, y in ((lam, own), (1-lam, own[row.mix.partner])) for t in (y, 2-y))
        assert_close(row.loss, expected)
    assert all(names == ['a']*8 for names in seen)


def test_a_loss_that_leaves_nothing_out_is_watched_for_an_epoch_only():
    calls = []
    class Focal(FocalLossFlat):
        def __call__(self, *args): calls.append(torch.is_grad_enabled()); return super().__call__(*args)
    learn = learner([MixUp(), spy := Spy()], loss_func=Focal(), dls=loaders(samples(8*4)))
    with warnings.catch_warnings(), learn.no_bar():
        warnings.simplefilter('error', UserWarning)
        learn.fit(1)
        watched = calls.count(False)
        learn.fit(2)
    assert {int(len(row.mix.lam) > 1) for row in spy.rows[1:]} == {1} and calls.count(False) - watched == 2 # those of validation


@pytest.mark.parametrize('loss, known', [(FocalLossFlat(), True), (CrossEntropyLossFlat(), True), (lambda pred, target: F.cross_entropy(pred, target), False)], ids=['tried', 'known', 'a number'])
def test_what_is_known_of_a_loss_goes_on_after_a_stop(loss, known):
    "Also where another loss follows: what was found out by trial stands for one that would have to be tried"
    learn = learner(before := MixUp(), loss_func=FocalLossFlat(), batches=3)
    with learn.no_bar(): learn.fit(1)
    learn = learner([after := MixUp(), spy := Spy()], loss_func=loss)
    after.load_state_dict(before.state_dict())
    with warnings.catch_warnings(), learn.no_bar():
        warnings.simplefilter('ignore')
        learn.fit(1)
    assert [int(len(row.mix.lam) > 1) for row in spy.rows] == [int(known)]*2


def by_name(pred, target, reduction='mean'): return getattr(torch, reduction)(F.cross_entropy(pred, target, reduction='none'))
def gives_nothing(pred, target, reduction='mean'): return F.cross_entropy(pred, target) if reduction == 'mean' else None
def insists(pred, target, reduction='mean'):
    assert reduction == 'mean'
    return F.cross_entropy(pred, target)
class ReadOnly(nn.Module):
    @property
    def reduction(self): return 'mean'
    def forward(self, pred, target): return F.cross_entropy(pred, target)


@pytest.mark.parametrize('loss', [by_name, gives_nothing, insists, ReadOnly()])
def test_a_loss_that_takes_another_reduction_badly_gets_one_share(loss):
    learn = learner([MixUp(), spy := Spy()], loss_func=loss)
    with pytest.warns(UserWarning, match='every batch gets one λ'), learn.no_bar(): learn.fit(1)
    check_all(spy, 2)
    assert {int(len(row.mix.lam) > 1) for row in spy.rows} == {0}


def test_values_in_a_row():
    "The shape of a loss's values does not matter, as long as there is one for each sample"
    def row(pred, target, reduction='mean'): return F.cross_entropy(pred, target, reduction=reduction)[None] if reduction == 'none' else F.cross_entropy(pred, target)
    learn = learner([MixUp(), spy := Spy()], loss_func=row, batches=4)
    with learn.no_bar(): learn.fit(1)
    check_all(spy, 4)
    assert {int(len(r.mix.lam) > 1) for r in spy.rows[1:]} == {1}


def test_what_is_inside_a_flattened_loss_can_be_reached():
    class Weighs(Callback):
        order = 20 # after a mixer
        def before_batch(self):
            if self.training: self.learn.loss_func.func.weight = torch.tensor([1., 5., 2.])
    learn = learner([MixUp(), Weighs(), spy := Spy()], loss_func=CrossEntropyLossFlat())
    with learn.no_bar(): learn.fit(1)
    weight = torch.tensor([1., 5., 2.])
    for row in spy.rows:
        value, norm = 0., 0.
        for y, share in (*row.y, row.mix.lam), (row.y[0][row.mix.partner], 1-row.mix.lam):
            value, norm = value + (share*F.cross_entropy(row.pred, y, weight, reduction='none')).sum(), norm + (share*weight[y]).sum()
        assert_close(row.loss, value/norm)


# Inputs and targets of unusual kinds

def test_a_complex_image_as_target_is_mixed_like_the_input():
    x, _ = samples(16)
    x = torch.complex(x, x.flip(0))
    learn = learner([CutMix(), spy := Spy()], loss_func=lambda pred, target: (pred - target).abs().mean(), model=nn.Sequential(nn.Identity(), Scale()), dls=loaders((x, x)))
    with learn.no_bar(): learn.fit(1)
    assert all(row.mix and row.loss == 0 for row in spy.rows)


class Scale(nn.Module):
    "Leaves everything as it is, and has a parameter"
    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
    def forward(self, x): return x*self.one


@pytest.mark.parametrize('first', [True, False], ids=['colour first', 'depth first'])
def test_an_input_without_channels_is_pasted_in_the_same_place(first):
    rgb, depth = torch.rand(6, 3, 8, 8), torch.rand(6, 8, 8)
    mixer, xb = CutMix(seed=1), (rgb, depth) if first else (depth, rgb)
    mix = mixer.draw_mix(Batch(xb), mix_rng(1))
    assert mix.size == (8, 8)
    colour, distance = mix_inputs(mix, xb)[::1 if first else -1]
    assert torch.equal(colour, mix(rgb)) and torch.equal(distance, mix(depth[:, None])[:, 0])
