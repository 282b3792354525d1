"The statistics of a comparison: their pieces by hand, and how often they are wrong where the truth is known"
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fastmix.compare.results import Comparison
from fastmix.compare.sentence import note_look
from fastmix.compare.verdict import dunnett_limit, intervals, judge, level_of, more_seeds, shared_spread


def luck(n_seeds, spreads=(1, 1, 1, 1), n=4000, seed=0, shape='normal', gain=0):
    "Differences `(n, arms - 1, seeds)` to the first arm, of arms that are all the same but for a `gain` of the second"
    rng, size = np.random.default_rng(seed), (n, len(spreads), n_seeds)
    runs = {'normal': rng.normal, 't': lambda size: rng.standard_t(3, size), 'skew': lambda size: -rng.exponential(size=size)}[shape](size=size)
    runs = runs * np.array(spreads)[:, None]
    runs[:, 1] += gain
    return runs[:, 1:] - runs[:, :1]


def found(d, **kwargs):
    mean, reach = intervals(d, **kwargs)
    return abs(mean) > reach


def made(metric='accuracy', looks=(), data='100 + 50 samples, 0', **arms):
    rows = [{'arm': arm, 'seed': seed, 'status': 'finished' if value is not None else 'failed: x', 'epochs': 1, metric: value, 'seconds': 1., 'data': data}
            for arm, values in arms.items() for seed, value in enumerate(values)]
    return Comparison(pd.DataFrame(rows), pd.DataFrame(columns=['arm', 'seed', 'epoch', metric]), looks=list(looks))


# ---- simulated: what is promised

worlds = [((1, 1, 1, 1), 'normal'), ((2, 1, 1, 1), 'normal'), ((3, 1, 1, 1), 'normal'), ((1, 1, 1, 2), 'normal'), ((1, 1, 1, 3), 'normal'),
          ((1, 1, 2, 3), 'normal'), ((1, 1, 1, 1), 't'), ((1, 1, 1, 1), 'skew')]


@pytest.mark.parametrize('n_seeds', [3, 5, 10])
@pytest.mark.parametrize('spreads, shape', worlds)
def test_at_most_one_false_verdict_in_twenty_comparisons(spreads, shape, n_seeds):
    assert found(luck(n_seeds, spreads, shape=shape)).any(axis=1).mean() < .05


@pytest.mark.parametrize('spreads, shape', [*worlds, ((1, 1), 'normal'), ((1, 1, 1), 'normal'), ((1,)*6, 'normal')])
def test_also_after_a_look_at_each_seed(spreads, shape):
    d = luck(10, spreads, seed=1, shape=shape)
    assert np.stack([found(d[..., :n], looks=tuple(range(3, n))) for n in range(3, 11)]).any(axis=(0, 2)).mean() < .05


def test_what_is_there_is_found():
    power = {n: found(luck(n, gain=2, seed=2))[:, 0].mean() for n in (3, 5, 10)}
    strict = {n: (stats.ttest_1samp(luck(n, gain=2, seed=2), 0, axis=-1).pvalue < .05/3)[:, 0].mean() for n in (3, 5)}
    assert power[3] > 1.3*strict[3] and power[5] > 1.2*strict[5] and power[10] > .9


def test_the_intervals_hold_together():
    d = luck(5, gain=2, seed=3)
    mean, reach = intervals(d)
    assert (abs(mean - [2, 0, 0]) <= reach).all(axis=1).mean() > .95


def test_each_of_several_comparisons_gets_its_part():
    d = luck(5, (1, 1), seed=4, n=20_000)
    assert .003 < found(d, among=5).mean() < .0115 # .04/5 = .008


# ---- the pieces

@pytest.mark.parametrize('k, df, limit', [(2, 10, 2.57), (3, 10, 2.76), (5, 10, 2.99), (3, 20, 2.54), (2, 5, 3.03), (9, 20, 2.95)])
def test_the_limits_are_those_of_dunnett(k, df, limit):
    "Two-sided, 5 %, as in the tables of Dunnett (1964)"
    assert dunnett_limit(k, df, .05) == pytest.approx(limit, abs=.015)


def test_one_arm_is_judged_by_the_paired_t_test():
    d = np.random.default_rng(1).normal(.01, .01, 6)
    row, expected = judge([d])[0], stats.ttest_1samp(d, 0).confidence_interval(1 - .05*5/6)
    np.testing.assert_allclose([row['difference'], row['ci_low'], row['ci_high']], [d.mean(), *expected], rtol=1e-9)


def test_the_shared_spread_by_hand():
    d = np.array([[1., 2, 3], [1, 1, 1], [0, 5, 10]])
    variance, df = shared_spread(d)
    np.testing.assert_allclose(variance, [26/3, 26/3, 25])
    assert df == pytest.approx(6/1.5)


def test_runs_that_failed_are_left_out():
    d = np.array([[1., 2, 3, np.nan], [1, 2, 4, 9], [np.nan]*4, [5, np.nan, np.nan, np.nan]])
    variance, df = shared_spread(d)
    shared = (2*1 + np.var(d[1], ddof=1)*3)/5
    np.testing.assert_allclose(variance, [shared, np.var(d[1], ddof=1), shared, shared])
    assert df == pytest.approx(5/1.25)
    rows = judge(d)
    assert [row['verdict'][:10] for row in rows] == ['not distin', 'not distin', 'no seed in', 'no verdict'] and math.isnan(rows[2]['difference'])


def test_the_spending_adds_up():
    for looks in ([3], [3, 5, 8], [5, 6, 20], range(3, 200)):
        assert sum(level_of(n, looks) for n in looks) < .05
    assert level_of(8, [1, 2]) == level_of(8) == level_of(8, [8, 9]) > level_of(8, [3])


def test_the_luckiest_spread_no_longer_wins():
    "Under attack, 10 images per class: the seeds of MixChoice agreed by luck"
    lucky = [.0535, .0540, .0530]
    others = [[.0633, .0493, .0265], [.0438, .0280, .0247]]
    rows = judge([lucky, *others])
    width = [row['ci_high'] - row['ci_low'] for row in rows]
    assert width[0] == pytest.approx(width[2], rel=.5) and width[0] > 20*np.std(lucky)


@pytest.mark.parametrize('d, margin, higher, verdict', [
    ([.02, .021, .019], None, True, 'better'), ([.02, .021, .019], None, False, 'worse'), ([.02, .021, .019], .01, True, 'better'),
    ([.001, -.001, .001], .005, True, 'the same within 0.005'), ([.003, .004, .001], .005, True, 'no worse than 0.005 below'),
    ([.003, .004, .001], .005, False, 'no better than 0.005 above'), ([-.003, -.004, -.001], .005, True, 'no better than 0.005 above'),
    ([.001, -.001, .001], None, True, 'not distinguishable with 3 seeds'), ([.1, .1], .5, True, 'no verdict with 2 seeds: it takes 3'),
    ([.1], None, True, 'no verdict with 1 seed: it takes 3'), ([], None, True, 'no seed in which both have a value')])
def test_in_words(d, margin, higher, verdict): assert judge([d], higher, margin)[0]['verdict'] == verdict


@pytest.mark.parametrize('margin', [0, -.01, math.nan])
def test_a_margin_is_positive(margin):
    with pytest.raises(ValueError, match='`margin` must be a positive number; got '): judge([.01, .02, .03], margin=margin)


def test_so_many_more_seeds_do_show_it():
    "With the number that it says, about four of five comparisons find the difference"
    n = 3 + more_seeds(1.5, 2., 3, k=3, looks=())
    power = found(luck(n, gain=1.5, seed=5), looks=(3,))[:, 0].mean()
    assert .75 < power < .92
    assert more_seeds(1.5, 8., 3) > more_seeds(1.5, 2., 3) > more_seeds(3, 2., 3) and math.isnan(more_seeds(1e-6, 1., 3))


# ---- said of a comparison

none = [.81, .80, .82, .80, .81]


def test_the_first_sentence():
    comparison = made(none=none, CutMix=[v + d for v, d in zip(none, (.02, .025, .018, .022, .02))], MixUp=[v + d for v, d in zip(none, (.01, -.008, .003, -.004, 0))])
    text = comparison.summary()
    assert text.startswith('CutMix gains 2.1 points of accuracy here, [') and '; MixUp cannot be told from none; with this spread, ' in text
    assert 'more would show one point' in text and text.endswith('.') and 'MixUp is ' in comparison.summary(margin=.03) and 'within 3.0 points' in comparison.summary(margin=.03)
    assert str(comparison).count(text) == 1 and text in comparison._repr_html_()


@pytest.mark.parametrize('metric, curve, said', [
    ('accuracy', [.5, .9, .8], 'What counts is the last epoch; the arm A was at its best in epoch 2, 90.0 % on average, and ended at 80.0 %.'),
    ('mse', [.5, .2, .3], 'What counts is the last epoch; the arm A was at its best in epoch 2, 0.2000 on average, and ended at 0.3000.'),
    ('accuracy', [.5, .9, .89], ''), ('mse', [.5, .4, .2], '')])
def test_an_earlier_epoch_that_was_better_is_told(metric, curve, said):
    "Of the runs that finished"
    comparison = made(metric, none=[.8, .8, None], A=[curve[-1]]*2 + [None])
    rows = [{'arm': arm, 'seed': seed, 'epoch': epoch, metric: value} for seed in range(3)
            for arm, values in {'none': [.8]*3, 'A': curve if seed < 2 else [1., 1., 1.]}.items() for epoch, value in enumerate(values, 1)]
    comparison.curves = pd.DataFrame(rows)
    assert comparison.best_before(metric) == said and comparison.fine_print().endswith(said or 'not about that of these samples.')


def test_one_point_is_called_so_and_no_other():
    values = dict(none=none, A=[v + d for v, d in zip(none, (.01, -.008, .003, -.004, 0))])
    assert 'one point' in made(**values).summary()
    for margin in (.003, .011, .021, .11): assert 'one point' not in made(**values).what_next('accuracy', margin=margin)


@pytest.mark.parametrize('metric, better, worse', [
    ('accuracy', 'gains 2.0 points of accuracy here,', 'loses 2.0 points'), ('error_rate', 'lowers the error rate by 2.0 points here,', 'raises it by 2.0 points'),
    ('mse', 'lowers the mse by 0.0200 here,', 'raises it by 0.0200'), ('psnr', 'gains 0.0200 of psnr here,', 'loses 0.0200')])
def test_in_the_direction_of_the_measure(metric, better, worse):
    sign = 1 if metric in ('accuracy', 'psnr') else -1
    values = {arm: [v + s*sign*d for v, d in zip(none, (.02, .021, .019, .02, .02))] for arm, s in dict(A=1, B=-1).items()}
    text = made(metric, none=none, **values).summary()
    assert text.startswith(f'A {better} [') and f'; B {worse} [' in text and '-' not in text


def test_without_a_verdict():
    assert made(none=[.8]).summary() == ''
    assert made(none=[.8, .81], A=[.82, .82], B=[.7, None]).summary() == ('A and B: no verdict, that takes 3 seeds, and 5 are better (so far A +1.5 points, B -10.0 points).')
    assert 'nan' not in made(none=[.8, None], A=[None, .9]).summary()
    assert 'nan' not in made(none=[.8, .8, .8], A=[.8, .8, .8]).summary()


def test_what_one_image_is_worth():
    assert 'the same 50 samples, one of which is worth 2 points' in made(none=none).fine_print()
    assert 'the same 50 samples: ' in made('mse', none=none).fine_print()
    assert 'the same samples: ' in made(none=none, data='some + some samples, 1').fine_print()


def test_arms_that_lie_in_the_folder_are_counted():
    comparison = made(none=none, A=[v + d for v, d in zip(none, (.01, .012, .009, .002, .014))])
    alone = comparison.table().loc['A']
    comparison.made_of = dict(none={}, A={}, B={}, C={}, D={})
    assert comparison.table().ci_low['A'] < alone.ci_low and 'all 4 arms' in comparison.fine_print()


def test_looks_are_kept(tmp_path):
    comparison = made(none=none, A=none)
    for missing in ([('A', 4)], [('B', 4)], []): note_look(comparison, missing)
    assert comparison.looks == []
    note_look(comparison, [('none', 5), ('A', 5)])
    assert comparison.looks == [5]
    few = made(none=none[:2], A=none[:2])
    note_look(few, [('none', 2)])
    assert few.looks == []


def test_a_look_widens_the_intervals():
    values = dict(none=none, A=[v + d for v, d in zip(none, (.01, .012, .009, .002, .014))])
    once, twice = (made(looks=looks, **values).table().loc['A'] for looks in ([], [3]))
    assert twice.ci_low < once.ci_low and 'the looks at 3 seeds are counted' in made(looks=[3], **values).fine_print()
