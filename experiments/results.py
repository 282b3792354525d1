"""The stored results of the experiments, as the notebooks show them: tables and pictures.

What is shown together is given as a dictionary: what a setting is called, and the runs with the measure that counts there.
Verdicts and intervals are read together: each of a page's settings gets its part of the 5 %, `among` them.
"""
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

import fastmix.compare.sentence  # noqa: F401 (gives a Comparison its summary)
from fastmix.compare.plot import plot_curves, styles_of
from fastmix.compare.results import Comparison, read_results

folder = Path(__file__).resolve().parent.parent/'nbs/experiments/results'
styles = styles_of(['none', 'MixUp', 'CutMix', 'MixChoice', 'MixUp 8']) # an arm looks the same in all pictures


def load(*names) -> Comparison:
    "The stored runs of one experiment, which may lie in several folders"
    first, *more = (read_results(folder/name) for name in names)
    def joined(what): return pd.concat([getattr(results, what) for results in (first, *more)], ignore_index=True)
    return replace(first, runs=joined('runs'), curves=joined('curves')) if more else first


def best_epoch(results) -> Comparison:
    "The same runs with `best_accuracy`, that of the epoch in which it was highest, beside the last one's"
    best = results.curves.groupby(['arm', 'seed']).accuracy.max()
    return Comparison(results.runs.join(best.rename('best_accuracy'), on=['arm', 'seed']), results.curves, results.settings)


def arms_of(results): return list(dict.fromkeys(results.runs.arm))


def percent(value, sign=''): return f'{100*value:{sign}.2f}'


def score(results, metric, arm, among=1):
    "`seeds`, `mean` and `sd` of an arm in `metric`; where it is not the first one, its paired difference to that as well"
    row = results.table(metric, among=among).loc[arm]
    told = dict(seeds=int(row.seeds), mean=row[metric], sd=row[f'{metric}_sd'])
    return told if arm == arms_of(results)[0] else told | row[['difference', 'ci_low', 'ci_high', 'verdict']].to_dict()


def points(row):
    "The difference of a `score` in points of percent, with its interval"
    return percent(row['difference'], '+') + ('' if math.isnan(row['ci_low']) else f" [{percent(row['ci_low'], '+')}, {percent(row['ci_high'], '+')}]")


def summary(settings, what='test accuracy', among=None):
    "A line for each arm of each setting, in percent: mean ± standard deviation, the difference to the first arm, the verdict"
    lines = []
    for setting, (results, metric) in settings.items():
        for arm in arms_of(results):
            row = score(results, metric, arm, among or len(settings))
            line = {'setting': setting, 'arm': arm, 'seeds': row['seeds'], f'{what}, %': percent(row['mean']) + ('' if math.isnan(row['sd']) else f" ± {percent(row['sd'])}"),
                    'difference, points': points(row) if 'difference' in row else '', 'verdict': row.get('verdict', '')}
            lines.append(line | {'processor minutes': f'{results.finished.query("arm == @arm").cpu_seconds.mean()/60:.1f}'})
    table = pd.DataFrame(lines).set_index('setting').rename_axis(None)
    return table if len(settings) > 1 else table.set_index('arm').rename_axis(None)


def found(settings, among=None):
    """The verdict on each arm of each setting, `{(setting, arm): verdict}`, all of them read together.

    `among` is the number of settings that the page shows, where it shows more than these.
    """
    tables = {setting: results.table(metric, among=among or len(settings)) for setting, (results, metric) in settings.items()}
    return {(setting, arm): verdict for setting, table in tables.items() for arm, verdict in table.verdict[1:].items()}


def decided(settings, among=None):
    "What was decided: `{'better': {(setting, arm), …}, 'worse': …}`"
    verdicts = found(settings, among)
    return {word: {key for key, verdict in verdicts.items() if verdict == word} for word in ('better', 'worse')}


def made_with(settings):
    "How many runs, how long they took, and with what they were made"
    runs = pd.concat({id(results.curves): results.finished for results, _ in settings.values()}.values())
    return pd.DataFrame({'runs': [len(runs)], 'hours of processor time': f'{runs.cpu_seconds.sum()/3600:.1f}',
                         'made with': '; '.join(runs.versions.unique())}, index=[''])


def panels(n, height=3., columns=3):
    "`n` panels, `columns` side by side, in one figure"
    rows, columns = math.ceil(n/columns), min(n, columns)
    axes = plt.subplots(rows, columns, figsize=(4.2*columns, height*rows), layout='constrained', squeeze=False)[1].flat
    for ax in axes:
        ax.grid(alpha=.3)
        ax.spines[['top', 'right']].set_visible(False)
    for ax in axes[n:]: ax.set_axis_off()
    return axes[:n]


def draw(settings, ax, title, label, log=False, difference=False, among=None):
    """Each arm over settings that are called by numbers: its mean with the standard deviation, or its `difference` to the first arm with the interval.

    The arms stand a little beside each other, so that their bars can be told apart.
    """
    arms, gap = arms_of(next(iter(settings.values()))[0]), (max(settings) - min(settings))/100
    for i, arm in enumerate(arms):
        if difference and i == 0: continue
        rows = {number: score(results, metric, arm, among or len(settings)) for number, (results, metric) in settings.items() if arm in arms_of(results)}
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
