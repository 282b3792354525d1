import contextlib
import gc
import json
import math
import re
import signal
import subprocess
import sys
import weakref
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.mixup import MixUp as FastaisMixUp
from fastai.callback.schedule import lr_find  # noqa: F401 patches Learner
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy
from fastai.metrics import AccumMetric, F1Score, accuracy, error_rate, top_k_accuracy
from fastai.optimizer import SGD
from fastai.torch_core import get_random_states
from scipy.stats import ttest_rel
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import RandomSampler

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, Mixer, MixUp
from fastmix.compare.arm import RunLog, arm_learner, as_text, data_of, learner_texts, run_arm
from fastmix.compare.results import Comparison, InUse, held, read_results
from fastmix.compare.run import AllRunsFailed, OtherResults, compare
from fastmix.compare.verdict import judge


def pairs(n=96):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    return list(zip(torch.randn(n, 1, 6, 6, generator=generator) + y[:, None, None, None], y))


@pytest.fixture(scope='module')
def dls(): return DataLoaders(DataLoader(pairs()[:72], bs=8, shuffle=True, drop_last=True), DataLoader(pairs()[72:], bs=24))


@pytest.fixture
def make_learner(dls):
    def make(metrics=accuracy, **kwargs):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        return Learner(dls, model, **{'loss_func': CrossEntropyLossFlat(), 'metrics': metrics, 'lr': 0.05} | kwargs)
    return make


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close('all')


def once(learn): learn.fit(1)


two_arms = {'none': None, 'MixUp': MixUp()}
quietly = partial(compare, progress=False)


class Watch(Callback):
    "Keep what the model sees and what dropout leaves of it"
    order = -100
    inputs, outputs = [], []

    def before_fit(self): Watch.inputs, Watch.outputs = [], []
    def before_batch(self):
        if self.training: Watch.inputs.append(self.xb[0].clone())
    def after_pred(self):
        if self.training: Watch.outputs.append(self.pred.detach().clone())


def watched(make_learner, mixer, seed):
    "The unmixed inputs and the outputs of a fit"
    learn = arm_learner(make_learner, mixer, seed)
    learn.add_cb(Watch())
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    return torch.stack(Watch.inputs), torch.stack(Watch.outputs)


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error
    def forward(self, x): raise self.error


class Fail(Callback):
    "Have the model raise an error"
    def __init__(self, error=RuntimeError('out of memory:\n tried  1 GiB')): self.error = error
    def before_fit(self): self.learn.model.append(Raises(self.error))


class Diverge(Callback):
    "Make the loss NaN in the third epoch"
    def after_pred(self):
        if self.training and self.epoch == 2: self.learn.pred = self.pred * math.nan


def made(accuracies):
    "A comparison of given accuracies, `{arm: one per seed}`, None where a run failed"
    rows = [dict(arm=arm, seed=seed, status='finished' if value is not None else 'failed: no memory', epochs=2, train_loss=1.,
                 valid_loss=1., accuracy=math.nan if value is None else value, seconds=4., cpu_seconds=4., weights='00', versions='')
            for arm, values in accuracies.items() for seed, value in enumerate(values)]
    curves = [dict(arm=row['arm'], seed=row['seed'], epoch=epoch, train_loss=1., valid_loss=1., accuracy=row['accuracy'])
              for row in rows for epoch in (1, 2)]
    return Comparison(pd.DataFrame(rows), pd.DataFrame(curves))


# ---- the same start

@pytest.mark.parametrize('mixer', [MixUp(), CutMix(), MixChoice(MixUp(), CutMix()), ManifoldMixUp('3'), [MixUp()], MixUp])
def test_arms_get_the_same_batches_in_the_same_order(make_learner, mixer):
    plain, mixed = (watched(make_learner, arm, 7)[0] for arm in (None, mixer))
    assert torch.equal(plain, mixed)
    assert not torch.equal(plain, watched(make_learner, mixer, 8)[0])


@pytest.mark.parametrize('generator', [None, torch.Generator()])
def test_loaders_of_torch_begin_anew_as_well(generator):
    dls = DataLoaders(TorchDataLoader(pairs()[:72], 8, shuffle=True, generator=generator), TorchDataLoader(pairs()[72:], 24))
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=nn.CrossEntropyLoss())
    first, second, other = (watched(make, None, seed)[0] for seed in (7, 7, 8))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize('kept', ['workers', 'sampler'])
def test_what_a_loader_of_torch_keeps_begins_anew(kept):
    train = (TorchDataLoader(pairs()[:72], 8, shuffle=True, num_workers=1, persistent_workers=True) if kept == 'workers' else
             TorchDataLoader(pairs()[:72], 8, sampler=RandomSampler(range(72), generator=torch.Generator())))
    dls = DataLoaders(train, TorchDataLoader(pairs()[72:], 24))
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Dropout(.5)), loss_func=nn.CrossEntropyLoss())
    (first, out), (second, again) = (watched(make, None, 7) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(out, again)


def test_arms_drop_the_same_units(make_learner):
    # a mixer that mixes nothing leaves the same outputs, dropout included
    plain, off = (watched(make_learner, arm, 7)[1] for arm in (None, MixUp(p=0.)))
    assert torch.equal(plain, off)
    assert not torch.equal(plain, watched(make_learner, None, 8)[1])


def test_arms_start_from_the_same_weights(make_learner):
    first, second, other = (arm_learner(make_learner, mixer, seed).model[1].weight
                            for mixer, seed in [(None, 3), (MixUp(), 3), (None, 4)])
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_given_mixer_is_copied(make_learner):
    mixer = MixUp()
    before = deepcopy(mixer)
    learn = arm_learner(make_learner, mixer)
    assert learn.mix_up is not mixer
    quietly(make_learner, dict(mixup=mixer), once)
    assert (mixer.rng, mixer.mix) == (before.rng, before.mix)


@pytest.mark.parametrize('attached', [False, True])
def test_a_mixer_that_has_trained_begins_anew(make_learner, attached):
    mixer, learn = MixUp(), make_learner()
    with learn.no_bar(), learn.no_logging():
        if attached: learn.add_cb(mixer).fit(1)
        else: learn.fit(1, cbs=mixer)
    used, fresh = (quietly(make_learner, dict(mixup=given), once).curves for given in (mixer, MixUp()))
    assert mixer.rng is not None and used.equals(fresh)
    assert arm_learner(make_learner, mixer).mix_up.learn is not learn and (mixer.learn is learn) == attached


def test_a_shared_model_is_refused(dls):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    def make(): return Learner(dls, model, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='MixUp, seed 42 is not like .*: weights: .* new model each time'): quietly(make, two_arms, once)


def test_a_shared_learner_is_refused(make_learner):
    learn = make_learner()
    with pytest.raises(ValueError, match='new model each time'): quietly(lambda: learn, {'none': None, 'again': None}, once)


# ---- the runs

def test_the_rows_of_a_comparison(make_learner):
    arms = {**two_arms, 'CutMix': CutMix()}
    comparison = quietly(make_learner, arms, lambda learn: learn.fit(2), seeds=2, seed=5)
    runs = comparison.runs
    assert list(runs.columns) == ['arm', 'seed', 'status', 'epochs', 'train_loss', 'valid_loss', 'accuracy', 'seconds',
                                  'cpu_seconds', 'weights', 'versions', 'steps', 'last_lr', 'data', 'order']
    assert list(zip(runs.arm, runs.seed)) == [(arm, seed) for seed in (5, 6) for arm in arms]
    assert (runs.status == 'finished').all() and (runs.epochs == 2).all() and (runs.seconds > 0).all()
    assert runs.train_loss.nunique() == 6 and list(runs.groupby('seed').weights.nunique()) == [1, 1]
    for run in runs.itertuples():
        curve = comparison.curves.query('arm == @run.arm and seed == @run.seed')
        assert list(curve.epoch) == [1, 2]
        assert (run.train_loss, run.valid_loss, run.accuracy) == tuple(curve.iloc[-1][['train_loss', 'valid_loss', 'accuracy']])


def test_runs_repeat(make_learner):
    first, second = (quietly(make_learner, two_arms, lambda learn: learn.fit(2)).curves for _ in range(2))
    assert first.equals(second)


def test_seeds_do_not_depend_on_those_before(make_learner):
    comparison = quietly(make_learner, two_arms, once, seeds=2, seed=5)
    alone = quietly(make_learner, two_arms, once, seed=6)
    assert comparison.curves.query('seed == 6').reset_index(drop=True).equals(alone.curves)


def test_all_fits_are_in_the_curves(make_learner):
    def twice(learn):
        learn.fit(1)
        learn.validate()
        learn.fit(2)
    curves = quietly(make_learner, dict(none=None), twice).curves
    assert list(curves.epoch) == [1, 2, 3] and not curves.isna().any(axis=None)


def test_a_search_of_the_learning_rate_is_no_training(make_learner):
    def searched(learn):
        learn.lr_find(num_it=20, show_plot=False)
        learn.fit(2)
    assert list(quietly(make_learner, dict(none=None), searched).curves.epoch) == [1, 2]


class Few(Callback):
    "End the training part of every epoch after three batches"
    def after_batch(self):
        if self.training and self.iter == 2: raise CancelTrainException


@pytest.mark.parametrize('train_metrics', [False, True])
def test_epochs_whose_training_was_cut_short_keep_their_columns(make_learner, train_metrics):
    def make():
        learn = make_learner(cbs=Few())
        learn.recorder.train_metrics = train_metrics
        return learn
    comparison = quietly(make, dict(none=None), once, evaluate=lambda learn: dict(zip(('loss', 'right'), learn.validate())))
    row = comparison.runs.iloc[0]
    names = ('valid_loss', 'valid_accuracy') if train_metrics else ('valid_loss', 'accuracy')
    assert row.status == 'finished' and {*comparison.measures} == {*names, 'loss', 'right'}
    assert row[names[0]] == pytest.approx(row.loss) and row[names[1]] == pytest.approx(row.right)


def test_a_metric_that_is_not_one_number_is_left_out(make_learner):
    def by_class(pred, y): return torch.stack([(pred.argmax(1) == y)[y == i].float().mean() for i in range(3)])
    with pytest.warns(UserWarning, match='the metric by_class is not one number'):
        comparison = quietly(lambda: make_learner(metrics=[AccumMetric(by_class, flatten=False), accuracy]), two_arms, lambda learn: learn.fit(2))
    assert comparison.measures == ['train_loss', 'valid_loss', 'accuracy'] and 'accuracy' in str(comparison)


def test_the_global_random_state_is_left_alone(make_learner):
    before = get_random_states()
    quietly(make_learner, {'mixup': MixUp(), 'fails': Fail()}, once)
    after = get_random_states()
    assert torch.equal(before['torch_state'], after['torch_state'])
    assert before['random_state'] == after['random_state']
    assert np.array_equal(before['numpy_state'][1], after['numpy_state'][1])


def test_progress(make_learner, capsys):
    compare(make_learner, two_arms | {'fails': Fail()}, once, seeds=2)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if ' (run ' in line]
    assert re.fullmatch(r'none, seed 42: accuracy [0-9.]+ % \(run 1 of 6, about \d+ s left\)', lines[0])
    assert re.fullmatch(r'MixUp, seed 42: accuracy [0-9.]+ %, [+-][0-9.]+ to none \(run 2 of 6, about \d+ s left\)', lines[1])
    assert lines[2].startswith('fails, seed 42: failed: RuntimeError: out of memory: tried 1 GiB (run 3 of 6, about ') and len(lines) == 6
    assert lines[5].endswith('(run 6 of 6)')
    table = [line.split()[:2] for line in printed.splitlines() if re.match(r' *(arm|none|MixUp|fails) ', line)]
    assert table == [['arm', 'seeds'], ['none', '1'], ['MixUp', '1'], ['fails', '0']] # After the first seed, and not after the last


def test_what_a_run_gained_is_that_of_its_seed(make_learner, capsys):
    comparison = compare(make_learner, two_arms, once, seeds=2)
    gains = [float(gain) for gain in re.findall(r', ([+-].*?) to none', capsys.readouterr().out)]
    by_seed = comparison.runs.pivot(index='seed', columns='arm', values='accuracy')
    assert gains == [round(100*gain, 2) for gain in by_seed['MixUp'] - by_seed['none']]


def test_no_progress(make_learner, capsys):
    quietly(make_learner, two_arms | {'fails': Fail()}, once)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('arms, seeds', [({}, 1), (dict(none=None), 0)])
def test_nothing_to_compare(make_learner, arms, seeds):
    with pytest.raises(ValueError, match='needs an arm and a seed'): compare(make_learner, arms, print, seeds=seeds)


def test_names_must_be_their_own(make_learner):
    for arms in ({.2: None, '.2': MixUp()} | {'0.2': None}, {'': None}):
        with pytest.raises(ValueError, match='each arm needs a name of its own'): quietly(make_learner, arms, once)
    metrics = [partial(top_k_accuracy, k=1), partial(top_k_accuracy, k=2)]
    with pytest.raises(ValueError, match='each metric needs a name of its own'): quietly(lambda: make_learner(metrics=metrics), two_arms, once)
    def verdict(pred, y): return accuracy(pred, y)
    with pytest.raises(ValueError, match='something else under the names of these metrics: verdict'): quietly(lambda: make_learner(metrics=verdict), two_arms, once)
    for name in ('seed', 'seeds', 'difference', 'accuracy_sd'):
        with pytest.raises(AllRunsFailed, match=f'evaluate must not return what the results hold already: {name}'):
            quietly(make_learner, two_arms, once, evaluate=lambda learn: {name: 1})


@pytest.mark.parametrize('arms, message', [([MixUp()], 'arms must be a dictionary'), ({'m': 'mixup'}, "the arm 'm' must be None, a mixer.*got 'mixup'"),
                                           ({'none': None, 'f': once}, "the arm 'f' must be"), ({'none': None, 'l': [MixUp(), 3]}, "the arm 'l' must be.*got 3")])
def test_what_is_no_arm(make_learner, arms, message):
    with pytest.raises(TypeError, match=message): quietly(make_learner, arms, once)


def test_names_of_measures_become_texts_and_keep_their_values(make_learner, tmp_path):
    "Also `epoch`, which is a whole number in the other table"
    def measure(seeds): return quietly(make_learner, dict(none=None), once, seeds=seeds, folder=tmp_path, evaluate=lambda learn: {1: .5, 'epoch': 3.5})
    first, both = measure(1), measure(2)
    assert both.measures == ['train_loss', 'valid_loss', 'accuracy', '1', 'epoch'] and list(both.runs['1']) == [.5]*2 and list(both.runs.epoch) == [3.5]*2
    assert first.runs.equals(both.runs[:1]) and '3.5000' in str(both)


@pytest.mark.parametrize('mixer', [MixUp(.3), FastaisMixUp(.3)])
def test_a_learner_that_mixes_already_is_refused_at_once(make_learner, mixer):
    with pytest.raises(ValueError, match=r'mixes already, with .*MixUp\(.*0\.3.*Leave the mixer to the arms'):
        quietly(lambda: make_learner(cbs=mixer), two_arms, lambda learn: pytest.fail('training began'))


def test_evaluate_adds_columns_or_replaces_them(make_learner):
    comparison = quietly(make_learner, two_arms, once, evaluate=lambda learn: {'accuracy': .25, 'test': torch.tensor(.5)})
    assert comparison.measures == ['train_loss', 'valid_loss', 'accuracy', 'test']
    assert set(comparison.runs.accuracy) == {.25} and set(comparison.runs.test) == {.5}
    assert 'test' not in comparison.curves and comparison.table('test').difference['MixUp'] == 0
    assert len(comparison.plot('test')) == 3


def test_names_of_arms_become_texts(make_learner):
    assert list(quietly(make_learner, {0: None, .2: MixUp(.2)}, once).runs.arm) == ['0', '0.2']


# ---- runs that fail

def test_an_arm_whose_learner_cannot_be_made_fails_alone(make_learner, tmp_path):
    calls = []
    def make():
        calls.append(1)
        if len(calls) == 3: raise torch.OutOfMemoryError('no memory')
        return make_learner()
    arms = {'none': None, 'first': MixUp(), 'second': MixUp()}
    comparison = quietly(make, arms, once, folder=tmp_path)
    assert list(comparison.runs.status) == ['finished', 'failed: OutOfMemoryError: no memory', 'finished']
    again = quietly(make, arms, once, seeds=2, folder=tmp_path)
    assert len(calls) == 4 + 1 + 4 and len(again.finished) == 6 # A first look and three arms; a look, the failed one and the new seed


def test_a_failed_run_is_recorded_and_the_others_go_on(make_learner, tmp_path):
    arms = {'fails': Fail(), 'diverges': Diverge(), 'none': None}
    comparison = quietly(make_learner, arms, lambda learn: learn.fit(5), seeds=2, folder=tmp_path)
    assert list(comparison.runs.status) == ['failed: RuntimeError: out of memory: tried 1 GiB',
                                            'failed: the loss is not a finite number', 'finished']*2
    assert list(comparison.runs.epochs) == [0, 3, 5]*2
    assert comparison.runs.accuracy.isna().tolist() == [True, True, False]*2
    assert list(comparison.table().failed) == [2, 2, 0] and list(comparison.table().seeds) == [0, 0, 2]
    assert comparison.failures()[0] == 'fails, seed 42 failed: RuntimeError: out of memory: tried 1 GiB'
    assert read_results(tmp_path).runs.equals(comparison.runs) and read_results(tmp_path).curves.equals(comparison.curves)


def test_a_run_that_failed_is_tried_again(make_learner, tmp_path):
    arms, full, fits = {'none': None, 'MixUp': MixUp()}, [True], []
    def fit(learn):
        fits.append(hasattr(learn, 'mix_up'))
        learn.fit(1)
        if full and fits[-1]: raise RuntimeError('out of memory')
        learn.fit(1)
    first = quietly(make_learner, arms, fit, folder=tmp_path)
    assert list(first.runs.status) == ['finished', 'failed: RuntimeError: out of memory'] and list(first.runs.epochs) == [2, 1]
    again = quietly(make_learner, arms, fit, folder=tmp_path)
    assert fits == [False, True, True] and list(again.runs.status) == list(first.runs.status)
    full.clear()
    fine = quietly(make_learner, arms, fit, folder=tmp_path)
    assert fits == [False, True, True, True] and list(fine.runs.status) == ['finished']*2
    assert list(fine.curves.groupby('arm').epoch.apply(list)) == [[1, 2], [1, 2]] and read_results(tmp_path).runs.equals(fine.runs)
    assert quietly(make_learner, arms, fit).runs.accuracy.equals(fine.runs.accuracy)


def test_a_loss_that_became_nan_is_tried_again_if_asked(make_learner, tmp_path):
    fits = []
    def fit(learn):
        fits.append(learn)
        learn.fit(4)
    arms = {'none': None, 'diverges': Diverge(), 'stopped': [Diverge(), TerminateOnNaNCallback()]}
    for n in (3, 3): quietly(make_learner, arms, fit, folder=tmp_path); assert len(fits) == n
    runs = quietly(make_learner, arms, fit, folder=tmp_path, retry=True).runs
    assert len(fits) == 5 and list(runs.status) == ['finished', *['failed: the loss is not a finite number']*2]
    assert not read_results(tmp_path).curves.duplicated(['arm', 'seed', 'epoch']).any()


def test_a_fit_that_ends_in_the_midst_of_an_epoch(make_learner):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch == 2: raise CancelFitException
    runs = quietly(make_learner, {'none': None, 'stopped': Stop()}, lambda learn: learn.fit(4)).runs
    assert list(runs.status) == ['finished', 'failed: the fit was ended in the midst of an epoch'] and list(runs.epochs) == [4, 2]
    early = EarlyStoppingCallback(monitor='valid_loss', min_delta=100) # this one ends it after an epoch
    assert set(quietly(lambda: make_learner(cbs=early), dict(none=None), lambda learn: learn.fit(4)).runs.status) == {'finished'}


def test_a_fit_that_is_ended_before_its_results_are_there(make_learner):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise CancelFitException
    late = Stop()
    late.order = RunLog.order + 1
    assert list(quietly(make_learner, dict(none=None, late=late), lambda learn: learn.fit(4)).runs.epochs) == [4, 2]
    status = quietly(make_learner, dict(none=None, early=Stop()), lambda learn: learn.fit(4)).runs.status.iloc[1]
    assert 'needs an order above' in status and str(RunLog.order) in status


@pytest.mark.parametrize('wrong, message', [
    (dict(evaluate=lambda learn: 1.5), 'evaluate must return numbers by name.*1.5'), (dict(evaluate=3), 'evaluate must be a function'),
    (dict(fit=3), 'fit must be a function'), (dict(make_learner=lambda: None), 'must return a new Learner; it returned None'), (dict(make_learner=5), 'make_learner must be a function'),
])
def test_what_is_no_function_or_returns_nothing_useful_is_told_at_once(make_learner, wrong, message):
    trained = []
    def fit(learn): trained.append(learn.fit(1))
    with pytest.raises(TypeError, match=message): quietly(**{**dict(make_learner=make_learner, arms=dict(a=None, b=MixUp()), fit=fit, seeds=3), **wrong})
    assert len(trained) <= 1
    with pytest.raises(TypeError, match='got a Learner'): quietly(make_learner(), dict(a=None), fit)


def test_a_seed_of_numpy(make_learner):
    ours, plain = (quietly(make_learner, dict(none=None), once, seed=seed) for seed in (np.int64(7), 7))
    assert ours.runs.valid_loss.equals(plain.runs.valid_loss)


def test_metrics_of_training_samples_are_named_so(make_learner):
    def make():
        learn = make_learner()
        learn.remove_cb(Recorder)
        return learn.add_cb(Recorder(train_metrics=True, valid_metrics=False))
    runs = quietly(make, dict(none=None), once).runs
    assert 'train_accuracy' in runs and 'accuracy' not in runs


def test_a_fit_without_epochs(make_learner):
    with pytest.raises(AllRunsFailed, match='fit trained no epoch'):
        quietly(make_learner, dict(none=None), lambda learn: learn.validate())


def test_all_runs_failed(make_learner, tmp_path):
    for _ in range(2):
        with pytest.raises(AllRunsFailed, match='every run failed; the first: RuntimeError: out of memory'):
            quietly(make_learner, dict(fails=Fail()), once, folder=tmp_path)
    comparison = read_results(tmp_path)
    assert str(comparison) == 'no run has finished\nfails, seed 42 failed: RuntimeError: out of memory: tried 1 GiB'
    assert 'no run has finished' in comparison._repr_html_()
    with pytest.raises(ValueError, match='nothing to compare'): comparison.table()


def test_a_failed_evaluation_is_a_failed_run(make_learner):
    def evaluate(learn):
        if any(isinstance(cb, Mixer) for cb in learn.cbs): raise KeyError('no test images')
        return {'test': 1}
    assert list(quietly(make_learner, two_arms, once, evaluate=evaluate).runs.status) == [
        'finished', "failed: KeyError: 'no test images'"]


@pytest.mark.parametrize('error', [KeyboardInterrupt, SystemExit])
def test_an_interruption_stops_the_comparison_and_keeps_finished_runs(make_learner, tmp_path, error):
    with pytest.raises(error): quietly(make_learner, {'none': None, 'stop': Fail(error())}, once, folder=tmp_path)
    assert list(read_results(tmp_path).runs.arm) == ['none']


def test_an_interruption_is_not_lost_where_pandas_swallows_it(make_learner, tmp_path, monkeypatch):
    "As code in C does that asks whether something works"
    def swallowing(*args):
        with contextlib.suppress(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr('fastmix.compare.run.tell', swallowing)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): compare(make_learner, two_arms, once, folder=tmp_path)
    assert len(read_results(tmp_path).runs) == 1 and signal.getsignal(signal.SIGINT) is before


def test_memory_is_freed_before_the_next_run_and_the_next_comparison(make_learner):
    models, alive = [], []
    def make():
        gc.disable() # nothing but the comparison itself collects
        alive.append(sum(model() is not None for model in models[1:]))
        learn = make_learner()
        models.append(weakref.ref(learn.model))
        return learn
    gc.unfreeze() # as in a session of a user
    try:
        for _ in range(2): quietly(make, {'fails': Fail(), 'none': None, 'MixUp': MixUp()}, once)
        assert gc.get_freeze_count() < len(gc.get_objects())
    finally:
        gc.enable()
        gc.freeze()
    assert alive == [0]*8


def test_without_validation(make_learner):
    dls = DataLoaders(DataLoader(pairs()[:72], bs=8), DataLoader([], bs=8))
    comparison = quietly(lambda: Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=nn.CrossEntropyLoss()),
                         two_arms, once, evaluate=lambda learn: {'score': 1.})
    assert comparison.measures == ['train_loss', 'score'] and comparison.judged_by()[0] == 'score'


# ---- what runs are made of

def made_of(make_learner, fit, mixer=None, **kwargs): return run_arm(make_learner, mixer, fit, **kwargs)[2]


def differing(one, other): return [name for name in one | other if one.get(name) != other.get(name)]


def test_what_a_fit_has_planned_is_read_off_the_learner(make_learner):
    config, plain = dict(epochs=2), made_of(make_learner, lambda learn: learn.fit_one_cycle(2, .01))
    assert (plain['epochs'], plain['learning rate'], plain['batch size'], plain['steps']) == ('2', '0.0004 to 0.01', '8', '18')
    def helper(learn, n): learn.fit_one_cycle(n, .01)
    def logs(learn):
        print('a line more')
        helper(learn, config['epochs'])
    assert made_of(make_learner, logs) == plain # The same, said in another way
    config['epochs'] = 3
    assert differing(made_of(make_learner, logs), plain) == ['epochs', 'steps', 'last rate']


@pytest.mark.parametrize('fit, differs', [
    (lambda learn: learn.fit_one_cycle(2, .02), ['learning rate', 'last rate']), (lambda learn: learn.fit(2, .01), ['learning rate', 'hyperparameters', 'last rate']),
    (lambda learn: learn.fit_one_cycle(2, .01, moms=(.9, .8, .9)), ['hyperparameters']),
    (lambda learn: learn.fit_one_cycle(2, slice(.001, .01)), []), (lambda learn: learn.fit_one_cycle(2, .01, wd=.3), ['hyperparameters']),
    (lambda learn: learn.fit_one_cycle(2, .01, div=5), ['learning rate']), (lambda learn: learn.fit_one_cycle(2, .01, cbs=Watch()), ['callbacks', 'steps', 'last rate'])])
def test_fits_are_told_apart(make_learner, fit, differs):
    plain = made_of(make_learner, lambda learn: learn.fit_one_cycle(2, .01))
    assert {*differing(made_of(make_learner, fit), plain)} == {*differs}


def test_all_fits_count(make_learner):
    twice = made_of(make_learner, lambda learn: (learn.fit(1), learn.fit(2, .01)))
    assert (twice['epochs'], twice['epochs of fit 2'], twice['learning rate of fit 2'], twice['steps']) == ('1', '2', '0.01 to 0.01', '27')
    for fit in (once, lambda learn: [learn.fit(n, lr) for n, lr in ((1, None), (2, .01), (1, None))]):
        with pytest.raises(Exception, match='of fit [23]|steps'): made_of(make_learner, fit, expected=twice)


def test_a_rate_that_was_searched_for_is_not_compared(make_learner):
    def fit(rate):
        def searched(learn):
            learn.lr_find(num_it=5, show_plot=False)
            learn.fit(1, rate)
        return searched
    one, other = (made_of(make_learner, fit(rate)) for rate in (.01, .02))
    assert one['learning rate'] == 'searched for' and differing(one, other) == ['last rate']


def test_what_a_callback_may_change_is_recorded_and_not_compared(make_learner):
    row, _, made = run_arm(lambda: make_learner(cbs=EarlyStoppingCallback(monitor='valid_loss', min_delta=100)), None, lambda learn: learn.fit(4))
    assert row['steps'] == 18 and row['last_lr'] == .05 and 'steps' not in made and made['epochs'] == '4'
    assert 'steps' in made_of(make_learner, lambda learn: learn.fit(4), MixUp())


def test_texts_of_arms():
    assert as_text(None) == 'None' and as_text(CutMix) == 'CutMix'
    assert as_text([MixUp(.2), Watch()]) == f'[{as_text(MixUp(.2))}, Watch()]'
    assert 'layers=[2]' in as_text(ManifoldMixUp('2'))
    assert 'MixUp(alpha=0.2,' in as_text(MixChoice(MixUp(.2), CutMix()))
    assert ' at 0x' not in as_text(Fail(object()))


def test_mixers_that_differ_in_any_argument_have_other_texts():
    texts = [as_text(mixer) for mixer in (MixUp(), MixUp(.5), MixUp(per='batch'), MixUp(p=.5), MixUp(start=.1), MixUp(seed=1), MixUp(fold=False), CutMix(), CutMix(targets='keep'))]
    assert len({*texts}) == len(texts)


def test_a_class_is_the_mixer_that_it_makes(make_learner):
    assert learner_texts(make_learner(), CutMix) == learner_texts(make_learner(), CutMix())


def test_a_callback_that_does_not_keep_its_arguments_is_told_by_what_it_holds():
    class Renames(Callback):
        def __init__(self, alpha): self.a = alpha
    for one, again, other in ([make(a) for a in (.2, .2, .9)] for make in (Renames, FastaisMixUp, lambda a: Renames([a, a]), lambda a: Renames({'a': a}), lambda a: Renames(torch.tensor([a])))):
        assert as_text(one) == as_text(again) != as_text(other)
    assert as_text(Renames(TorchDataLoader(pairs()))).startswith('Renames(a=DataLoader(dataset=96 items') and as_text(Renames({'a', 'b'})) == 'Renames(a=set)'
    assert as_text(Renames([*range(10000)])) == 'Renames(a=10000 items)' and as_text(Renames(torch.zeros(1000))) != as_text(Renames(torch.ones(1000)))
    itself = Renames(None)
    itself.a = itself
    assert len(as_text(itself)) < 100


def test_what_a_fit_changes_is_no_setting(make_learner, tmp_path):
    class Counts(Callback):
        n = 0
        def after_batch(self): self.n += 1
    class Logs:
        "A loss"
        def __init__(self, scale): self.scale, self.last = scale, 0.
        def __call__(self, pred, y):
            loss = self.scale*F.cross_entropy(pred, y)
            self.last = loss.item()
            return loss
    shared, loss = Counts(), Logs(2.)
    def make(): return make_learner(cbs=shared, loss_func=loss)
    for seeds in (1, 2): assert len(quietly(make, dict(none=None), once, seeds=seeds, folder=tmp_path).finished) == seeds
    assert shared.n and loss.last and as_text(loss) == 'Logs(scale=2.0)'


@pytest.mark.parametrize('change, name', [(dict(metrics=error_rate), 'metrics'), (dict(cbs=Watch()), 'callbacks'), (dict(opt_func=SGD), 'optimizer'),
                                    (dict(loss_func=nn.CrossEntropyLoss()), 'loss'), (dict(loss_func=CrossEntropyLossFlat(label_smoothing=.1)), 'loss'),
                                    (dict(loss_func=CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.]))), 'loss')])
def test_learners_are_told_apart(make_learner, change, name):
    assert differing(learner_texts(make_learner()), learner_texts(make_learner(**change))) == [name]


@pytest.mark.parametrize('make, one, other', [
    (lambda x: dict(metrics=partial(top_k_accuracy, k=x)), 1, 2), (lambda x: dict(metrics=F1Score(average=x)), 'macro', 'micro'),
    (lambda x: dict(metrics=AccumMetric(accuracy, thresh=x)), None, .5), (lambda x: dict(loss_func=LabelSmoothingCrossEntropy(x)), .1, .2),
    (lambda x: dict(loss_func=nn.CrossEntropyLoss(torch.tensor([1., 1., x]))), 1., 2.), (lambda x: dict(loss_func=FocalLossFlat(gamma=x)), 2., 3.)])
def test_arguments_of_losses_and_metrics_are_told_apart(make_learner, make, one, other):
    one, again, other = (learner_texts(make_learner(**make(x))) for x in (one, one, other))
    assert one == again and len(differing(one, other)) == 1


def test_layers_and_batches_are_told_apart():
    def make(drop=.1, bs=8):
        dl = TorchDataLoader(pairs(24), bs)
        return Learner(DataLoaders(dl, dl), nn.Sequential(nn.Flatten(), nn.Dropout(drop), nn.Linear(36, 3)), loss_func=nn.CrossEntropyLoss())
    now = learner_texts(make())
    assert learner_texts(make()) == now
    for other, name in ((make(drop=.9), 'model'), (make(bs=4), 'batch size')): assert differing(learner_texts(other), now) == [name]


def test_fastais_mixup_is_an_arm_as_any_and_named_with_its_module(make_learner, tmp_path):
    arms = {'none': None, 'ours': MixUp(), "fastai's": FastaisMixUp(.4)}
    comparison = quietly(make_learner, arms, lambda learn: learn.fit(2), seeds=2, folder=tmp_path)
    assert len(comparison.finished) == 6 and list(comparison.runs.groupby('seed')[['weights', 'data', 'order']].nunique().max()) == [1]*3
    assert comparison.runs.groupby('seed').train_loss.nunique().tolist() == [3, 3]
    assert comparison.made_of["fastai's"]['callbacks'].startswith('[fastai.callback.mixup.MixUp(distrib=Beta(') and '0.4' in comparison.made_of["fastai's"]['callbacks']
    assert comparison.made_of['ours']['callbacks'].startswith('[MixUp(alpha=0.4') and quietly(make_learner, arms, once, seeds=2, folder=tmp_path).runs.equals(comparison.runs)


# ---- what runs start from

def save_files(folder, n=12, size=8):
    from PIL import Image
    for i in range(n):
        (folder/'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (size, size, 3), np.uint8)).save(folder/'ab'[i % 2]/f'{i}.png')


def image_learner(folder, **kwargs):
    from fastai.vision.data import ImageDataLoaders
    dls = ImageDataLoaders.from_folder(folder, valid_pct=.25, bs=4, num_workers=0, seed=1, **kwargs)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), loss_func=CrossEntropyLossFlat(), metrics=accuracy)


def test_photos_that_have_changed_are_refused(tmp_path):
    save_files(tmp_path/'photos')
    call = partial(quietly, lambda: image_learner(tmp_path/'photos'), two_arms, once, folder=tmp_path/'out')
    first = call()
    assert call().runs.equals(first.runs)
    (tmp_path/'photos').rename(tmp_path/'moved')
    moved = partial(quietly, lambda: image_learner(tmp_path/'moved'), two_arms, once, folder=tmp_path/'out')
    assert moved().runs.equals(first.runs)
    image = tmp_path/'moved'/'a'/'0.png'
    content = image.read_bytes()
    image.write_bytes(content + b'x') # The same number of files
    for seeds in (1, 2):
        with pytest.raises(OtherResults, match=r'all arms: data: 9 \+ 3 samples, \w+ there, 9 \+ 3 samples, \w+ now.*give another folder'): moved(seeds=seeds)
    image.write_bytes(content)
    image.rename(tmp_path/'moved'/'b'/'0.png') # Another label
    with pytest.raises(OtherResults, match='data: '): moved(seeds=2)
    (tmp_path/'moved'/'b'/'0.png').rename(image)
    assert len(moved(seeds=2).finished) == 4 and moved(seeds=2).runs[:2].equals(first.runs)


def fewer(data): return torch.utils.data.Subset(data, range(20))


@pytest.mark.parametrize('change', ['x', 'y'])
@pytest.mark.parametrize('make', [lambda x, y: list(zip(x, y)), lambda x, y: torch.utils.data.TensorDataset(x, y), lambda x, y: fewer(torch.utils.data.TensorDataset(x, y))])
def test_the_data_of_any_loader_has_a_fingerprint(make, change):
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    def fingerprint(x, y): return data_of(DataLoaders(TorchDataLoader(make(x, y), 8), TorchDataLoader(make(x, y), 8)))
    before = fingerprint(x, y)
    assert fingerprint(x.clone(), y.clone()) == before
    (x if change == 'x' else y)[3] += 1
    assert fingerprint(x, y) != before


def test_the_data_of_a_table_has_a_fingerprint():
    def fingerprint(table): return data_of(DataBlock((CategoryBlock, CategoryBlock), get_x=ColReader('a'), get_y=ColReader('y'),
                                                     splitter=IndexSplitter([0, 1])).dataloaders(table, bs=2))
    table = pd.DataFrame(dict(a=[*'abcdef'], y=[*'uvuvuv']))
    before = fingerprint(table)
    assert fingerprint(table.copy()) == before
    table.loc[4, 'y'] = 'v'
    assert fingerprint(table) != before


def test_data_that_cannot_be_seen_have_a_length_or_nothing(make_learner):
    class Hidden(torch.utils.data.Dataset):
        def __len__(self): return 16
        def __getitem__(self, i): raise AssertionError('loaded')
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): yield from pairs(8)
    assert data_of(DataLoaders(TorchDataLoader(Hidden()), TorchDataLoader(Stream()))).startswith('16 + some samples, ')


def test_another_order_of_the_data_is_refused(make_learner):
    calls = []
    def make():
        calls.append(1)
        learn = make_learner()
        learn.dls = DataLoaders(DataLoader(pairs()[:72], bs=8, shuffle=len(calls) < 3, drop_last=True), learn.dls.valid)
        return learn
    with pytest.raises(OtherResults, match='MixUp, seed 42 .*: order: .* the batches must come in the same order'): quietly(make, two_arms, once)


def test_each_seed_may_have_data_of_its_own(make_learner, tmp_path):
    def make():
        learn, first = make_learner(), torch.initial_seed() % 2
        learn.dls = DataLoaders(DataLoader(pairs()[first:48+first], bs=8, shuffle=True, drop_last=True), learn.dls.valid)
        return learn
    for seeds in (1, 2): runs = quietly(make, two_arms, once, seeds=seeds, folder=tmp_path).runs
    assert runs.groupby('seed').data.nunique().tolist() == [1, 1] and runs.data.nunique() == 2


def test_settings_can_be_anything(make_learner, tmp_path):
    given = dict(path=tmp_path, n=np.int64(3), sizes=(1, 2))
    for _ in range(2): quietly(make_learner, dict(none=None), once, folder=tmp_path/'out', settings=given)
    assert read_results(tmp_path/'out').settings == dict(path=str(tmp_path), n='3', sizes=[1, 2])


# ---- results in a folder

def files(folder): return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != '.lock'}


def test_more_seeds_and_arms_join(make_learner, tmp_path):
    fits = []
    def fit(learn):
        fits.append(learn)
        learn.fit(1)
    first = quietly(make_learner, two_arms, fit, folder=tmp_path)
    lines = (tmp_path/'results.csv').read_text().splitlines()
    more = quietly(make_learner, {'MixUp': MixUp(), 'CutMix': CutMix(), 'none': None}, fit, seeds=2, folder=tmp_path)
    assert len(fits) == 6 and (tmp_path/'results.csv').read_text().splitlines()[:3] == lines
    assert list(more.runs.arm) == ['MixUp', 'CutMix', 'none']*2 and list(more.table().index) == ['MixUp', 'CutMix', 'none']
    assert read_results(tmp_path).runs.iloc[:2].equals(first.runs)
    fewer = quietly(make_learner, {'CutMix': CutMix()}, fit, folder=tmp_path)
    assert len(fits) == 6 and len(fewer.runs) == 1 and len(read_results(tmp_path).runs) == 6


def test_a_second_comparison_in_the_same_folder_is_told_at_once(make_learner, tmp_path):
    told = []
    def fit(learn):
        with pytest.raises(InUse, match='another comparison is writing to .*: wait for its end, or give another folder'):
            quietly(make_learner, dict(other=CutMix()), lambda learn: told.append('trained'), folder=tmp_path)
        told.append('refused')
        once(learn)
    first = quietly(make_learner, two_arms, fit, folder=tmp_path)
    assert told == ['refused']*2 and len(first.finished) == 2 and read_results(tmp_path).runs.equals(first.runs)
    assert len(quietly(make_learner, dict(other=CutMix()), once, folder=tmp_path).finished) == 1 # When it has ended


def test_a_dead_process_holds_no_lock(tmp_path):
    code = f'from pathlib import Path; from fastmix.compare.results import held; import time\nwith held(Path({str(tmp_path)!r})): print("held", flush=True); time.sleep(99)'
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(InUse): held(tmp_path)
        process.kill()
    with held(tmp_path): pass


def test_results_are_read_as_they_were_written(make_learner, tmp_path):
    arms = {'None': None, 'NA': None, '007': None, 'a,"b"\nc <é>': None}
    comparison = quietly(make_learner, arms, once, seeds=2, folder=tmp_path, evaluate=lambda learn: {'third': 1/3, 'big': math.inf})
    there, before = read_results(tmp_path), files(tmp_path)
    assert there.runs.equals(comparison.runs) and there.curves.equals(comparison.curves) and there.settings == comparison.settings
    quietly(make_learner, arms, once, seeds=2, folder=tmp_path, evaluate=lambda learn: {'third': 1/3, 'big': math.inf})
    assert files(tmp_path) == before


@pytest.mark.parametrize('change, message', [
    (dict(fit=lambda learn: learn.fit(2), seeds=2), 'none, seed 43 is not like .* not written: epochs: 1 there, 2 now'),
    (dict(evaluate=lambda learn: {'test': 1}, seeds=2), 'none, seed 43 is not like .*: measures: train_loss, valid_loss, accuracy there, train_loss, valid_loss, accuracy, test now'),
    (dict(fit=lambda learn: (learn.fit(1), learn.fit(1)), seeds=2), 'none, seed 43 is not like .*: steps: 9 there, 18 now'),
    (dict(fit=lambda learn: learn.fit(1, .01), seeds=2), 'learning rate: 0.05 to 0.05 there, 0.01 to 0.01 now'),
    (dict(arms={'none': None, 'MixUp': MixUp(.9)}), r'something else \(MixUp: callbacks: \[MixUp\(alpha=0.4.* there, \[MixUp\(alpha=0.9.* now'),
    (dict(settings=dict(note='other')), r'results of other settings \(note: None there, other now'),
])
def test_runs_that_are_made_of_something_else_are_refused(make_learner, tmp_path, change, message):
    given = dict(arms=two_arms, fit=once, folder=tmp_path)
    quietly(make_learner, **given)
    before = files(tmp_path)
    with pytest.raises(OtherResults, match=f'{message}.*give another folder'): quietly(make_learner, **given | change)
    assert {name: text for name, text in files(tmp_path).items()} == before


def test_a_long_training_is_refused_before_it(make_learner, tmp_path):
    batches = []
    class Count(Callback):
        order = -200
        def before_batch(self): batches.append(1)
    config = dict(epochs=1)
    def fit(learn): learn.fit(config['epochs'])
    quietly(lambda: make_learner(cbs=Count()), two_arms, fit, folder=tmp_path)
    batches.clear()
    config['epochs'] = 50
    with pytest.raises(OtherResults, match='epochs: 1 there, 50 now'): quietly(lambda: make_learner(cbs=Count()), two_arms, fit, seeds=2, folder=tmp_path)
    assert not batches


def cut(name, n): return lambda folder: (folder/name).write_bytes((folder/name).read_bytes()[:-n])
def replace(name, text): return lambda folder: (folder/name).write_text(text)


@pytest.mark.parametrize('spoil', [
    cut('results.csv', 1), cut('results.csv', 12), cut('results.csv', 70), cut('curves.csv', 5), cut('settings.json', 9),
    replace('results.csv', ''), replace('results.csv', 'id,name\n1,Anna\n'), replace('curves.csv', 'arm,seed,epoch\n'),
    replace('settings.json', '[1, 2]'), replace('settings.json', '{"mine": 1}'), lambda folder: (folder/'settings.json').unlink(),
    lambda folder: (folder/'curves.csv').unlink(), lambda folder: (folder/'results.csv').write_bytes(b'\xff\xfe\x00'),
    lambda folder: replace('results.csv', (folder/'results.csv').read_text() + (folder/'results.csv').read_text().splitlines()[1] + '\n')(folder)])
def test_results_that_cannot_be_read_are_refused(make_learner, tmp_path, spoil):
    quietly(make_learner, two_arms, once, folder=tmp_path)
    spoil(tmp_path)
    before = files(tmp_path)
    with pytest.raises(OtherResults, match='give another folder'): quietly(make_learner, two_arms, once, folder=tmp_path)
    assert files(tmp_path) == before


def test_a_process_that_ended_between_two_files(make_learner, tmp_path):
    whole = quietly(make_learner, two_arms, once, folder=tmp_path)
    lines = (tmp_path/'results.csv').read_text().splitlines(keepends=True)
    for kept in (lines[:2], None): # the curves of a run, but not its row
        if kept: (tmp_path/'results.csv').write_text(''.join(kept))
        else: (tmp_path/'results.csv').unlink()
        (tmp_path/'.results.csv.new').write_text('half a')
        again = quietly(make_learner, two_arms, once, folder=tmp_path)
        assert again.curves.equals(whole.curves) and read_results(tmp_path).curves.equals(whole.curves)
        assert sorted(files(tmp_path)) == ['curves.csv', 'results.csv', 'settings.json']


def test_weights_of_earlier_runs_are_compared(make_learner, tmp_path):
    quietly(make_learner, dict(none=None), once, folder=tmp_path)
    runs = read_results(tmp_path).runs.assign(weights='00000000', versions='torch 1.0')
    runs.to_csv(tmp_path/'results.csv', index=False)
    with pytest.raises(OtherResults, match='MixUp, seed 42 is not like .*: weights: 00000000 there, .*torch 1.0; now .*give another folder'):
        quietly(make_learner, two_arms, once, folder=tmp_path)


def test_there_is_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError): read_results(tmp_path)
    (tmp_path/'settings.json').write_text(json.dumps(dict(a=1)))
    comparison = read_results(tmp_path)
    assert len(comparison.runs) == 0 and str(comparison) == 'no run has finished' and comparison.settings == dict(a=1)


# ---- statistics

def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(1)
    none = rng.normal(.9, .02, 6)
    mixed = none + rng.normal(.01, .01, 6)
    table, expected = made(dict(none=none, mixed=mixed)).table(), ttest_rel(mixed, none).confidence_interval(1 - .05*5/6) # a sixth is kept for later looks
    row = table.loc['mixed']
    np.testing.assert_allclose([row.difference, row.ci_low, row.ci_high], [np.mean(mixed - none), *expected], rtol=1e-9)
    assert row.accuracy_sd == pytest.approx(np.std(mixed, ddof=1)) and row.seconds_per_epoch == 2
    assert row.verdict == ('better' if expected.low > 0 else 'not distinguishable with 6 seeds')


def test_only_seeds_that_finished_in_both_arms_are_paired():
    comparison = made(dict(none=[.5, None, .7, .8], mixed=[.6, .9, None, .92]))
    row = comparison.table().loc['mixed']
    assert row.difference == pytest.approx(.11) and (row.seeds, row.failed) == (3, 1)
    assert row.verdict == 'no verdict with 2 seeds: it takes 3'
    assert '3 (1 failed)' in str(comparison) and 'none, seed 1 failed: no memory' in comparison._repr_html_()


@pytest.mark.parametrize('arms', [dict(none=[.5, .6], mixed=[None, None]), dict(none=[None, None], mixed=[.5, .6]),
                                  dict(none=[None, .6], mixed=[.5, None])])
def test_arms_without_a_pair(arms):
    comparison = made(arms)
    assert comparison.verdicts() == ['mixed against none: no seed in which both have a value']
    assert 'nan' not in str(comparison) + comparison._repr_html_()
    assert len(comparison.plot()) == 3


def test_one_seed():
    comparison = made(dict(none=[.5], mixed=[.6]))
    assert comparison.verdicts() == ['mixed against none: no verdict with 1 seed: it takes 3 (accuracy +10.00 points)']
    assert '±' not in str(comparison) and len(comparison.plot()) == 3


def test_one_arm():
    comparison = made(dict(none=[.5, .6]))
    assert comparison.verdicts() == [] and 'against' not in str(comparison)
    assert str(comparison).splitlines()[-1].split()[:2] == ['none', '2'] and len(comparison.plot()) == 3


def test_without_spread_there_is_no_interval():
    found = judge([[.02, .02 + 1e-17, .02]])[0]
    assert found['verdict'] == 'not distinguishable with 3 seeds' and math.isnan(found['ci_low'])


@pytest.mark.parametrize('name, higher', [('accuracy', True), ('dice', True), ('r2_score', True), ('roc_auc_score', True), ('f1_score', True),
                                          ('error_rate', False), ('mse', False), ('_rmse', False), ('mae', False), ('msle', False),
                                          ('ece', False), ('test_nll', False), ('recall', True), ('neg_mean_squared_error', True), ('exp_rmspe', False), ('perplexity', False), ('hamming_loss', False), ('brier_score', False)])
def test_in_which_direction_a_measure_is_better(name, higher):
    comparison = made(dict(none=[.5, .6, .7], mixed=[.6, .701, .8]))
    comparison.runs = comparison.runs.rename(columns={'accuracy': name})
    assert comparison.judged_by() == (name, higher)
    assert comparison.table().verdict['mixed'] == ('better' if higher else 'worse')
    assert comparison.table(higher_is_better=not higher).verdict['mixed'] == ('worse' if higher else 'better')


def test_without_a_metric_the_validation_loss_decides(make_learner):
    comparison = quietly(lambda: make_learner(metrics=None), two_arms, once)
    assert comparison.judged_by() == ('valid_loss', False) and 'valid loss against none, lower is better' in comparison.for_reading()
    assert ', lower is better' in comparison.verdicts()[0]


def test_a_measure_of_training_samples_does_not_decide(make_learner):
    def make():
        learn = make_learner()
        learn.recorder.train_metrics = True
        return learn
    assert quietly(make, two_arms, once).judged_by() == ('valid_accuracy', True)


def test_an_unknown_measure():
    with pytest.raises(ValueError, match="no measure 'dice': there are train_loss, valid_loss, accuracy"):
        made(dict(none=[.5], mixed=[.6])).table('dice')


def test_numbers_large_and_tiny():
    comparison = made(dict(none=[12345.678, 12345.978], mixed=[1.5e-5, 2.5e-5]))
    reading = comparison.for_reading()
    assert list(reading.accuracy) == ['12345.8 ± 0.2121', '2e-05 ± 7.07e-06']


# ---- pictures

def test_plot(make_learner):
    def make(): return make_learner(metrics=[accuracy, error_rate])
    comparison = quietly(make, two_arms, lambda learn: learn.fit(3), seeds=3)
    axes = comparison.plot('error_rate', figsize=(9, 3))
    assert [ax.get_title() for ax in axes] == ['train loss', 'valid loss', 'accuracy, %', 'error rate, %', 'error rate against none, points']
    assert list(axes[0].figure.get_size_inches()) == [9, 3]
    curves = comparison.curves.query('arm == "MixUp"').pivot(index='epoch', columns='seed', values='valid_loss')
    assert list(axes[1].lines[1].get_ydata()) == list(curves.mean(axis=1))
    band = axes[1].collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (curves.min(axis=None), curves.max(axis=None))
    marks = next(line for line in axes[-1].lines if line.get_marker() == '|' and len(line.get_xdata()) == 3)
    runs = comparison.runs.pivot(index='seed', columns='arm', values='error_rate')
    assert list(marks.get_xdata()) == list(runs['MixUp'] - runs['none'])
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ['none', 'MixUp']


def test_plot_of_many_arms_of_results_that_were_read(tmp_path, make_learner):
    arms = {f'arm {i}': None for i in range(9)}
    quietly(make_learner, arms, once, folder=tmp_path)
    axes = read_results(tmp_path).plot()
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes[0].lines}
    assert len(axes) == 3 and len(looks) == 9
