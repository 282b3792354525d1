"""MixUp of more than two samples."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.tabular.core import Categorify, Normalize
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from torch import nn

import many
from fastmix.all import Batch, Blend, MixChoice, MixedBatch, MixMetric, MixUp, RICAP, arguments, check_mixer, draw_several, mix_rng, plot_lam, rotation, show_mix, show_mixers
from fastmix.loss import weighted_loss
from helpers import check_goes_on
from many import BS, class_loss_by_hand, fit, hot, longest_piece, metric_by_hand, numbers, several, shares_seen, soft

per = pytest.mark.parametrize('per', ['batch', 'sample'])


def averaged(x, mix, source=None):
    "Each sample and its partners, one after the other, by NumPy in double precision"
    x = np.asarray(x, dtype=np.complex128 if x.is_complex() else np.float64)
    source = x if source is None else np.asarray(source, dtype=x.dtype)
    shares, partners = mix.shares.double().expand(-1, len(x)).numpy(), mix.partners.numpy()
    return torch.from_numpy(np.stack([shares[0, i]*x[i] + sum(share[i]*source[row[i]] for share, row in zip(shares[1:], partners)) for i in range(len(x))]))


@per
@pytest.mark.parametrize('k', [3, 4, 7])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_it_is_the_average(per, k, dtype):
    "Small and large, where the fast way is taken; in every dtype and layout"
    eps = {torch.bfloat16: 2**-6, torch.float16: 2**-9}.get(dtype, 1e-5)
    for size in (4, 5), (40, 50):
        x = torch.rand(9, 3, *size).to(dtype)
        for t in x, x.contiguous(memory_format=torch.channels_last):
            mix = MixUp(1., per=per, k=k).draw_mix(Batch((t,)), mix_rng(k))
            assert mix.partners.shape == (k-1, 9) and mix.shares.shape == (k, 9 if per == 'sample' else 1)
            for source in None, t.flip(0):
                out = mix(t, source)
                assert out.dtype == dtype and out.stride() == t.stride() and (out - averaged(t.to(torch.complex64) if t.is_complex() else t.float(), mix, source if source is None or t.is_complex() else source.float())).abs().max() < eps


def test_the_fast_way_is_the_plain_one():
    x = torch.rand(11, 2, 40, 40, dtype=torch.float64)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(2, 6))
        shares = rng.dirichlet([.2]*(k+1), 11).T.astype(np.float32)
        shares[:, 0], shares[:, 1] = np.eye(k+1)[[0, -1]] # All of one sample
        for mix in Blend(shares, draw_several(11, k, rng)), Blend(shares[:, :1], draw_several(11, k, rng)), Blend(shares, [rotation(11, 0), *draw_several(11, k-1, rng)]):
            for source in None, x.flip(0): torch.testing.assert_close(mix.blend_rotations(x, source), mix.blend_many(x, source), atol=1e-6, rtol=0)


def test_nothing_but_what_it_is_made_of():
    "NaN and infinity reach those they are mixed into, and nobody else"
    x = torch.rand(8, 1, 60, 60)
    x[3] = float('nan')
    mix = MixUp(1., k=3).draw_mix(Batch((x,)), mix_rng(0))
    reached = {3, *(i for i in range(8) if 3 in mix.partners[:, i])}
    assert len(reached) == 3 and {i for i in range(8) if mix(x)[i].isnan().any()} == reached


def test_the_batch_is_not_written_to():
    x = torch.rand(8, 1, 60, 60)
    kept, mix = x.clone(), MixUp(1., k=3).draw_mix(Batch((x,)), mix_rng(0))
    assert not torch.equal(mix(x), x) and torch.equal(x, kept)


@pytest.mark.parametrize('alpha', [.4, 1., (1., .3)])
@pytest.mark.parametrize('k', [3, 5])
def test_the_law_of_the_shares(alpha, k):
    "Dirichlet's: mean and variance of each share, and of the largest"
    n = 20_000
    shares = MixUp(alpha, k=k, fold=False).draw_mix(Batch((torch.zeros(n, 1),)), mix_rng(0)).shares.double()
    own, other = alpha if isinstance(alpha, tuple) else (alpha, alpha)
    a = torch.tensor([own] + [other]*(k-1), dtype=torch.float64)
    mean, error = a/a.sum(), 5*.5/n**.5
    assert (shares.mean(1) - mean).abs().max() < error and (shares.var(1) - mean*(1-mean)/(a.sum()+1)).abs().max() < error
    folded = MixUp(alpha, k=k).draw_mix(Batch((torch.zeros(n, 1),)), mix_rng(0)).shares.double()
    assert torch.equal(folded[0], shares.max(0).values) and torch.equal(folded.sort(0).values, shares.sort(0).values)
    if own == other: assert abs(folded[0].mean().item() - longest_piece(own, k)) < error
    if alpha == 1.: assert abs(longest_piece(1., k) - sum(1/i for i in range(1, k+1))/k) < .002 # What is known of it


def test_an_alpha_that_changes():
    "As a function of the fit's progress"
    batch = Batch((torch.zeros(20_000, 1),))
    for batch.done in 0., 1.:
        lam = MixUp(lambda done: .2 + done, k=3).draw_mix(batch, mix_rng(0)).lam
        assert abs(lam.mean().item() - longest_piece(.2 + batch.done, 3)) < 5*.5/20_000**.5


def test_two_are_as_they_were():
    "`k=2` draws what it has always drawn"
    for seed in range(5):
        rng = mix_rng(seed)
        lam = rng.beta(.4, .4, 6)
        shift = int(rng.integers(1, 6))
        mix = MixUp().draw_mix(Batch((torch.zeros(6, 2),)), mix_rng(seed))
        torch.testing.assert_close(mix.lam, torch.from_numpy(np.maximum(lam, 1-lam)).float())
        assert mix.shift == shift and mix.shares.shape == (2, 6)


def test_small_batches_take_all_there_are():
    for n in 2, 3, 4:
        mix = MixUp(k=5).draw_mix(Batch((torch.rand(n, 2),)), mix_rng(0))
        assert mix.partners.shape == (n-1, n) and all({i, *mix.partners[:, i].tolist()} == set(range(n)) for i in range(n))
    pair = MixUp(k=3).draw_mix(Batch((torch.rand(2, 2),)), mix_rng(0), lam=.3) # As with two, what was asked for
    assert pair.lam.tolist() == pytest.approx([.3, .3])


@per
@pytest.mark.parametrize('weight', [None, torch.tensor([1., 4., .5])])
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_the_loss_by_hand(per, weight, loss):
    rows = fit(MixUp(1., per=per, k=3, seed=1), loss(weight=weight))[1]
    assert several(rows)
    for row in rows: torch.testing.assert_close(row.loss, class_loss_by_hand(row, weight))


def test_label_smoothing_and_targets_that_are_ignored():
    loss = nn.CrossEntropyLoss(ignore_index=1, label_smoothing=.1)
    for row in fit(MixUp(1., k=4, seed=1), loss)[1]:
        each = torch.stack([F.cross_entropy(row.pred, torch.full((BS,), c), label_smoothing=.1, reduction='none') for c in range(3)], 1)
        counts = shares_seen(row) @ hot*torch.tensor([1., 0, 1])
        torch.testing.assert_close(row.loss, (counts*each).sum()/counts.sum())


@per
def test_other_losses_by_hand(per):
    for row in fit(MixUp(1., per=per, k=3, seed=1), y=soft)[1]: torch.testing.assert_close(row.loss, F.cross_entropy(row.pred, shares_seen(row) @ soft))
    for row in fit(MixUp(1., per=per, k=3, seed=1), nn.MSELoss(), y=numbers, out=1)[1]: torch.testing.assert_close(row.loss, F.mse_loss(row.pred, shares_seen(row) @ numbers))
    for row in fit(MixUp(1., per=per, k=3, seed=1), nn.BCEWithLogitsLoss(), y=hot)[1]: torch.testing.assert_close(row.loss, F.binary_cross_entropy_with_logits(row.pred, shares_seen(row) @ hot))
    for row in fit(MixUp(1., per=per, k=3, seed=1), many.RootLoss())[1]: torch.testing.assert_close(row.loss, many.root_loss_by_hand(row))


def test_numbers_that_are_weighed():
    for loss in nn.MSELoss(), nn.L1Loss():
        for row in fit(MixUp(1., k=3, targets='weigh', seed=1), loss, y=numbers, out=1)[1]:
            each = type(loss)(reduction='none')(row.pred.expand(BS, many.N), numbers.T.expand(BS, many.N))
            torch.testing.assert_close(row.loss, (shares_seen(row)*each).sum()/BS)


def test_a_union_of_all_labels():
    for row in fit(MixUp(1., k=3, targets='union', seed=1), nn.BCEWithLogitsLoss(), y=hot)[1]:
        assert torch.equal(row.y, ((shares_seen(row) >= .05).float() @ hot).clamp(max=1))


def test_metrics_and_company():
    learn, rows = fit(MixUp(1., k=3, seed=1), metrics=MixMetric(accuracy), epochs=1)
    assert learn.recorder.values[0][1] == pytest.approx(np.mean([metric_by_hand(row) for row in rows]), abs=1e-5)
    rows = fit(MixChoice(MixUp(k=4), RICAP(1.), MixUp(), seed=2), epochs=4)[1]
    assert {len(row.mix.rows) for row in rows} == {1, 3}
    for row in rows: torch.testing.assert_close(row.loss, class_loss_by_hand(row))
    for row in fit(MixUp(1., k=3, beside=True, seed=1))[1]:
        halves = [SimpleNamespace(x=x, pred=out) for x, out in zip(row.x.split(BS), row.out.split(BS))]
        torch.testing.assert_close(row.loss, sum(map(class_loss_by_hand, halves))/2)


def test_tables_are_mixed_behind_their_embeddings():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(job=rng.choice(['cook', 'smith'], 64), age=rng.normal(size=64), rich=rng.choice(['no', 'yes'], 64)))
    dls = TabularDataLoaders.from_df(table, procs=[Categorify, Normalize], cat_names=['job'], cont_names=['age'], y_names='rich', bs=16, valid_idx=range(48, 64))
    learn = tabular_learner(dls, layers=[8], cbs=MixUp(1., k=3, seed=0)).remove_cbs([ProgressCallback, Recorder])
    seen = []
    learn.model.layers.register_forward_pre_hook(lambda module, args: seen.append(args[0]), prepend=True) # Before the mixer's
    learn.model.layers[0][0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    learn.fit(1)
    mix = learn.cbs.filter(lambda cb: isinstance(cb, MixUp))[0].mix
    assert mix.shares.shape == (3, 16)
    rows = [[a, b] for a, b in zip(seen[::2], seen[1::2]) if not torch.equal(a, b)]
    assert len(rows) == 3
    torch.testing.assert_close(rows[-1][1].detach(), averaged(rows[-1][0].detach(), mix).float())


def test_what_it_promises_and_what_it_refuses():
    for kwargs in {}, dict(per='batch'), dict(fold=False), dict(beside=True):
        for k in 3, 5: check_mixer(MixUp(1., k=k, **kwargs), draws=5)
    class Swapped(MixUp):
        "Gives the second partner's share to the first"
        def draw(self, batch, lam, rng):
            mix = super().draw(batch, lam, rng)
            mix.weigh(mix.shares[[0, 2, 1]])
            return mix
    with pytest.raises(AssertionError, match='does not count as much'): check_mixer(Swapped(1., k=3))
    for bad, error in (1, ValueError), (0, ValueError), (-3, ValueError), (2.5, TypeError), ('3', TypeError), (True, TypeError), (None, TypeError):
        with pytest.raises(error, match='`k` must be'): MixUp(k=bad)
    assert arguments(MixUp(k=3))['k'] == 3
    loader = DataLoader(range(4))
    with pytest.raises(ValueError, match='otherwise than λ'): plot_lam(MixUp(), MixUp(k=3))
    for given in dict(partner='same'), dict(source=loader), dict(decouple=.1):
        for make, otherwise in (lambda **kwargs: MixUp(k=3, **kwargs), 'k=2'), (RICAP, 'CutMix'):
            with pytest.raises(ValueError, match=f'`{next(iter(given))}` is for methods with one partner.*{otherwise}'): make(**given)
        MixUp(k=2, **given)


def test_many_go_on_after_a_stop_and_in_a_copy(): check_goes_on(lambda: MixUp(k=3), Batch((torch.rand(4, 2),)))


@per
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=.1)])
def test_nothing_is_read_off_the_device(per, loss):
    "Torch's meta device has no data, so reading it raises"
    x, y = torch.empty(8, 3, 40, 40, device='meta'), torch.randint(0, 3, (8,), device='meta')
    under = MixedBatch(MixUp(per=per, k=3), Batch((x,), (y,)), mix_rng(0))
    assert under.inputs()[0].is_meta
    assert weighted_loss(loss, torch.empty(8, 3, device='meta'), (y,), under.targets, under.mix).shape == ()


def test_pictures_name_all_samples():
    names = 'temple', 'lake', 'flower', 'leaf'
    dls = DataLoaders(DataLoader(list(zip(torch.rand(4, 3, 9, 9), names)), bs=4), DataLoader([], bs=4))
    axes = show_mix(dls, MixUp(1., k=3), sources=True, max_n=2, seed=1)
    assert axes.shape == (2, 4)
    for row in axes:
        title, shown = row[-1].get_title().replace('\n', ' '), [ax.get_title().replace('\n', ' ').split(': ') for ax in row[:-1]]
        assert [role for role, _ in shown] == ['own', 'partner 1', 'partner 2'] and [part.split()[1] for part in title.split(' + ')] == [name for _, name in shown]
    numbers = DataLoaders(DataLoader(list(zip(torch.rand(4, 3, 9, 9), torch.tensor([1., 2., 4., 8.]))), bs=4), DataLoader([], bs=4))
    title = show_mix(numbers, MixUp(1., k=3), max_n=1, seed=1)[0].get_title().replace('\n', ' ')
    parts, total = title.split(' = ')
    assert parts.count('×') == 3 and float(total) == pytest.approx(sum(float(a)*float(b) for a, b in (part.split(' × ') for part in parts.split(' + '))), abs=.1)
    assert show_mixers(dls, {'three': MixUp(k=3)}, lams=(.2, .6))[0, 0].get_title() == 'λ = 0.20'
