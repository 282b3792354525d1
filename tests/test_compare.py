import re
import gc
import json
import math
import weakref
from copy import deepcopy
from functools import partial, wraps
from types import SimpleNamespace

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
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import AvgMetric, Learner, Recorder
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropy
from fastai.metrics import AccumMetric, F1Score, accuracy, error_rate, top_k_accuracy
from fastai.optimizer import SGD, Adam
from fastai.torch_core import get_random_states
from scipy.stats import ttest_rel
from torch import nn
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import RandomSampler

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, Mixer, MixUp
from fastmix.compare import (AllRunsFailed, Comparison, History, OtherResults, arm_learner, arm_text, calls_of, compare, loss_text,
                             metric_text, name_of, paired_difference, read_results, settings_of)

pytestmark = pytest.mark.usefixtures('frozen')


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
    with pytest.raises(ValueError, match='new model each time.* the arm MixUp starts .* the arm none did'):
        quietly(make, two_arms, once)


def test_a_shared_learner_is_refused(make_learner):
    learn = make_learner()
    with pytest.raises(ValueError, match='new model each time'): quietly(lambda: learn, {'none': None, 'again': None}, once)


# ---- the runs

def test_the_rows_of_a_comparison(make_learner):
    arms = {**two_arms, 'CutMix': CutMix()}
    comparison = quietly(make_learner, arms, lambda learn: learn.fit(2), seeds=2, seed=5)
    runs = comparison.runs
    assert list(runs.columns) == ['arm', 'seed', 'status', 'epochs', 'train_loss', 'valid_loss', 'accuracy', 'seconds',
                                  'cpu_seconds', 'weights', 'versions']
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
    lines = [line for line in capsys.readouterr().out.splitlines() if ' (run ' in line or 'failed' in line]
    assert re.fullmatch(r'none, seed 42: accuracy \d\.\d{4} \(run 1 of 6\)', lines[0])
    assert re.fullmatch(r'MixUp, seed 42: accuracy \d\.\d{4} \(run 2 of 6, about \d+ s left\)', lines[1])
    assert lines[2].startswith('fails, seed 42: failed: RuntimeError: out of memory: tried 1 GiB (run 3 of 6') and len(lines) == 6


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


def test_a_mixer_that_make_learner_shares_begins_anew(make_learner):
    mixer = MixUp()
    one, other = (curves.drop(columns='arm').reset_index(drop=True) for _, curves in
                  quietly(lambda: make_learner(cbs=mixer), {'one': None, 'other': None}, once).curves.groupby('arm'))
    assert one.equals(other)


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
    assert len(calls) == 8 and list(again.runs.status[:3]) == list(comparison.runs.status) and len(again.finished) == 5

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


def test_a_failed_run_is_not_repeated_until_its_line_is_deleted(make_learner, tmp_path):
    arms, full = {'none': None, 'MixUp': MixUp()}, [True]
    def fit(learn):
        if full and hasattr(learn, 'mix_up'): raise RuntimeError('out of memory')
        learn.fit(1)
    first = quietly(make_learner, arms, fit, folder=tmp_path)
    assert list(first.runs.status) == ['finished', 'failed: RuntimeError: out of memory']
    full.clear()
    assert quietly(make_learner, arms, fit, folder=tmp_path).runs.equals(first.runs)
    lines = (tmp_path/'results.csv').read_text().splitlines(keepends=True)
    (tmp_path/'results.csv').write_text(''.join(lines[:2]))
    again = quietly(make_learner, arms, fit, folder=tmp_path)
    assert list(again.runs.status) == ['finished']*2 and not again.curves.duplicated(['arm', 'seed', 'epoch']).any()


def test_a_fit_that_ends_in_the_midst_of_an_epoch(make_learner):
    arms = {'none': None, 'stopped': [Diverge(), TerminateOnNaNCallback()]}
    runs = quietly(make_learner, arms, lambda learn: learn.fit(4)).runs
    assert list(runs.status) == ['finished', 'failed: the fit was ended in the midst of an epoch'] and list(runs.epochs) == [4, 2]
    early = EarlyStoppingCallback(monitor='valid_loss', min_delta=100) # this one ends it after an epoch
    assert set(quietly(lambda: make_learner(cbs=early), dict(none=None), lambda learn: learn.fit(4)).runs.status) == {'finished'}


def test_a_fit_that_is_ended_before_its_results_are_there(make_learner):
    class Stop(Callback):
        def after_epoch(self):
            if self.epoch == 1: raise CancelFitException
    late = Stop()
    late.order = History.order + 1
    assert list(quietly(make_learner, dict(none=None, late=late), lambda learn: learn.fit(4)).runs.epochs) == [4, 2]
    status = quietly(make_learner, dict(none=None, early=Stop()), lambda learn: learn.fit(4)).runs.status.iloc[1]
    assert 'needs an order above' in status and str(History.order) in status


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


@pytest.mark.parametrize('one, other', [(slice(1e-4, 1e-3), slice(1e-2, 1e-1)), (np.float32(.1), np.float32(.2)), (np.int64(1), np.int64(2))], ids=['slice', 'float32', 'int64'])
def test_settings_tell_numbers_of_numpy_and_slices_apart(make_learner, one, other):
    def text(value): return settings_of(make_learner(), lambda learn: learn.fit(1, lr=value))['fit']
    assert text(one) == text(one) != text(other)


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


def test_memory_is_freed_before_the_next_run(make_learner):
    models, alive = [], []
    def make():
        gc.disable() # nothing but the comparison itself collects
        alive.append(sum(model() is not None for model in models[1:]))
        learn = make_learner()
        models.append(weakref.ref(learn.model))
        return learn
    try: quietly(make, {'fails': Fail(), 'none': None, 'MixUp': MixUp()}, once)
    finally: gc.enable()
    assert alive == [0]*4


def test_without_validation(make_learner):
    dls = DataLoaders(DataLoader(pairs()[:72], bs=8), DataLoader([], bs=8))
    comparison = quietly(lambda: Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=nn.CrossEntropyLoss()),
                         two_arms, once, evaluate=lambda learn: {'score': 1.})
    assert comparison.measures == ['train_loss', 'score'] and comparison.judged_by()[0] == 'score'


# ---- settings

def test_what_a_fit_calls():
    n, rates, log = 5, (1e-3, 1e-2), []
    def fit(learn, wd=.1, *, div=25): log.append(learn.fit_one_cycle(n, rates[0]))
    def wrapped(f):
        @wraps(f)
        def g(learn): return f(learn)
        return g
    class Fit:
        def __init__(self, n): self.n = n
        def __call__(self, learn): learn.fit(self.n)
        def train(self, learn): learn.fit(3)
    assert calls_of(fit) == 'append fit_one_cycle n=5 rates=(0.001, 0.01) 0 0.1 div=25'
    assert calls_of(wrapped(fit)) == calls_of(fit)
    assert calls_of(partial(fit, div=3)) == calls_of(fit) + ' div=3'
    assert calls_of(Fit(2)) == 'Fit n=2' and calls_of(Fit(2).train) == 'fit 3' and calls_of(Fit) == 'Fit'
    assert calls_of(print) == 'print' and calls_of(partial(print, fit, object())) == 'print fit <object object>'
    assert calls_of(lambda learn: (learn.fit(2), learn.fine_tune(3))) == 'fit 2 fine_tune 3'
    assert '3' in calls_of(lambda learn: [learn.fit(i) for i in (n, n*3)])
    config = SimpleNamespace(epochs=7, sub=SimpleNamespace(lr=.5), model=nn.ReLU())
    assert calls_of(lambda learn: learn.fit(config.epochs, config.sub.lr)) == 'fit epochs=7 sub lr=0.5'
    def early(): return calls_of(lambda learn: learn.fit(later))
    assert early() == 'fit'
    later = 3
    assert early() == 'fit later=3'
    long = (0,)*1000
    def many(learn): learn.fit(long)
    assert len(calls_of(many)) < 250


def test_names():
    assert name_of(partial(Adam, wd=.1, sqr_mom=.9)) == 'Adam sqr_mom=0.9 wd=0.1'
    assert name_of(CrossEntropyLossFlat()) == 'CrossEntropyLossFlat' and name_of(SGD) == 'SGD'


def test_texts_of_arms():
    assert arm_text(None) == 'no mixing'
    assert arm_text(CutMix) == arm_text(CutMix())
    assert arm_text([MixUp(.2), Watch]) == f'{arm_text(MixUp(.2))} and Watch()'
    assert "layers=['2']" in arm_text(ManifoldMixUp('2'))
    assert 'MixUp(alpha=0.2,' in arm_text(MixChoice(MixUp(.2), CutMix()))
    assert ' at 0x' not in arm_text(Fail(object()))


def test_a_callback_that_does_not_keep_its_arguments_is_told_by_what_it_holds():
    class Renames(Callback):
        def __init__(self, alpha): self.a = alpha
    for one, again, other in ([make(a) for a in (.2, .2, .9)] for make in (Renames, FastaisMixUp, lambda a: Renames([a, a]), lambda a: Renames({'a': a}), lambda a: Renames(torch.tensor([a])))):
        assert arm_text(one) == arm_text(again) != arm_text(other)
    assert arm_text(Renames(TorchDataLoader(pairs()))) == 'Renames(a=DataLoader)' and arm_text(Renames({'a', 'b'})) == 'Renames(a=set)'
    assert len(arm_text(Renames([*range(10000)]))) < 500 and arm_text(Renames(torch.zeros(1000))) == 'Renames(a=Tensor)'


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
    assert shared.n and loss.last and loss_text(loss) == 'Logs scale=2.0'


@pytest.mark.parametrize('change', [dict(metrics=error_rate), dict(lr=.1), dict(wd=.1), dict(cbs=Watch()), dict(opt_func=SGD),
                                    dict(loss_func=nn.CrossEntropyLoss()), dict(loss_func=CrossEntropyLossFlat(label_smoothing=.1)),
                                    dict(loss_func=CrossEntropyLossFlat(weight=torch.tensor([1., 2., 3.])))])
def test_settings_tell_learners_apart(make_learner, change):
    now, other = settings_of(make_learner(), once), settings_of(make_learner(**change), once)
    assert sum(now[name] != other[name] for name in now) == 1


@pytest.mark.parametrize('make, one, other', [
    (lambda x: dict(metrics=partial(top_k_accuracy, k=x)), 1, 2), (lambda x: dict(metrics=F1Score(average=x)), 'macro', 'micro'),
    (lambda x: dict(metrics=AccumMetric(accuracy, thresh=x)), None, .5), (lambda x: dict(loss_func=LabelSmoothingCrossEntropy(x)), .1, .2),
    (lambda x: dict(loss_func=nn.CrossEntropyLoss(torch.tensor([1., 1., x]))), 1., 2.), (lambda x: dict(loss_func=FocalLossFlat(gamma=x)), 2., 3.)])
def test_settings_tell_arguments_of_losses_and_metrics_apart(make_learner, make, one, other):
    one, again, other = (settings_of(make_learner(**make(x)), once) for x in (one, one, other))
    assert one == again and sum(one[name] != other[name] for name in one) == 1


def test_settings_of_losses_and_metrics():
    assert [loss_text(loss) for loss in (CrossEntropyLossFlat(), nn.CrossEntropyLoss(), F.cross_entropy)] == ['CrossEntropyLossFlat', 'CrossEntropyLoss', 'cross_entropy']
    assert loss_text(CrossEntropyLossFlat(weight=torch.tensor([1., 2.]))) == 'CrossEntropyLossFlat weight=[1.0, 2.0]'
    assert metric_text(AvgMetric(accuracy)) == 'accuracy' and metric_text(AvgMetric(partial(top_k_accuracy, k=2))) == 'top_k_accuracy k=2'


def test_settings_tell_losses_of_ones_own_apart(make_learner):
    def made(scale): return lambda pred, y: scale*F.cross_entropy(pred, y)
    texts = [loss_text(loss) for loss in (made(1.), made(2.), lambda pred, y: F.cross_entropy(pred, y, label_smoothing=.1), lambda pred, y: F.cross_entropy(pred, y, label_smoothing=.2))]
    assert len({*texts}) == 4 and loss_text(made(1.)) == texts[0]


def test_settings_tell_layers_and_batches_apart():
    def make(drop=.1, bs=8):
        dl = TorchDataLoader(pairs(24), bs)
        return Learner(DataLoaders(dl, dl), nn.Sequential(nn.Flatten(), nn.Dropout(drop), nn.Linear(36, 3)), loss_func=nn.CrossEntropyLoss())
    now = settings_of(make(), once)
    assert settings_of(make(), once) == now
    for other, name in ((make(drop=.9), 'model'), (make(bs=4), 'batch')): assert [k for k, v in settings_of(other, once).items() if v != now[k]] == [name]


def test_settings_can_be_anything(make_learner, tmp_path):
    given = dict(path=tmp_path, n=np.int64(3), sizes=(1, 2))
    for _ in range(2): quietly(make_learner, dict(none=None), once, folder=tmp_path/'out', settings=given)
    settings = read_results(tmp_path/'out').settings
    assert settings['path'] == str(tmp_path) and settings['n'] == '3' and settings['sizes'] == [1, 2]


# ---- results in a folder

def files(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_runs_of_another_process_are_left_alone(make_learner, tmp_path):
    def fit(learn):
        once(learn)
        if hasattr(learn, 'mix_up'): quietly(make_learner, dict(other=CutMix()), once, folder=tmp_path, settings=dict(fit='the same'))
    with pytest.raises(OtherResults, match='another comparison has written to .* in the meantime'):
        quietly(make_learner, two_arms, fit, folder=tmp_path, settings=dict(fit='the same'))
    assert list(read_results(tmp_path).runs.arm) == ['none', 'other'] and {path.name for path in tmp_path.iterdir()} == {'settings.json', 'results.csv', 'curves.csv'}


def test_results_are_read_as_they_were_written(make_learner, tmp_path):
    arms = {'None': None, 'NA': None, '007': None, 'a,"b"\nc <é>': None}
    comparison = quietly(make_learner, arms, once, seeds=2, folder=tmp_path, evaluate=lambda learn: {'third': 1/3, 'big': math.inf})
    there, before = read_results(tmp_path), files(tmp_path)
    assert there.runs.equals(comparison.runs) and there.curves.equals(comparison.curves) and there.settings == comparison.settings
    quietly(make_learner, arms, once, seeds=2, folder=tmp_path, evaluate=lambda learn: {'third': 1/3, 'big': math.inf})
    assert files(tmp_path) == before


@pytest.mark.parametrize('change, message', [
    (dict(fit=lambda learn: learn.fit(2)), 'fit: fit 1 there, fit 2 now'),
    (dict(arms={'none': None, 'MixUp': MixUp(.9)}), r'arm MixUp: MixUp\(alpha=0.4.* there, MixUp\(alpha=0.9.* now'),
    (dict(settings=dict(note='other')), 'note: None there, other now'),
    (dict(evaluate=lambda learn: {'test': 1}), "evaluate: None there, 'test' 1 now"),
])
def test_results_of_other_settings_are_refused(make_learner, tmp_path, change, message):
    given = dict(arms=two_arms, fit=once, folder=tmp_path)
    quietly(make_learner, **given)
    before = files(tmp_path)
    with pytest.raises(OtherResults, match=f'holds results of other settings .*{message}.*give another folder'):
        quietly(make_learner, **given | change)
    assert files(tmp_path) == before


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
    with pytest.raises(OtherResults, match='cannot be compared .* MixUp .* other weights .* none .*torch 1.0.*give another folder'):
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
    table, expected = made(dict(none=none, mixed=mixed)).table(), ttest_rel(mixed, none).confidence_interval()
    row = table.loc['mixed']
    np.testing.assert_allclose([row.difference, row.ci_low, row.ci_high], [np.mean(mixed - none), *expected], rtol=1e-9)
    assert row.accuracy_sd == pytest.approx(np.std(mixed, ddof=1)) and row.seconds_per_epoch == 2
    assert row.verdict == ('better' if expected.low > 0 else 'not distinguishable with 6 seeds')


def test_only_seeds_that_finished_in_both_arms_are_paired():
    comparison = made(dict(none=[.5, None, .7, .8], mixed=[.6, .9, None, .92]))
    row = comparison.table().loc['mixed']
    assert row.difference == pytest.approx(.11) and (row.seeds, row.failed) == (3, 1)
    assert row.verdict == 'not distinguishable with 2 seeds'
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
    assert comparison.verdicts() == ['mixed against none: not distinguishable with 1 seed (accuracy +0.1000)']
    assert '±' not in str(comparison) and len(comparison.plot()) == 3


def test_one_arm():
    comparison = made(dict(none=[.5, .6]))
    assert comparison.verdicts() == [] and 'against' not in str(comparison)
    assert str(comparison).splitlines()[-1].split()[:2] == ['none', '2'] and len(comparison.plot()) == 3


def test_without_spread_there_is_no_interval():
    found = paired_difference([.02, .02 + 1e-17, .02])
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
    assert comparison.judged_by() == ('valid_loss', False) and 'valid loss against none (lower is better)' in comparison.for_reading()
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
    assert [ax.get_title() for ax in axes] == ['train loss', 'valid loss', 'accuracy', 'error rate', 'error rate against none']
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
