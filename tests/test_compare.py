from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy, error_rate
from fastai.torch_core import get_random_states
from torch import nn

from fastmix.callback import CutMix, MixUp
from fastmix.compare import arm_learner, compare


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


def test_table(make_learner):
    arms = {'none': None, 'MixUp': MixUp(), 'CutMix': CutMix()}
    comparison = compare(make_learner, arms, lambda learn: learn.fit(2), progress=False)
    table = comparison.table()
    assert list(table.columns) == ['arm', 'seed', 'train_loss', 'valid_loss', 'accuracy', 'seconds']
    assert list(table.arm) == list(arms) and set(table.seed) == {42} and (table.seconds > 0).all()
    for run, accuracy_ in zip(comparison.runs, table.accuracy):
        assert list(run.history.epoch) == [1, 2]
        assert run.history.accuracy.iloc[-1] == run.final['accuracy'] == accuracy_
    assert table.train_loss.nunique() == 3


def test_runs_repeat(make_learner):
    first, second = (compare(make_learner, dict(mixup=MixUp()), lambda learn: learn.fit(2), progress=False).runs[0]
                     for _ in range(2))
    assert first.history.equals(second.history)


def test_several_seeds(make_learner):
    arms = {'none': None, 'MixUp': MixUp()}
    comparison = compare(make_learner, arms, lambda learn: learn.fit(1), seeds=2, seed=5, progress=False)
    assert [(run.arm, run.seed) for run in comparison.runs] == [('none', 5), ('MixUp', 5), ('none', 6), ('MixUp', 6)]
    alone = compare(make_learner, arms, lambda learn: learn.fit(1), seed=6, progress=False)
    assert comparison.runs[3].history.equals(alone.runs[1].history)


def test_all_fits_are_in_the_history(make_learner):
    def twice(learn):
        learn.fit(1)
        learn.validate()
        learn.fit(2)
    run, = compare(make_learner, dict(none=None), twice, progress=False).runs
    assert list(run.history.epoch) == [1, 2, 3] and not run.history.isna().any(axis=None)


def test_the_global_random_state_is_left_alone(make_learner):
    before = get_random_states()
    compare(make_learner, dict(mixup=MixUp()), lambda learn: learn.fit(1), progress=False)
    after = get_random_states()
    assert torch.equal(before['torch_state'], after['torch_state'])
    assert before['random_state'] == after['random_state']
    assert np.array_equal(before['numpy_state'][1], after['numpy_state'][1])


@pytest.mark.parametrize('progress', [True, False])
def test_progress(make_learner, capsys, progress):
    compare(make_learner, dict(none=None), lambda learn: learn.fit(1), progress=progress)
    assert ('none (run 1 of 1)' in capsys.readouterr().out) is progress


@pytest.mark.parametrize('arms, seeds', [({}, 1), (dict(none=None), 0)])
def test_nothing_to_compare(make_learner, arms, seeds):
    with pytest.raises(ValueError, match='needs an arm and a seed'): compare(make_learner, arms, print, seeds=seeds)


def test_a_fit_without_epochs(make_learner):
    with pytest.raises(ValueError, match='fit trained no epoch'):
        compare(make_learner, dict(none=None), lambda learn: learn.validate(), progress=False)


def test_a_shared_model_is_refused(dls):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    def make(): return Learner(dls, model, loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match='new model each time: the arm MixUp .* arm none'):
        compare(make, {'none': None, 'MixUp': MixUp()}, lambda learn: learn.fit(1), progress=False)


def test_a_shared_learner_is_refused(make_learner):
    learn = make_learner()
    with pytest.raises(ValueError, match='new model each time'):
        compare(lambda: learn, {'none': None, 'again': None}, lambda learn: learn.fit(1), progress=False)


def test_plot(make_learner):
    def make():
        learn = make_learner()
        learn.metrics.append(learn.metrics[0].__class__(error_rate))
        return learn
    comparison = compare(make, {'none': None, 'MixUp': MixUp()}, lambda learn: learn.fit(3), seeds=2, progress=False)
    axes = comparison.plot(figsize=(9, 3))
    assert [ax.get_title() for ax in axes] == ['train loss', 'valid loss', 'accuracy', 'error rate']
    assert list(axes[0].figure.get_size_inches()) == [9, 3]
    for ax in axes:
        assert len(ax.lines) == 4 and len({line.get_color() for line in ax.lines}) == 2
    assert list(axes[1].lines[1].get_ydata()) == list(comparison.runs[1].history.valid_loss)
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == ['none', 'MixUp']
    plt.close('all')
