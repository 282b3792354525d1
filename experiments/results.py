"""The stored results of the experiments, as the notebooks show them: tables, pictures and the words for them.

What is shown together is given as a dictionary: what a setting is called, and the runs with the measure that counts there.
"""
import math
from pathlib import Path

import pandas as pd
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from scipy.stats import ttest_rel

from fastmix.compare.plot import plot_curves, styles_of
from fastmix.compare.results import Comparison, read_results

folder = Path(__file__).resolve().parent.parent/'nbs/experiments/results'
styles = styles_of(['none', 'MixUp', 'CutMix', 'MixChoice', 'MixUp 8']) # an arm looks the same in all pictures


def say(text): display(Markdown(text))


def load(name) -> Comparison:
    "The stored runs of one experiment"
    return read_results(folder/name)


def best_epoch(results) -> Comparison:
    "The same runs with `best_accuracy`, that of the epoch in which it was highest, beside the last one's"
    best = results.curves.groupby(['arm', 'seed']).accuracy.max()
    return Comparison(results.runs.join(best.rename('best_accuracy'), on=['arm', 'seed']), results.curves, results.settings)


def arms_of(results): return list(dict.fromkeys(results.runs.arm))


def percent(value, sign=''): return f'{100*value:{sign}.2f}'


def score(results, metric, arm):
    "`seeds`, `mean` and `sd` of an arm in `metric`; where it is not the first one, its paired difference to that as well"
    row = results.table(metric).loc[arm]
    found = dict(seeds=int(row.seeds), mean=row[metric], sd=row[f'{metric}_sd'])
    return found if arm == arms_of(results)[0] else found | row[['difference', 'ci_low', 'ci_high', 'verdict']].to_dict()


def points(row):
    "The difference of a `score` in points of percent, with its 95 % interval"
    return percent(row['difference'], '+') + ('' if math.isnan(row['ci_low']) else f" [{percent(row['ci_low'], '+')}, {percent(row['ci_high'], '+')}]")


def summary(settings, what='test accuracy'):
    "A line for each arm of each setting, in percent: mean ± standard deviation, and the difference to the first arm"
    lines = []
    for setting, (results, metric) in settings.items():
        for arm in arms_of(results):
            row = score(results, metric, arm)
            line = {'setting': setting, 'arm': arm, 'seeds': row['seeds'], f'{what}, %': percent(row['mean']) + ('' if math.isnan(row['sd']) else f" ± {percent(row['sd'])}"),
                    'difference [95 % interval]': '', 'verdict': row.get('verdict', '')}
            if 'difference' in row: line['difference [95 % interval]'] = points(row)
            lines.append(line | {'processor minutes': f'{results.finished.query("arm == @arm").cpu_seconds.mean()/60:.1f}'})
    table = pd.DataFrame(lines).set_index('setting').rename_axis(None)
    return table if len(settings) > 1 else table.set_index('arm').rename_axis(None)


def said(results, metric, arm):
    "What came out for an arm, in words and with its numbers"
    row, first = score(results, metric, arm), arms_of(results)[0].replace('none', 'training without mixing')
    found = {'better': 'is better than', 'worse': 'is worse than'}.get(row['verdict'], 'cannot be told from')
    return f"{arm} {found} {first}: {points(row)} points, {row['seeds']} seed{'s'[:row['seeds'] != 1]}"


def verdicts(settings, at='at'):
    """What came out over all settings and arms, in words; and what of it remains after Holm's correction for so many comparisons.

    `at` stands between an arm and what its setting is called.
    """
    found = []
    for setting, (results, metric) in settings.items():
        by_seed = results.finished.pivot(index='seed', columns='arm', values=metric)
        for arm in arms_of(results)[1:]:
            row, pairs = score(results, metric, arm), by_seed[[arms_of(results)[0], arm]].dropna()
            p = math.nan if math.isnan(row['ci_low']) else ttest_rel(pairs[arm], pairs.iloc[:, 0]).pvalue # without an interval there is nothing to test
            found.append((p, row['verdict'], f"{arm} {at} {setting} ({percent(row['difference'], '+')})"))
    p_values = sorted(p for p, *_ in found if not math.isnan(p))
    left = next((i for i, p in enumerate(p_values) if p > .05/(len(p_values)-i)), len(p_values))
    least = p_values[left-1] if left else -1

    told = {verdict: [what for _, v, what in found if v == verdict] for verdict in ('better', 'worse')}
    n_told = sum(map(len, told.values()))
    text = (f"Of the {len(found)} comparisons with training without mixing, "
            + '; '.join(f"{len(hits)} came out {verdict}" + (f": {', '.join(hits)}" if hits else '') for verdict, hits in told.items())
            + f"; {len(found) - n_told} cannot be told apart with so many seeds.")
    if not n_told: return text
    kept = [what for verdict in told for p, v, what in found if v == verdict and p <= least]
    remain = 'all of them remain' if len(kept) == n_told else 'none of them remains' if not kept else f"there remain{'s'[:len(kept) == 1]} {', '.join(kept)}"
    return f"{text} Where there is no difference, one comparison in twenty finds one all the same. Corrected for their number (Holm), {remain}."


def made_with(settings):
    "How many runs, on what, and how long they took"
    runs = pd.concat({id(results.curves): results.finished for results, _ in settings.values()}.values())
    return (f"{len(runs)} runs, {runs.cpu_seconds.sum()/3600:.1f} hours of processor time on CPUs; "
            f"{'; '.join(runs.versions.unique())}.")


def panels(n, height=3., columns=3):
    "`n` panels, `columns` side by side, in one figure"
    rows, columns = math.ceil(n/columns), min(n, columns)
    axes = plt.subplots(rows, columns, figsize=(4.2*columns, height*rows), layout='constrained', squeeze=False)[1].flat
    for ax in axes:
        ax.grid(alpha=.3)
        ax.spines[['top', 'right']].set_visible(False)
    for ax in axes[n:]: ax.set_axis_off()
    return axes[:n]


def draw(settings, ax, title, label, log=False, difference=False):
    """Each arm over settings that are called by numbers: its mean with the standard deviation, or its `difference` to the first arm with the 95 % interval.

    The arms stand a little beside each other, so that their bars can be told apart.
    """
    arms, gap = arms_of(next(iter(settings.values()))[0]), (max(settings) - min(settings))/100
    for i, arm in enumerate(arms):
        if difference and i == 0: continue
        rows = {number: score(results, metric, arm) for number, (results, metric) in settings.items() if arm in arms_of(results)}
        numbers = [number*1.04**(i - 1.5) if log else number + gap*(i - 1.5) for number in rows]
        middle, far = ('difference', [row['ci_high'] - row['difference'] for row in rows.values()]) if difference else ('mean', [row['sd'] for row in rows.values()])
        ax.errorbar(numbers, [100*row[middle] for row in rows.values()], [100*f for f in far], label=arm, capsize=3, linewidth=1.2, **styles[arm])
    if difference: ax.axhline(0, color='grey', linewidth=1)
    if log: ax.set_xscale('log')
    ax.set_xticks(list(settings), [f'{number:g}' for number in settings])
    ax.minorticks_off()
    ax.set(title=title, xlabel=label)


def draw_curves(results, ax, title):
    "Accuracy in validation over the epochs: the mean of each arm, and the range of its seeds"
    plot_curves(results.finished[['arm', 'seed']].merge(results.curves), 'accuracy', {arm: styles[arm] for arm in arms_of(results)}, ax)
    ax.set(title=title)


def legend(ax):
    "One for all panels, above them"
    marks, names = ax.get_legend_handles_labels()
    ax.figure.legend(marks, names, loc='outside upper center', ncols=len(names), frameon=False)
