import math
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, error_rate
from fastai.torch_core import get_random_states
from scipy.stats import ttest_rel
from torch import nn

from fastmix.callback import CutMix, ManifoldMixUp, MixChoice, MixUp
from fastmix.compare import (AllRunsFailed, Comparison, OtherResults, arm_learner, arm_text, calls_of, compare, name_of,
                             paired_difference, read_results)


@pytest.fixture(scope='module')
def dls():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(96) % 3
    x = torch.randn(96, 1, 6, 6, generator=generator) + y[:, None, None, None]
    pairs = list(zip(x, y))
    return DataLoaders(DataLoader(pairs[:72], bs=8, shuffle=True, drop_last=True), DataLoader(pairs[72:], bs=24))


@pytest.fixture
def make_learner(dls):
    def make():
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, lr=0.05)
    return make


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


@pytest.mark.parametrize('mixer', [MixUp(), CutMix()])
def test_arms_get_the_same_batches_in_the_same_order(make_learner, mixer):
    plain, mixed = (watched(make_learner, arm, 7)[0] for arm in (None, mixer))
    assert torch.equal(plain, mixed)
    assert not torch.equal(plain, watched(make_learner, mixer, 8)[0])


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
    compare(make_learner, dict(mixup=mixer), lambda learn: learn.fit(1), progress=False)
    assert (mixer.rng, mixer.mix) == (before.rng, before.mix)


three_arms = {'none': None, 'MixUp': MixUp(), 'CutMix': CutMix()}


def fit(learn): learn.fit(2)


@pytest.fixture(scope='module')
def finished(dls):
    "A comparison of three arms and three seeds"
    def make():
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
        return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=[accuracy, error_rate], lr=0.05)
    return compare(make, three_arms, fit, seeds=3, progress=False)


def test_runs_and_curves(finished):
    runs, curves = finished.runs, finished.curves
    assert list(zip(runs.seed, runs.arm)) == [(seed, arm) for seed in (42, 43, 44) for arm in three_arms]
    assert finished.measures == ['train_loss', 'valid_loss', 'accuracy', 'error_rate']
    assert (runs.status == 'finished').all() and (runs.epochs == 2).all() and (runs.seconds > 0).all() and (runs.cpu_seconds > 0).all()
    assert (runs.groupby('seed').weights.nunique() == 1).all() and runs.weights.nunique() == 3
    assert runs.versions.str.match(r'fastmix \S+, fastai \S+, torch \S+, Python \S+$').all()
    last = curves[curves.epoch == 2].reset_index(drop=True)
    assert len(curves) == 18 and last[finished.measures].equals(runs[finished.measures])


def test_runs_repeat(make_learner):
    first, second = (compare(make_learner, dict(mixup=MixUp()), fit, progress=False).curves for _ in range(2))
    assert first.equals(second)


def test_a_seed_does_not_depend_on_those_before(make_learner):
    arms = {'none': None, 'MixUp': MixUp()}
    both = compare(make_learner, arms, fit, seeds=2, seed=5, progress=False).curves
    alone = compare(make_learner, arms, fit, seed=6, progress=False).curves
    assert both[both.seed == 6].reset_index(drop=True).equals(alone)


def test_all_fits_are_in_the_curves(make_learner):
    def twice(learn):
        learn.fit(1)
        learn.validate()
        learn.fit(2)
    curves = compare(make_learner, dict(none=None), twice, progress=False).curves
    assert list(curves.epoch) == [1, 2, 3] and not curves.isna().any(axis=None)


def test_what_evaluate_gives_is_a_measure(make_learner):
    result = compare(make_learner, dict(none=None), fit, evaluate=lambda learn: dict(size=torch.tensor(3.)), progress=False)
    assert result.measures[-1] == 'size' and result.runs['size'].tolist() == [3.]


@pytest.mark.parametrize('arm', [MixChoice(MixUp(), CutMix()), ManifoldMixUp(layers=nn.Linear), [MixUp()], MixUp])
def test_anything_that_a_learner_takes_is_an_arm(make_learner, arm):
    assert (compare(make_learner, {'none': None, 'arm': arm}, fit, progress=False).runs.status == 'finished').all()


def test_the_table(finished):
    table, runs = finished.table(), finished.runs
    assert list(table.index) == list(three_arms) and (table.seeds == 3).all() and (table.failed == 0).all()
    for arm in three_arms:
        own = runs[runs.arm == arm]
        assert table.accuracy[arm] == own.accuracy.mean() and table.accuracy_sd[arm] == own.accuracy.std()
        assert table.seconds_per_epoch[arm] == pytest.approx((own.seconds/2).mean())
    for metric, lower in dict(accuracy=False, error_rate=True, valid_loss=True).items():
        table = finished.table(metric)
        values = {arm: runs[runs.arm == arm][metric].to_numpy() for arm in three_arms}
        for arm in ('MixUp', 'CutMix'):
            expected = ttest_rel(values[arm], values['none'])
            interval = expected.confidence_interval()
            got = table.loc[arm]
            np.testing.assert_allclose([got.difference, got.ci_low, got.ci_high],
                                       [(values[arm] - values['none']).mean(), interval.low, interval.high], rtol=1e-9, atol=1e-12)
            sure = expected.pvalue < .05
            assert got.verdict == (('better' if (got.difference < 0) == lower else 'worse') if sure else 'not distinguishable with 3 seeds')
    assert pd.isna(table.difference['none']) and pd.isna(table.verdict['none'])


@pytest.mark.parametrize('differences, verdict', [
    ([.01, .011, .012], 'better'), ([-.01, -.011, -.012], 'worse'), ([.01, -.01, .03], 'not distinguishable with 3 seeds'),
    ([.5], 'not distinguishable with 1 seed'), ([], 'not distinguishable with 0 seeds'), ([0., 0.], 'not distinguishable with 2 seeds')])
def test_verdicts(differences, verdict):
    assert paired_difference(differences)['verdict'] == verdict
    swap = dict(better='worse', worse='better')
    assert paired_difference(differences, higher_is_better=False)['verdict'] == swap.get(verdict, verdict)


def test_the_table_for_reading(finished):
    table, text = finished.for_reading(), str(finished)
    mean, sd = (f'{value:.4f}' for value in (finished.table().accuracy['none'], finished.table().accuracy_sd['none']))
    assert table.accuracy[0] == f'{mean} ± {sd}' and f'{mean} ± {sd}' in text
    assert table['accuracy against none'][0] == '' and table['accuracy against none'][1].count('[') == 1
    assert '<table' in finished._repr_html_() and repr(finished) == text
    assert len(finished.verdicts()) == 2 and finished.verdicts()[0].startswith('MixUp against none: ')


def test_one_seed_has_no_spread(make_learner):
    result = compare(make_learner, {'none': None, 'MixUp': MixUp()}, fit, progress=False)
    assert '±' not in str(result) and '[' not in str(result) and 'with 1 seed' in str(result)
    assert [ax.get_title() for ax in result.plot()] == ['train loss', 'valid loss', 'accuracy']
    plt.close('all')


def test_without_metrics_the_validation_loss_decides(dls):
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=CrossEntropyLossFlat())
    assert compare(make, dict(none=None), fit, progress=False).judged_by() == ('valid_loss', False)


def test_an_unknown_measure(finished):
    with pytest.raises(ValueError, match="no measure 'acuracy': there are train_loss, valid_loss, accuracy, error_rate"):
        finished.table('acuracy')


def test_the_global_random_state_is_left_alone(make_learner):
    before = get_random_states()
    compare(make_learner, dict(mixup=MixUp()), lambda learn: learn.fit(1), progress=False)
    after = get_random_states()
    assert torch.equal(before['torch_state'], after['torch_state'])
    assert before['random_state'] == after['random_state']
    assert np.array_equal(before['numpy_state'][1], after['numpy_state'][1])


@pytest.mark.parametrize('progress', [True, False])
def test_progress(make_learner, capsys, progress):
    compare(make_learner, {'none': None, 'MixUp': MixUp()}, lambda learn: learn.fit(1), seed=7, progress=progress)
    printed = capsys.readouterr().out
    assert ('none, seed 7 (run 1 of 2)' in printed) is ('MixUp, seed 7 (run 2 of 2, about 0 s left)' in printed) is progress


@pytest.mark.parametrize('arms, seeds', [({}, 1), (dict(none=None), 0)])
def test_nothing_to_compare(make_learner, arms, seeds):
    with pytest.raises(ValueError, match='needs an arm and a seed'): compare(make_learner, arms, print, seeds=seeds)


def test_a_shared_model_is_refused(dls):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    def make(): return Learner(dls, model, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='new model each time: the arm MixUp .* arm none'):
        compare(make, {'none': None, 'MixUp': MixUp()}, lambda learn: learn.fit(1), progress=False)


class OutOfMemory(Callback):
    def before_batch(self): raise torch.OutOfMemoryError('no memory\nleft')


class NotANumber(Callback):
    def after_loss(self): self.learn.loss_grad = self.learn.loss = self.learn.loss_grad*math.nan


def test_failed_runs_are_recorded_and_the_others_go_on(make_learner, tmp_path):
    arms = {'none': None, 'memory': OutOfMemory(), 'nan': NotANumber(), 'MixUp': MixUp()}  # nan: as a name, no missing value
    result = compare(make_learner, arms, fit, seeds=2, folder=tmp_path, progress=False)
    status = result.runs.set_index(['arm', 'seed']).status
    assert (status['none'] == 'finished').all() and (status['MixUp'] == 'finished').all()
    assert status['memory', 43].startswith('failed: OutOfMemoryError: ') and status['memory', 43].endswith('no memory left')
    assert status['nan', 42] == 'failed: the loss is not a finite number'
    assert result.runs.set_index('arm').epochs['nan'].tolist() == [1, 1]  # and not 2
    table = result.table()
    assert table.failed.to_dict() == dict(none=0, memory=2, nan=2, MixUp=0) and pd.isna(table.accuracy['nan'])
    assert table.verdict['memory'] == 'not distinguishable with 0 seeds'
    assert '0 (2 failed)' in str(result) and 'memory, seed 42 failed: OutOfMemoryError: ' in str(result)
    assert 'memory has no finished run to compare with none' in result.verdicts()
    assert 'Failed runs' in result.report(tmp_path).read_text()
    result.plot()
    plt.close('all')
    again = compare(make_learner, arms, fit, seeds=2, folder=tmp_path, progress=False)
    pd.testing.assert_frame_equal(again.runs, result.runs)


def test_a_failed_arm_is_paired_where_both_finished(make_learner):
    def sometimes(learn):
        if torch.initial_seed() == 43 and hasattr(learn, 'mix_up'): raise RuntimeError('bad luck')
        learn.fit(1)
    result = compare(make_learner, {'none': None, 'MixUp': MixUp()}, sometimes, seeds=3, progress=False)
    runs = result.finished.pivot(index='seed', columns='arm', values='accuracy').loc[[42, 44]]
    assert result.table().difference['MixUp'] == pytest.approx((runs['MixUp'] - runs['none']).mean())


def test_when_every_run_fails_the_reason_is_told(make_learner):
    with pytest.raises(AllRunsFailed, match='every run failed; the first: fit trained no epoch'):
        compare(make_learner, dict(none=None), lambda learn: learn.validate(), progress=False)


def test_interrupted_and_taken_up_again(make_learner, tmp_path):
    fits = []
    def interrupted(learn):
        fits.append(1)
        if len(fits) == 4: raise KeyboardInterrupt
        learn.fit(1)
    def go(): return compare(make_learner, {'none': None, 'MixUp': MixUp()}, interrupted, seeds=3, folder=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt): go()
    before = (tmp_path/'results.csv').read_text()
    assert before.count('\n') == 4
    result = go()
    assert len(fits) == 3 + 1 + 3 and (tmp_path/'results.csv').read_text().startswith(before)
    assert list(result.runs.arm) == ['none', 'MixUp']*3 and len(result.curves) == 6
    read = read_results(tmp_path)
    pd.testing.assert_frame_equal(read.runs, result.runs, check_exact=True)
    pd.testing.assert_frame_equal(read.curves, result.curves, check_exact=True)
    assert str(read) == str(result) and sorted(path.name for path in tmp_path.iterdir()) == ['curves.csv', 'results.csv', 'settings.json']


def test_killed_and_taken_up_again(tmp_path):
    script = tmp_path/'script.py'
    script.write_text('''
import sys, time, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from fastmix.callback import MixUp
from fastmix.compare import compare

torch.manual_seed(0)
pairs = [(torch.randn(4), torch.tensor(i % 2)) for i in range(32)]
dls = DataLoaders(*[DataLoader(pairs, bs=8)]*2)
def fit(learn):
    time.sleep(float(sys.argv[2]))
    learn.fit(1)
compare(lambda: Learner(dls, nn.Linear(4, 2), loss_func=nn.CrossEntropyLoss()), {'none': None, 'MixUp': MixUp()}, fit, seeds=4, folder=sys.argv[1])
''')
    out = tmp_path/'out'
    def start(pause): return subprocess.Popen([sys.executable, script, out, pause], stdout=subprocess.PIPE, text=True, start_new_session=True,
                                              env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))
    running = start('1')
    while not (out/'results.csv').exists() or (out/'results.csv').read_text().count('\n') < 3:
        assert running.poll() is None
        time.sleep(.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    before = (out/'results.csv').read_text()
    again = start('0')
    printed, _ = again.communicate(timeout=120)
    after = (out/'results.csv').read_text()
    n = before.count('\n') - 1
    assert again.returncode == 0 and f'{n} of 8 runs are in' in printed
    assert 2 <= n < 8 and after.startswith(before) and after.count('\n') == 9


def test_more_seeds_and_arms_join(make_learner, tmp_path):
    first = compare(make_learner, {'none': None, 'MixUp': MixUp()}, fit, folder=tmp_path, progress=False)
    more = compare(make_learner, {'none': None, 'CutMix': CutMix()}, fit, seeds=2, folder=tmp_path, progress=False)
    assert list(zip(more.runs.arm, more.runs.seed)) == [('none', 42), ('CutMix', 42), ('none', 43), ('CutMix', 43)]
    assert more.runs.seconds[0] == first.runs.seconds[0] and len(read_results(tmp_path).runs) == 5


def contents(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('change, message', [
    (dict(fit=lambda learn: learn.fit(3)), 'fit: fit 2 there, fit 3 now'),
    (dict(arms={'none': None, 'MixUp': MixUp(.9)}), r'arm MixUp: MixUp\(alpha=0.4, .* there, MixUp\(alpha=0.9'),
    (dict(settings=dict(size=64)), 'size: None there, 64 now'),
])
def test_other_settings_are_refused(make_learner, tmp_path, change, message):
    given = dict(arms={'none': None, 'MixUp': MixUp()}, fit=lambda learn: learn.fit(2))
    compare(make_learner, **given, folder=tmp_path, progress=False)
    before = contents(tmp_path)
    with pytest.raises(OtherResults, match=message): compare(make_learner, **given | change, folder=tmp_path, progress=False)
    assert contents(tmp_path) == before


def test_another_model_is_refused(make_learner, dls, tmp_path):
    compare(make_learner, dict(none=None), fit, folder=tmp_path, progress=False)
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with pytest.raises(OtherResults, match='model: Sequential, 643 parameters there, Sequential, 111 parameters now'):
        compare(make, dict(none=None), fit, folder=tmp_path, progress=False)


@pytest.mark.parametrize('damage', [lambda folder: (folder/'settings.json').unlink(), lambda folder: (folder/'curves.csv').unlink(),
                                    lambda folder: (folder/'settings.json').write_text('half of')])
def test_damaged_results_are_refused(make_learner, tmp_path, damage):
    compare(make_learner, dict(none=None), fit, folder=tmp_path, progress=False)
    damage(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OtherResults, match='cannot be read'): compare(make_learner, dict(none=None), fit, folder=tmp_path, progress=False)
    assert contents(tmp_path) == before


class Fit:
    def __init__(self, epochs): self.epochs = epochs
    def __call__(self, learn): learn.fit(self.epochs)
    def method(self, learn, lr=.1): learn.fit(2, lr)


def test_what_a_fit_calls():
    def closure(epochs): return lambda learn: learn.fit(epochs)
    assert calls_of(closure(3)) == 'fit epochs=3' and calls_of(closure(4)) == 'fit epochs=4'
    assert calls_of(Fit(1).method) == 'fit 0.1 2' and calls_of(Fit(1)) == 'Fit'
    assert calls_of(partial(fit, lr=2, other=object())) == 'fit 2 lr=2'
    assert calls_of(lambda learn: learn.fit_one_cycle(5, lr_max=.1)) == calls_of(lambda l: l.fit_one_cycle(5, lr_max=.1))
    assert name_of(partial(print, end='')) == 'print end=' and name_of(nn.CrossEntropyLoss()) == 'CrossEntropyLoss'


def test_what_an_arm_is():
    assert arm_text(None) == 'no mixing' and arm_text(CutMix(seed=3)).startswith('CutMix(alpha=1.0, per=batch') and 'seed=3' in arm_text(CutMix(seed=3))
    assert 'CutMix' in arm_text(MixChoice(MixUp(), CutMix())) and arm_text(MixUp) != arm_text(CutMix)


def test_the_plot(finished):
    axes = finished.plot()
    assert [ax.get_title() for ax in axes] == ['train loss', 'valid loss', 'accuracy', 'error rate', 'accuracy against none']
    line = axes[2].lines[0]
    none = finished.curves[finished.curves.arm == 'none']
    np.testing.assert_allclose(line.get_ydata(), none.groupby('epoch').accuracy.mean())
    assert [label.get_text() for label in axes[-1].get_yticklabels()] == ['MixUp', 'CutMix']
    plt.close('all')


def test_the_plot_of_what_was_read(finished):
    assert len(Comparison(finished.runs, finished.curves).plot('error_rate')) == 5
    plt.close('all')


def test_a_report_needs_no_other_file(make_learner, tmp_path):
    arms = {'none': None, '<b>MixUp</b>': MixUp()}
    result = compare(make_learner, arms, fit, seeds=2, settings=dict(note='a & b'), progress=False)
    before = get_random_states()
    page = result.report(tmp_path/'new', title='Does <it> help?')
    assert torch.equal(before['torch_state'], get_random_states()['torch_state']) and not plt.get_fignums()
    text = page.read_text()
    assert page == tmp_path/'new'/'report.html' and list(page.parent.iterdir()) == [page]
    assert 'src="http' not in text and 'href=' not in text and '<script' not in text and text.count('src="data:image/png;base64,') == 2
    assert '<b>MixUp' not in text and '&lt;b&gt;MixUp&lt;/b&gt; against none' in text and 'Does &lt;it&gt; help?' in text
    assert 'a &amp; b' in text and 'torch ' in text and result.runs.weights[0] in text
    assert 'What the network saw' not in Comparison(result.runs, result.curves).report(tmp_path).read_text()
