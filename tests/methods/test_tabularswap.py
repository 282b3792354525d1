"""Columns of another row: on fastai's own loaders, codes and numbers."""
import copy
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.tabular.core import Categorify, FillMissing, Normalize
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner

from fastmix.all import Batch, MixChoice, MixedBatch, MixMetric, MixUp, TabularSwap, all_mixers, check_mixer, mix_rng, plot_lam, show_mix, show_mixers
from fastmix.methods.tabularswap import Columns

pytestmark = pytest.mark.filterwarnings('ignore:The given NumPy array is not writable')
rng = np.random.default_rng(0)
table = pd.DataFrame(dict(job=rng.choice(['cook', 'smith', 'nurse'], 80), town=rng.choice(list('abcdefgh'), 80), age=rng.normal(40, 9, 80), size=rng.normal(170, 9, 80),
                          debt=rng.exponential(9, 80), rich=rng.choice(['no', 'so so', 'yes'], 80), wealth=rng.normal(size=80)))
cats, conts = ['job', 'town'], ['age', 'size', 'debt']


def loaders(y='rich', **kwargs):
    names = dict(cat_names=cats, cont_names=conts) | kwargs
    return TabularDataLoaders.from_df(table.copy(), procs=[Categorify, Normalize], y_names=y, y_block=RegressionBlock() if y == 'wealth' else CategoryBlock(), bs=16, valid_idx=range(64, 80), **names)


class Look(Callback):
    "What the loader gave, what the network got and gave, and the loss"
    order, run_valid = 5, False
    def __init__(self): self.rows = []

    def before_batch(self): self.row = SimpleNamespace(own=self.learn.xb, copy=[x.clone() for x in self.learn.xb], y=self.learn.yb[0])

    def after_pred(self): self.row.x, self.row.pred = self.learn.xb, self.learn.pred.detach()

    def after_loss(self):
        mixer = next(cb for cb in self.learn.cbs if hasattr(cb, 'pick'))
        self.row.mix, self.row.part, self.row.loss = mixer.mix, mixer.batch and mixer.batch.mixer, self.learn.loss.detach()
        self.rows.append(self.row)


def fit(mixer, dls=None, epochs=2, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learn = tabular_learner(dls or loaders(), layers=[8], cbs=[mixer, look := Look()], **kwargs)
    learn.logger = lambda _: None
    learn.remove_cbs([ProgressCallback] if kwargs.get('metrics') else [ProgressCallback, Recorder])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', category=UserWarning, module='fastmix')
        learn.fit(epochs)
    return learn, look.rows


def swapped(inputs, own, partner):
    "Every cell of every row, one by one: the specification"
    out, at = [np.array(x) for x in inputs], 0
    for new, x in zip(out, inputs):
        for i in range(len(x)):
            for column in range(x.shape[1]):
                if not own[i if len(own) > 1 else 0][at+column]: new[i, column] = x[partner[i], column]
        at += x.shape[1]
    return [torch.from_numpy(x) for x in out]


def labels_by_hand(row, classes=3):
    "How much each class counts for each row, from the columns that were kept"
    kept = row.mix.own.float().mean(1, keepdim=True)
    hot = F.one_hot(row.y.long().view(-1), classes).float()
    return kept*hot + (1-kept)*hot[row.mix.partner]


@pytest.mark.parametrize('per', ['sample', 'batch'])
def test_it_is_what_the_specification_says(per):
    rows = fit(TabularSwap(.4, per=per, seed=1))[1]
    for row in rows:
        assert len(row.mix.own) == (1 if per == 'batch' else 16)
        for x, expected, own, copied in zip(row.x, swapped(row.copy, row.mix.own, row.mix.partner), row.own, row.copy, strict=True):
            assert x.dtype == own.dtype and torch.equal(x, expected) and torch.equal(own, copied)
        assert row.x[0].dtype == torch.int64
        torch.testing.assert_close(row.mix.lam, 1 - (~row.mix.own).float().mean(1))
        assert (row.mix.partner != torch.arange(16)).all()
    assert all(any(not torch.equal(row.x[i], row.copy[i]) for row in rows) for i in range(2))


def test_only_values_of_the_same_column():
    "Not from between the smallest and the largest, as in pytorch-scarf"
    for row in fit(TabularSwap(.6, seed=2))[1]:
        for x, own in zip(row.x, row.copy):
            for column in range(x.shape[1]): assert set(x[:, column].tolist()) <= set(own[:, column].tolist())


@pytest.mark.parametrize('share', [.15, .6])
def test_how_many_columns_go(share):
    "The share is that of the swapped ones, and not, as in pytorch-scarf, of the others; one column stays"
    gone = torch.cat([(~TabularSwap(share).draw_mix(Batch((torch.zeros(1000, 4, dtype=torch.long), torch.zeros(1000, 2))), mix_rng(seed)).own).sum(1) for seed in range(10)]).numpy()
    law = np.array([math.comb(6, k)*share**k*(1-share)**(6-k) for k in range(7)])
    law[5], law[6] = law[5] + law[6], 0
    seen = np.bincount(gone, minlength=7)/len(gone)
    assert np.abs(seen - law).max() < 5*.5/len(gone)**.5 # Five standard errors at most


def test_all_columns_go_alike_and_all_partners_are_met():
    batch = Batch((torch.zeros(200, 5),))
    own = torch.cat([TabularSwap(.9).draw_mix(batch, mix_rng(seed)).own for seed in range(50)]).float()
    assert (own.sum(1) >= 1).all() and (own.mean(0) - own.mean()).abs().max() < 5*.33/len(own)**.5
    assert {TabularSwap().draw_mix(Batch((torch.zeros(5, 3),)), mix_rng(seed)).shift for seed in range(60)} == {1, 2, 3, 4}


def test_the_own_label_by_default():
    for row in fit(TabularSwap(.4, seed=1))[1]: torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, row.y.long().view(-1)))


@pytest.mark.parametrize('per', ['sample', 'batch'])
@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), CrossEntropyLossFlat(weight=torch.tensor([1., 4., .5]))])
def test_both_labels_by_their_columns(per, loss):
    "With class weights, too; the mean is over the weights that count"
    for row in fit(TabularSwap(.4, per=per, targets='weigh', seed=1), loss_func=loss)[1]:
        counts = labels_by_hand(row)
        if loss.func.weight is not None: counts = counts*loss.func.weight
        torch.testing.assert_close(row.loss, -(counts*row.pred.log_softmax(1)).sum()/counts.sum())


class RootLoss:
    "A loss that is only a number"
    def __call__(self, pred, y): return F.cross_entropy(pred, y.view(-1).long()).sqrt()


@pytest.mark.filterwarnings('ignore:.*cannot be weighted sample by sample')
def test_a_loss_that_is_one_number():
    "With the own label it is simply called; for both labels all rows get the same columns"
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.filterwarnings('ignore', '.*not writable')
        rows = fit(TabularSwap(.4, seed=1), loss_func=RootLoss())[1]
    for row in rows: assert len(row.mix.own) == 16 and torch.equal(row.loss, RootLoss()(row.pred, row.y))
    learn = tabular_learner(loaders(), layers=[8], cbs=[TabularSwap(.4, targets='weigh', seed=1), look := Look()], loss_func=RootLoss())
    learn.remove_cbs([ProgressCallback, Recorder]).fit(2)
    for row in look.rows:
        lam = row.mix.own.float().mean(1)
        assert len(lam) == 1
        torch.testing.assert_close(row.loss, (lam*RootLoss()(row.pred, row.y) + (1-lam)*RootLoss()(row.pred, row.y[row.mix.partner]))[0])


def test_numbers_are_kept_weighed_or_averaged():
    def loss(pred, y): return F.mse_loss(pred, y.view(-1, 1))
    for targets in 'keep', 'weigh', 'mix', ['weigh']:
        for row in fit(TabularSwap(.4, targets=targets, seed=1), loaders('wealth'))[1]:
            kept, other = row.mix.own.float().mean(1, keepdim=True), row.y[row.mix.partner]
            if targets == 'keep': expected = loss(row.pred, row.y)
            elif targets == 'mix': expected = loss(row.pred, kept*row.y + (1-kept)*other)
            else: expected = (kept*(row.pred-row.y)**2 + (1-kept)*(row.pred-other)**2).mean()
            torch.testing.assert_close(row.loss, expected)


@pytest.mark.parametrize('names', [dict(cat_names=[]), dict(cont_names=[])])
def test_without_categories_or_without_numbers(names):
    for row in fit(TabularSwap(.4, seed=1), loaders(**names))[1]:
        for x, expected in zip(row.x, swapped(row.copy, row.mix.own, row.mix.partner)): assert torch.equal(x, expected)


def test_beside_others_in_a_choice_and_beside_the_clean_batch():
    learn, rows = fit(MixChoice(MixUp(), TabularSwap(.4), seed=3), epochs=4)
    assert {type(row.part) for row in rows} == {MixUp, TabularSwap}
    for row in fit(TabularSwap(.4, beside=True, seed=3))[1]: assert len(row.x[0]) == 32 and torch.equal(row.x[0][:16], row.copy[0])


def test_metrics():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learn = tabular_learner(loaders(), layers=[8], metrics=MixMetric(accuracy), cbs=[TabularSwap(.4, targets='weigh', seed=1), look := Look()])
    learn.recorder.train_metrics, learn.logger = True, lambda _: None
    learn.remove_cb(ProgressCallback)
    learn.fit(1)
    right = [(labels_by_hand(row)*F.one_hot(row.pred.argmax(1), 3)).sum(1).mean().item() for row in look.rows]
    assert learn.recorder.values[0][1] == pytest.approx(np.mean(right), abs=1e-5)


def test_what_is_no_table_is_refused():
    def drawn(*x): return MixedBatch(TabularSwap(), Batch(x), mix_rng(0))
    for size in (3, 8, 8), (3, 8), (1, 4, 4, 4): # Also beside a table
        for x in (torch.rand(4, *size),), (torch.rand(4, 5), torch.rand(4, *size)):
            with pytest.raises(ValueError, match='must be a table.*take CutMix'): drawn(*x)
    with pytest.raises(ValueError, match='at least two columns'): drawn(torch.rand(4, 1))
    drawn(torch.rand(4, 1), torch.zeros(4, 1, dtype=torch.long))
    for bad, error in (0, ValueError), (1, ValueError), (1.2, ValueError), ('a', TypeError), (True, TypeError), (float('nan'), ValueError):
        with pytest.raises(error, match='`share`'): TabularSwap(bad)
    with pytest.raises(TypeError, match='alpha'): TabularSwap(alpha=1)
    with pytest.raises(ValueError, match='swaps 5 columns, and the inputs have 4'): drawn(torch.rand(4, 5)).mix.inputs((torch.rand(4, 4),))
    with pytest.raises(ValueError, match='otherwise than λ'): plot_lam(TabularSwap())


def test_other_inputs_than_fastais():
    "Dictionaries, pairs, half precision; each column once, whatever it stands in"
    inputs = {'codes': torch.arange(12).view(6, 2), 'rest': [torch.rand(6, 3).half(), torch.rand(6, 1, dtype=torch.float64), None, 'a name']},
    mix = TabularSwap(.5).draw_mix(Batch(inputs), mix_rng(0))
    parts, new = [inputs[0]['codes'], *inputs[0]['rest'][:2]], mix.inputs(inputs)[0]
    got = [new['codes'], *new['rest'][:2]]
    for x, y in zip(got, swapped(parts, mix.own, mix.partner)): assert torch.equal(x, y) and x.dtype == y.dtype
    assert new['rest'][2:] == [None, 'a name'] and mix.own.shape == (6, 6)


def test_from_another_batch():
    "Each partner's row is the source's"
    own, other = torch.zeros(5, 7), torch.arange(5.)[:, None].repeat(1, 7) + 1
    mix = TabularSwap(.5).draw_mix(Batch((own,)), mix_rng(0))
    out, = mix.inputs((own,), (other,))
    assert torch.equal(out, torch.where(mix.own, own, other[mix.partner]))


def test_partners_of_the_same_class():
    "Every value then comes from a row with the own label"
    for row in fit(TabularSwap(.5, partner='same', seed=1))[1]:
        y = row.y.view(-1)
        assert torch.equal(y[row.mix.partner], y) and not torch.equal(row.x[1], row.copy[1])
        for x, expected in zip(row.x, swapped(row.copy, row.mix.own, row.mix.partner)): assert torch.equal(x, expected)


def test_partners_from_another_loader():
    dls = loaders()
    for row in fit(TabularSwap(.5, source=dls.valid, seed=1), dls)[1]:
        for x, own, other in zip(row.x, row.copy, dls.valid.one_batch()):
            for column in range(x.shape[1]): assert set(x[:, column].tolist()) <= set(own[:, column].tolist()) | set(other[:, column].tolist())
        assert any(not torch.equal(x, own) for x, own in zip(row.x, row.copy))


def test_what_every_mixer_promises():
    for kwargs in {}, dict(per='batch'), dict(targets='weigh'), dict(beside=True): check_mixer(TabularSwap(.5, **kwargs))
    def inverted(own, partner): return Columns(own, partner, weights=1-torch.as_tensor(own).float().mean(1))
    class Inverted(TabularSwap):
        def draw(self, batch, lam, rng):
            mix = super().draw(batch, lam, rng)
            return inverted(mix.own, mix.partner)
    with pytest.raises(AssertionError, match='does not count as much'): check_mixer(Inverted(targets='weigh'))
    class Shifted(TabularSwap):
        def draw(self, batch, lam, rng):
            mix = super().draw(batch, lam, rng)
            mix._lam = 1 - mix._lam
            return mix
    with pytest.raises(AssertionError, match='not those in the inputs'): check_mixer(Shifted())
    assert all_mixers['tabularswap'].data == 'table'


def test_it_goes_on_after_a_stop_and_in_a_copy():
    def draws(mixer): return [mixer.draw_mix(Batch((torch.zeros(4, 9),)), mixer.rng).own.tolist() for _ in range(3)]
    one, other = TabularSwap(), TabularSwap()
    one.rng = mix_rng(4)
    draws(one)
    other.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    assert draws(one) == draws(other) == draws(copied)


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises"
    x = torch.empty(8, 3, dtype=torch.long, device='meta'), torch.empty(8, 4, device='meta')
    for per in 'sample', 'batch':
        under = MixedBatch(TabularSwap(per=per), Batch(x, (torch.empty(8, dtype=torch.long, device='meta'),)), mix_rng(0))
        assert [o.shape for o in under.inputs()] == [(8, 3), (8, 4)] and under.inputs()[0].is_meta


def cells(axes): return {key: cell.get_text().get_text() for key, cell in axes[0].tables[0].get_celld().items()}


def test_a_table_is_shown():
    "Own, partner and what is trained on, which has each value of one of the two"
    shown = cells(show_mix(loaders(), TabularSwap(.5), max_n=3, seed=1))
    assert [shown[0, i] for i in range(7)] == ['', *cats, *conts, 'rich'] and [shown[i, 0].split()[0] for i in range(1, 10)] == ['own', 'partner', 'mixed']*3
    for at in 1, 4, 7:
        own, partner, mixed = ([shown[at+role, column] for column in range(1, 7)] for role in range(3))
        assert all(value in pair for *pair, value in zip(own, partner, mixed)) and mixed[-1] == own[-1]
        assert sum(a != b for a, b in zip(own[:5], mixed)) <= 5 - round(5*float(shown[at, 0].split()[1]))
    shown = cells(show_mix(loaders(), TabularSwap(.5, targets='weigh'), max_n=1, seed=1))
    share, rest = shown[1, 0].split()[1], shown[2, 0].split()[1]
    assert shown[3, 6] == f'{share} {shown[1, 6]} + {rest} {shown[2, 6]}'


def test_a_pair_of_rows_under_several_mixers():
    axes = show_mixers(loaders(), {'swap': TabularSwap(), 'both': TabularSwap(targets='weigh')}, lams=(0, .5, 1), seed=2)
    shown = cells(axes)
    assert axes.shape == (1,) and [shown[i, 0].split(',')[0] for i in range(1, 9)] == ['own', 'partner', *['swap']*3, *['both']*3]
    assert shown[5, 0] == 'swap, λ = 1.00' and [shown[5, i] for i in range(1, 7)] == [shown[1, i] for i in range(1, 7)]
    assert shown[3, 0] == 'swap, λ = 0.20' # One column stays
    with pytest.raises(ValueError, match='inside the network'): show_mixers(loaders(), {'MixUp': MixUp()})


def test_codes_of_a_plain_loader_are_shown():
    items = [(torch.tensor([i, 2*i, 3*i]), i % 2) for i in range(8)]
    shown = cells(show_mix(DataLoaders(DataLoader(items, bs=4), DataLoader(items, bs=4)), TabularSwap(.5), max_n=1))
    assert shown[3, 0] == 'mixed' and shown[3, 2] == shown[1, 2]


def test_the_adult_census(data):
    "Real rows, missing values included, with fastai's own procs"
    rows = pd.read_csv(data/'adult'/'adult.csv', nrows=3000)
    dls = TabularDataLoaders.from_df(rows, procs=[Categorify, FillMissing, Normalize], y_names='salary', y_block=CategoryBlock(), bs=256, valid_idx=range(2000, 3000),
                                     cat_names=['workclass', 'education', 'marital-status', 'occupation', 'relationship', 'race'], cont_names=['age', 'fnlwgt', 'education-num'])
    for targets in 'keep', 'weigh':
        learn, batches = fit(TabularSwap(targets=targets, seed=1), dls, lr=.03, metrics=accuracy)
        for row in batches:
            for x, expected in zip(row.x, swapped(row.copy, row.mix.own, row.mix.partner)): assert torch.equal(x, expected)
            counts = F.one_hot(row.y.long().view(-1), 2).float() if targets == 'keep' else labels_by_hand(row, 2)
            torch.testing.assert_close(row.loss, -(counts*row.pred.log_softmax(1)).sum()/counts.sum())
        assert learn.recorder.values[-1][-1] > .75
    shown = cells(learn.show_mix(max_n=1))
    assert shown[3, 0] == 'mixed' and ' + ' in shown[3, max(column for _, column in shown)]
