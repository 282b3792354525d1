"""Right wherever the label goes: what becomes of a target is decided once, by its memory, and can be said.

Sample `i` is 1 in channel `i` and 0 elsewhere, so own share and partner can be read off the mixed batch.
"""
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1ScoreMulti, LossMetrics, RocAucMulti, accuracy_multi
from fastai.torch_core import TensorCategory
from torch import nn
from torch.testing import assert_close

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, MixMetric, MixUp, Targets, is_spatial

N = 16
classes, numbers = torch.arange(N) % 3, torch.randn(N, 1, generator=torch.Generator().manual_seed(0))
multi = torch.randint(0, 2, (N, 4), generator=torch.Generator().manual_seed(1)).float()
mixers = dict(mix_up=MixUp, mix_up_batch=lambda **kw: MixUp(per='batch', **kw), cut_mix=CutMix, cut_mix_sample=lambda **kw: CutMix(per='sample', **kw))
every_mixer = pytest.mark.parametrize('mixer', mixers.values(), ids=mixers)
pasting = pytest.mark.parametrize('per', ['batch', 'sample'])


def telling(*size): return torch.eye(N).view(N, N, *[1]*len(size)).expand(N, N, *size)


def shares_seen(x): return x[:, :N].flatten(2).float().mean(2) if x.ndim > 2 else x[:, :N]


class Net(nn.Module):
    "A linear model of the mean of each channel; `out` numbers, or several outputs"
    def __init__(self, *out):
        super().__init__()
        rng = torch.Generator().manual_seed(2)
        self.heads = nn.ParameterList(torch.randn(N, o, generator=rng) for o in out)

    def forward(self, x, *_):
        self.seen = x
        outs = tuple(shares_seen(x) @ head for head in self.heads)
        self.out = outs[0] if len(outs) == 1 else outs
        return self.out


def loaders(x, *targets, n_inp=1, bs=8):
    items = list(zip(x, *targets))
    dls = DataLoaders(DataLoader(items, bs=bs), DataLoader(items, bs=bs))
    dls.train.n_inp = dls.valid.n_inp = n_inp
    return dls


class Look(Callback):
    order, run_valid = 97, False
    def __init__(self): self.rows = []
    def after_loss(self): self.rows.append((shares_seen(self.learn.model.seen), self.learn.model.out, self.learn.loss.detach()))


def fit(cbs, loss, dls, model, epochs=2, silent=True, **kwargs):
    look = Look()
    learn = Learner(dls, model, loss_func=loss, cbs=[*cbs, look], lr=.1, **kwargs)
    learn.logger = lambda _: None
    learn.remove_cbs([ProgressCallback, *([] if 'metrics' in kwargs else [Recorder])])
    with warnings.catch_warnings():
        if silent: warnings.simplefilter('error', UserWarning)
        learn.fit(epochs)
    return learn, look.rows


def counts(shares, y=classes): return torch.stack([shares[:, y == c].sum(1) for c in range(3)], 1)


def cross_entropy(shares, out, y=classes): return -(counts(shares, y)*out.log_softmax(1)).sum()/len(out)


class Rewrite(Callback):
    "Another callback that does something to the targets between the mix and the loss"
    order = 50
    def __init__(self, f): self.f = f
    def before_batch(self): self.learn.yb = self.f(*self.learn.yb)


class Both(nn.Module):
    "Class and number, or number and class"
    reduction = 'mean'
    def __init__(self, swapped=False):
        super().__init__()
        self.swapped = swapped

    def forward(self, pred, *targets):
        label, number = targets[::-1] if self.swapped else targets
        each = F.cross_entropy(pred[0], label.long().view(-1), reduction='none') + (pred[1]-number).pow(2).mean(1)
        return each.mean() if self.reduction == 'mean' else each


# By identity

@every_mixer
@pytest.mark.parametrize('rewrite, swapped', [
    (lambda label, number: (number, label), True), (lambda label, number: (number, label[:, None]), True),
    (lambda label, number: (label.clone(), number), False), (lambda label, number: (label.int(), number.clone()), False),
    (lambda label, number: (label.detach(), number.view(-1, 1)), False), (lambda label, number: (TensorCategory(label), number), False)],
    ids=['swapped', 'swapped and another shape', 'a clone', 'a cast', 'views', 'a type'])
@pytest.mark.filterwarnings('ignore:.*cannot be weighted')
def test_a_target_is_known_wherever_it_stands(mixer, rewrite, swapped):
    rows = fit([mixer(seed=1), Rewrite(rewrite)], Both(swapped), loaders(telling(4, 6), classes, numbers), Net(3, 1))[1]
    for shares, (label, number), loss in rows: assert_close(loss, cross_entropy(shares, label) + F.mse_loss(number, shares @ numbers))


@every_mixer
@pytest.mark.parametrize('which', [0, 1])
def test_the_first_target_is_dropped_or_the_second(mixer, which):
    loss = [nn.CrossEntropyLoss(), nn.MSELoss()][which]
    rows = fit([mixer(seed=1), Rewrite(lambda *yb: yb[which:which+1])], loss, loaders(telling(4, 6), classes, numbers), Net([3, 1][which]))[1]
    for shares, out, found in rows: assert_close(found, [cross_entropy(shares, out), F.mse_loss(out, shares @ numbers)][which])


@every_mixer
def test_the_loss_is_called_with_one_of_the_targets(mixer):
    "Whatever stands at its place: the class is weighted, the number is not"
    class Twice(Callback):
        order, run_valid = 60, False
        def after_pred(self):
            label, number = self.learn.yb
            self.found = self.learn.loss_func(self.learn.pred[1], number), self.learn.loss_func(self.learn.pred[0], label)
            shares = shares_seen(self.learn.model.seen)
            assert_close(self.found[0], F.mse_loss(self.learn.pred[1], shares @ numbers))
            assert_close(self.found[1], cross_entropy(shares, self.learn.pred[0]))
    def loss(pred, *targets, reduction='mean'):
        if len(targets) == 2:
            both = Both()
            both.reduction = reduction
            return both(pred, *targets)
        one = F.mse_loss if targets[0].is_floating_point() else F.cross_entropy
        values = one(pred, targets[0], reduction='none').reshape(len(pred), -1).mean(1)
        return values.mean() if reduction == 'mean' else values
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fit([mixer(seed=1), Twice()], loss, loaders(telling(4, 6), classes, numbers), Net(3, 1), silent=False)


def test_two_columns_of_one_tensor_are_two_targets():
    "Offset and shape tell them apart, where the memory is the same"
    table = torch.stack([classes, classes.flip(0)], 1)
    targets = Targets((table[:, 0], table[:, 1]))
    assert targets.find(table[:, 1], 0) == (1, False) and targets.find(table[:, 0], 1) == (0, False)


# Where the places are

class OfSignals(Net):
    def forward(self, x): return super().forward(x).view(len(x), 2, -1)


@pasting
@pytest.mark.parametrize('steps', [6, 24, 48])
def test_a_forecast_is_blended_however_long(per, steps):
    y = torch.randn(N, 2, steps, generator=torch.Generator().manual_seed(0))
    rows = fit([CutMix(per=per, seed=1)], nn.MSELoss(), loaders(telling(24), y), OfSignals(2*steps))[1]
    for shares, out, loss in rows: assert_close(loss, F.mse_loss(out.view(8, 2, -1), torch.einsum('ij,jcl->icl', shares, y)))


@pasting
@pytest.mark.parametrize('length', [24, 12])
def test_multi_labels_beside_a_signal_are_weighted_if_said(per, length):
    "12 labels beside 12 steps may be one per step: `targets` says that they are not"
    y = torch.randint(0, 2, (N, 12), generator=torch.Generator().manual_seed(0))
    loss = lambda pred, y, reduction='mean': F.binary_cross_entropy_with_logits(pred, y.float(), reduction=reduction)
    said = dict(targets='weigh') if length == 12 else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rows = fit([CutMix(per=per, seed=1, **said)], loss, loaders(telling(length), y), Net(12), silent=False)[1]
    for shares, out, found in rows: assert_close(found, F.binary_cross_entropy_with_logits(out, shares @ y.float()))


@pytest.mark.parametrize('shape, dtype, expected', [
    ((N, 24), int, True), ((N, 1, 24), int, True), ((N, 2, 24), int, False), ((N, 12), int, False), ((N, N, 24), float, True), ((N, 24), float, False), ((N, 2, 24), float, False), ((N, 1, 24), float, False)])
def test_the_rule_for_signals(shape, dtype, expected):
    assert is_spatial(torch.zeros(shape, dtype=torch.long if dtype is int else torch.float), (N, N, 24)) == expected


class Maps(Net):
    "What it gives for each cell of a grid"
    def __init__(self, out, grid):
        super().__init__(out)
        self.grid = grid

    def forward(self, x):
        self.seen = x
        cells = F.adaptive_avg_pool2d(x[:, :N], self.grid)
        self.out = torch.einsum('nchw,co->nohw', cells, self.heads[0])
        return self.out


def by_cells(x, grid):
    "How much of each sample is in each cell, `(n, N, *grid)`, exactly"
    fine = x[:, :N].repeat_interleave(grid[0], 2).repeat_interleave(grid[1], 3)
    return F.avg_pool2d(fine, (fine.shape[2]//grid[0], fine.shape[3]//grid[1]))


class LookAtCells(Callback):
    order, run_valid = 97, False
    def __init__(self, grid): self.grid, self.rows = grid, []
    def after_loss(self): self.rows.append((by_cells(self.learn.model.seen, self.grid), self.learn.model.out, self.learn.loss.detach()))


@pasting
@pytest.mark.parametrize('grid', [(8, 8), (4, 4), (24, 24), (7, 7), (32, 32)], ids=str)
@pytest.mark.parametrize('loss', ['heat maps', 'classes', 'classes, flattened', 'classes, a function'])
def test_a_target_on_another_grid(per, grid, loss):
    "Cell by cell: a heat map is averaged, class numbers are weighted"
    rng, look = torch.Generator().manual_seed(0), LookAtCells(grid)
    if loss == 'heat maps': y, func = torch.rand(N, 3, *grid, generator=rng), nn.MSELoss()
    else:
        y = torch.randint(0, 3, (N, *grid), generator=rng)
        func = {'classes': nn.CrossEntropyLoss(), 'classes, flattened': CrossEntropyLossFlat(axis=1),
                'classes, a function': lambda pred, y, reduction='mean': F.cross_entropy(pred, y, reduction=reduction)}[loss]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit([CutMix(per=per, seed=1), look], func, loaders(telling(16, 16), y), Maps(3, grid))
    for cells, out, found in look.rows:
        if loss == 'heat maps': expected = F.mse_loss(out, torch.einsum('njhw,jchw->nchw', cells, y))
        else: expected = -(torch.einsum('njhw,jchw->nchw', cells, F.one_hot(y, 3).movedim(-1, 1).float())*out.log_softmax(1)).sum()/(8*np.prod(grid))
        assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pasting
def test_places_are_the_last_two_dimensions_of_a_video(per):
    "Without saying so, time would be cut as well as height and width"
    x = telling(1)[..., None, None].transpose(1, 2).expand(N, 5, N, 6, 8) # (n, t, c, h, w)
    class Video(Net):
        def forward(self, x): return super().forward(x.movedim(2, 1))
    rows = []
    class Frames(Callback):
        order, run_valid = 97, False
        def after_loss(self): rows.append(self.learn.model.seen)
    for shares, out, loss in fit([CutMix(per=per, dims=2, seed=1), Frames()], nn.CrossEntropyLoss(), loaders(x, classes), Video(3))[1]: assert_close(loss, cross_entropy(shares, out))
    for seen in rows: assert torch.equal(seen, seen[:, :, :1].expand_as(seen)), 'all frames are cut alike'
    assert any((shares_seen(seen) > .01).sum() > 8 for seen in rows)
    with pytest.raises(ValueError, match='`dims` must be 1, 2 or 3'): CutMix(dims=4)


@pasting
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.bool], ids=str)
def test_a_region_of_integers_is_pasted(per, dtype):
    for shares, out, loss in fit([CutMix(per=per, seed=1)], nn.CrossEntropyLoss(), loaders(telling(6, 8).to(dtype), classes), Net(3))[1]: assert_close(loss, cross_entropy(shares, out))


@pasting
@pytest.mark.parametrize('mask', [telling(6, 8).argmax(1), telling(6, 8).argmax(1) % 2 == 0, telling(6, 8).argmax(1)[:, None]], ids=['integers', 'bool', 'with a channel'])
def test_a_mask_beside_an_image_is_pasted_with_it(per, mask):
    seen = []
    class Pair(Net):
        def forward(self, x, mask):
            if self.training: seen.append((x, mask))
            return super().forward(x)
    fit([CutMix(per=per, seed=1)], nn.CrossEntropyLoss(), loaders(telling(6, 8), mask, classes, n_inp=2), Pair(3))
    code = mask[:, 0, 0] if mask.ndim == 3 else mask[:, 0, 0, 0]
    for x, m in seen: assert torch.equal(m.reshape(8, 6, 8), code[x.argmax(1)])


def test_codes_without_places_are_refused():
    with pytest.raises(TypeError, match='category codes'): fit([CutMix()], nn.CrossEntropyLoss(), loaders(classes[:, None], classes), Net(3))


# What can be said

@every_mixer
def test_a_weight_has_no_average(mixer):
    "The loss of a sample counts with its own weight: said of the one target, or by name"
    weights = torch.rand(N, generator=torch.Generator().manual_seed(5)) + .1
    def loss(pred, y, weight, reduction='mean'):
        values = weight*F.cross_entropy(pred, y, reduction='none')
        return values.mean() if reduction == 'mean' else values
    def by_name(pred, target, reduction='mean'): return loss(pred, target['label'], target['weight'], reduction)
    def as_dict(label, weight): return {'label': label, 'weight': weight},
    for targets, func, cbs in ([None, 'weigh'], loss, []), ({'weight': 'weigh'}, by_name, [Callback(before_batch=lambda self: setattr(self.learn, 'yb', as_dict(*self.learn.yb)))]):
        for cb in cbs: cb.order = 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rows = fit([mixer(seed=1, targets=targets), *cbs], func, loaders(telling(4, 6), classes, weights), Net(3), silent=False)[1]
        for shares, out, found in rows:
            each = -out.log_softmax(1)[:, classes]*weights
            assert_close(found, (shares*each).sum()/8)


@every_mixer
@pytest.mark.parametrize('dtype', [torch.float, torch.long], ids=str)
def test_union(mixer, dtype):
    "Everything that can be heard, of whom there is .05 or more"
    seen = []
    class Labels(Callback):
        order, run_valid = 97, False
        def after_loss(self): seen.append((shares_seen(self.learn.model.seen), self.learn.yb[0]))
    loss = lambda pred, y: F.binary_cross_entropy_with_logits(pred, y.float())
    fit([mixer(seed=1, targets='union'), Labels()], loss, loaders(telling(4, 6), multi.to(dtype)), Net(4))
    for shares, y in seen:
        assert y.dtype == dtype
        for share, labels in zip(shares, y): assert torch.equal(labels.float(), multi[share >= .0499].amax(0))
    with pytest.raises(TypeError, match='multi-hot'): fit([mixer(targets='union')], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Net(3))


@every_mixer
@pytest.mark.parametrize('y', [classes, numbers], ids=['classes', 'numbers'])
def test_keep(mixer, y):
    "The own target, and nothing of the partner's: an augmentation"
    rows = []
    class Own(Callback):
        order, run_valid = 97, False
        def after_loss(self): rows.append((self.learn.yb[0], self.learn.pred.detach(), self.learn.loss.detach()))
    loss = nn.CrossEntropyLoss() if y is classes else nn.MSELoss()
    fit([mixer(seed=1, targets='keep'), Own()], loss, loaders(telling(4, 6), y), Net(3 if y is classes else 1))
    for i, (own, pred, found) in enumerate(rows):
        assert torch.equal(own, y[8*(i % 2):][:8])
        assert_close(found, loss(pred, own))


def test_parts_of_a_choice_say_it_for_themselves():
    with pytest.raises(TypeError, match='give it to the mixers'): MixChoice(MixUp, CutMix, targets='keep')
    fit([MixChoice(MixUp(targets='keep'), CutMix(targets='weigh'))], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Net(3))


@pytest.mark.parametrize('said, match', [('blend', "'mix', 'paste', 'weigh', 'union', 'keep'"), (['keep', 'no'], "'mix'"), ({'a': 1}, "'mix'")])
def test_what_targets_cannot_say(said, match):
    with pytest.raises(ValueError, match=match): MixUp(targets=said)


@pytest.mark.parametrize('said, match', [(['keep', 'keep'], 'there are 1'), ({'label': 'keep'}, "names \\['label'\\], and the targets have no names: give a list"), ('paste', 'no places'), ('mix', "say 'weigh'")])
def test_what_is_said_of_other_targets(said, match):
    with pytest.raises((ValueError, TypeError), match=match): fit([MixUp(targets=said)], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Net(3))


# Inputs that cannot be mixed

def test_an_input_that_is_no_tensor_is_named_once():
    class Captions(Callback):
        order = 1
        def before_batch(self): self.learn.xb = (*self.learn.xb, ['a dog']*8)
    with pytest.warns(UserWarning, match="input of type str, 'a dog', is no tensor: each sample keeps its own") as told:
        fit([MixUp(seed=1), Captions()], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Net(3), silent=False)
    assert len(told) == 1


class Inside(nn.Module):
    "A head that wants the labels, as ArcFace does"
    def __init__(self):
        super().__init__()
        self.net = Net(3)
    def forward(self, x, label=None): return self.net(x['image'] if isinstance(x, dict) else x)


@pytest.mark.parametrize('mixer', [MixUp, CutMix, lambda: ManifoldMixUp('net')], ids=['MixUp', 'CutMix', 'ManifoldMixUp'])
@pytest.mark.parametrize('as_dict', [False, True], ids=['beside the image', 'in a dictionary'])
def test_labels_that_go_into_the_model_are_refused(mixer, as_dict):
    class Give(Callback):
        order = 1
        def before_batch(self):
            x, y = self.learn.x, self.learn.y
            self.learn.xb, self.learn.yb = (({'image': x, 'labels': y},), ()) if as_dict else ((x, y), (y,))
    with pytest.raises(TypeError, match='the labels go into the model.*Take the loss out of the model'):
        fit([mixer(), Give()], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Inside())


class Attends(nn.Module):
    "Attention over the rows of an image, with a mask beside it"
    def __init__(self, kind):
        super().__init__()
        self.kind, self.first = kind, nn.Linear(N, N)
        self.layer = nn.MultiheadAttention(N, 2, batch_first=True)
        self.head = nn.Linear(N, 3)

    def forward(self, x):
        tokens = self.first(x.mean(3).mT)
        hidden = torch.arange(tokens.shape[1]) >= (2 + torch.arange(len(x)) % 3)[:, None]
        if self.kind == 'bool': mask = hidden
        else: mask = torch.zeros(hidden.shape).masked_fill(hidden, float('-inf') if self.kind == '-inf' else torch.finfo(torch.float).min)
        self.hidden = hidden
        return self.head(self.layer(tokens, tokens, tokens, key_padding_mask=mask, need_weights=False)[0].mean(1))


@pytest.mark.parametrize('kind', ['bool', '-inf', 'least number'])
def test_masks_of_attention_are_joined(kind):
    "A mixed sample sees what one of its two sees"
    model, rows = Attends(kind), []
    hidden = torch.arange(4) >= (2 + torch.arange(8) % 3)[:, None]
    class Again(Callback):
        order, run_valid = 97, False
        def after_pred(self):
            mix = self.learn.manifold_mix_up.mix
            tokens = mix(model.first(self.learn.x.mean(3).mT))
            self.learn.manifold_mix_up.undo() # So that the layer can be asked again
            joined = hidden & hidden[mix.partner]
            out = model.layer(tokens, tokens, tokens, key_padding_mask=joined, need_weights=False)[0].mean(1)
            rows.append((joined, self.learn.pred, model.head(out)))
    learn = Learner(loaders(telling(4, 6), classes), model, loss_func=nn.CrossEntropyLoss(), cbs=[ManifoldMixUp('layer', seed=1), Again()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert len(rows) == 2 and any((joined != hidden).any() for joined, *_ in rows)
    for _, found, expected in rows: assert_close(found, expected)


def test_a_mask_under_a_hook():
    from fastmix.all import Blend, LayerMix
    given = []
    class Layer(nn.Module):
        def forward(self, x, attn_mask=None, attention_mask=None, key_padding_mask=None): given.append((x, attn_mask, attention_mask, key_padding_mask)); return x
    layer, mix = Layer(), Blend(.6, [1, 0])
    hook = LayerMix('attention', layer, [mix])
    hook.attach()
    low = torch.finfo(torch.float).min
    x, bias = torch.eye(2)[:, None], torch.tensor([[0., low, float('-inf')], [0., 1., float('-inf')]])
    layer(x, bias, torch.tensor([[1, 0, 0], [1, 1, 0]]), key_padding_mask=torch.tensor([[False, True, True], [False, False, True]]))
    _, added, ones, hidden = given[0]
    assert added.tolist() == [[0., 1., float('-inf')]]*2 and ones.tolist() == [[1, 1, 0]]*2 and hidden.tolist() == [[False, False, True]]*2
    with pytest.raises(TypeError, match='behind the last attention'): layer(x, attn_mask=torch.ones(2, 3, dtype=torch.long))


def test_a_layer_that_runs_twice_in_one_pass_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.net = nn.ReLU(), Net(3)
        def forward(self, x): return self.relu(self.net(self.relu(x)))
    with pytest.raises(RuntimeError, match="layer 'relu' ran 2 times in one forward pass"):
        fit([ManifoldMixUp('relu')], nn.CrossEntropyLoss(), loaders(telling(4, 6), classes), Twice())


# Metrics

def metrics_learner(metrics, y, loss, model, mixer, epochs=1):
    dls = loaders(telling(4, 6), y)
    look = Look()
    learn = Learner(dls, model, loss_func=loss, metrics=metrics, cbs=[mixer, look], lr=.1)
    learn.recorder.train_metrics = True
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        if isinstance(metrics, MixMetric): warnings.simplefilter('error', UserWarning)
        learn.fit(epochs)
    return learn.recorder.values[-1], look.rows


@every_mixer
def test_a_metric_of_multi_labels_is_weighed_label_by_label(mixer):
    "By hand, over own and partner as they were before they were blended"
    values, rows = metrics_learner(MixMetric(accuracy_multi), multi, nn.BCEWithLogitsLoss(), Net(4), mixer(seed=1))
    expected = torch.cat([(shares*((out.sigmoid() > .5)[:, None] == multi[None].bool()).float().mean(2)).sum(1) for shares, out, _ in rows]).mean()
    assert values[1] == pytest.approx(expected.item(), abs=1e-5)


@every_mixer
def test_a_metric_of_one_yes_or_no(mixer):
    y = multi[:, :1]
    def right(pred, y): return ((pred > 0) == (y > .5)).float().mean()
    values, rows = metrics_learner(MixMetric(AvgMetric(right)), y, nn.BCEWithLogitsLoss(), Net(1), mixer(seed=1))
    expected = torch.cat([(shares*((out > 0) == (y[:, 0] > .5)).float()).sum(1) for shares, out, _ in rows]).mean()
    assert values[1] == pytest.approx(expected.item(), abs=1e-5)


@every_mixer
@pytest.mark.parametrize('metric', [F1ScoreMulti, RocAucMulti])
def test_metrics_of_whole_labels_go_on(metric, mixer):
    "Against the own labels, and that is said once"
    with pytest.warns(UserWarning, match='train metrics are evaluated against the own labels') as told:
        values, rows = metrics_learner(metric(), multi, nn.BCEWithLogitsLoss(), Net(4), mixer(seed=1), epochs=2)
    assert len([w for w in told if 'own labels' in str(w.message)]) == 1
    if metric is F1ScoreMulti:
        from sklearn.metrics import f1_score
        pred = torch.cat([out for _, out, _ in rows[-2:]]).detach().sigmoid() > .5
        assert values[1] == pytest.approx(f1_score(multi, pred, average='macro', zero_division=0), abs=1e-6)


@pytest.mark.filterwarnings('ignore:.*cannot be weighted')
def test_parts_of_a_loss_are_left_out_in_training():
    class Parts(nn.Module):
        def forward(self, pred, y):
            self.entropy = F.cross_entropy(pred, y)
            return self.entropy
    with pytest.warns(UserWarning, match="the part 'entropy' of the loss is left out in training"):
        values, _ = metrics_learner(LossMetrics('entropy'), classes, Parts(), Net(3), MixUp(seed=1))
    assert values[1] is None and values[3] == pytest.approx(values[2], abs=1e-5)
