"The league's stored results, as its page shows them. It reads what is stored, and needs no data"
from inspect import signature

import pandas as pd
from league import arms, chosen_from, in_any_case, left_out, metrics, named, read_together
from matplotlib import pyplot as plt

from experiments.results import load, percent, points, score
from fastmix.all import MixChoice
from fastmix.compare.results import Comparison
from fastmix.mixer import arguments

titles = dict(photos='few photographs', wrong='wrong labels', masks='masks of pets', diabetes='diabetes', adult='adult')
looks = dict(zip(titles, [('tab:blue', 'o'), ('tab:orange', 's'), ('tab:green', '^'), ('tab:purple', 'D'), ('tab:red', 'v')])) # Colour and mark


def stage(data, n):
    "The runs of stage 1 or 2; a table has one stage"
    return load(f'league-{data}' + '-new'*(n == 2))


def judges(data):
    "The runs that judge: those of stage 2, and the tables' only ones"
    return stage(data, 2 if data in chosen_from else 1)


def against(results, arm):
    "The same runs with another arm first, which all the others are then compared with"
    first = results.runs.arm == arm
    return Comparison(pd.concat([results.runs[first], results.runs[~first]]), results.curves, results.settings, results.made_of, results.looks)


def gain(results, data, arm): return score(results, metrics[data], arm, read_together)


def gains(data):
    "`{arm: (gain, is it judged?)}`: of stage 2 where the arm is there, of stage 1 otherwise, with the interval of that stage alone"
    first, last = stage(data, 1), judges(data)
    judged = {*last.runs.arm}
    return {arm: (gain(last if arm in judged else first, data, arm), arm in judged) for arm in arms[data] if arm != 'none'}


def cost(data):
    "Processor time of each arm's training as a multiple of that without mixing, the median over all seeds of stage 1"
    seconds = stage(data, 1).finished.groupby('arm').cpu_seconds.median()
    return (seconds/seconds['none']).drop('none')


def methods():
    "All methods in the order of the page: those for images by their mean gain over the data sets of images, then those for tables alone"
    means = pd.DataFrame({data: {arm: row['difference'] for arm, (row, _) in gains(data).items()} for data in arms})
    return [*means[[*chosen_from]].mean(axis=1).dropna().sort_values(ascending=False).index, *means.index[means[[*chosen_from]].isna().all(axis=1)]]


def costs():
    "The least and the most that a method's training costs on the data sets that it is for"
    table = pd.DataFrame({data: cost(data) for data in arms}).loc[methods()]
    return pd.DataFrame({'least': table.min(axis=1), 'most': table.max(axis=1)})


def picture():
    "The gain of each method on each data set that it is for, with its interval, and beside it what its training costs"
    rows, heights = methods(), dict(zip(titles, [-.3, -.15, 0, .15, .3]))
    figure, ax = plt.subplots(figsize=(5.4, .46*len(rows) + 1.6), layout='constrained')
    for y in range(1, len(rows), 2): ax.axhspan(y - .5, y + .5, color='grey', alpha=.1, linewidth=0)
    ax.axvline(0, color='grey', linewidth=1)
    for data, title in titles.items():
        (colour, mark), label = looks[data], title
        for arm, (row, judged) in gains(data).items():
            y = rows.index(arm) + heights[data]
            ax.plot([100*row['ci_low'], 100*row['ci_high']], [y, y], color=colour, linewidth=1.8 if judged else .8)
            ax.plot(100*row['difference'], y, mark, markersize=5.5, color=colour, markerfacecolor=colour if judged else 'white', label=label if judged else '')
            if judged: label = ''
    for y, (least, most) in enumerate(costs().to_numpy()):
        ax.annotate(f'{least:.1f}–{most:.1f}' if f'{least:.1f}' != f'{most:.1f}' else f'{most:.1f}', (1.02, y), xycoords=('axes fraction', 'data'), va='center', fontsize=11)
    ax.annotate('time', (1.02, -.75), xycoords=('axes fraction', 'data'), fontsize=11)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(axis='y', length=0)
    ax.tick_params(labelsize=11)
    ax.spines[['top', 'right', 'left']].set_visible(False)
    ax.set_ylim(len(rows) - .5, -.5)
    ax.set_xlabel('points above none', fontsize=11)
    figure.legend(loc='outside upper center', ncols=3, frameon=False, columnspacing=1, handletextpad=.1, fontsize=11)
    return ax


def told(row):
    "A gain with its interval, and the verdict where there is one"
    return points(row) + (f" {row['verdict']}" if row['verdict'] in ('better', 'worse') else '')


def table(n):
    "What each method gains in stage 1 or 2, in points with the interval, a column per data set; the first line is none itself"
    columns = {}
    for data in titles if n == 1 else chosen_from:
        results = stage(data, n)
        columns[titles[data]] = {'none, %': percent(gain(results, data, 'none')['mean'])} | {
            arm: told(gain(results, data, arm)) for arm in dict.fromkeys(results.runs.arm) if arm != 'none'}
    return pd.DataFrame(columns).fillna('').loc[lambda t: [row for row in ['none, %', *methods()] if row in t.index]].rename_axis('method')


def against_cutmix(data):
    "What each arm of stage 2 gains over CutMix, where there is one"
    results = against(stage(data, 2), 'CutMix')
    return {arm: score(results, metrics[data], arm, read_together) for arm in dict.fromkeys(results.runs.arm) if arm != 'CutMix'}


def call(mixer):
    "A mixer as it's written, with what is not at its default"
    usual = signature(type(mixer)).parameters
    if isinstance(mixer, MixChoice): return f"MixChoice({', '.join(map(call, mixer.mixers))})"
    return f"{type(mixer).__name__}({', '.join(f'{name}={value!r}' for name, value in arguments(mixer).items() if value != usual[name].default)})"


def settings():
    "How each method was set, and on which data sets"
    rows = {}
    for data, mixers in arms.items():
        for arm, mixer in mixers.items():
            if arm != 'none': rows.setdefault((arm, call(mixer)), []).append(titles[data])
    images = [titles[data] for data in chosen_from]
    table = pd.DataFrame([(arm, text, 'all images' if on == images else ', '.join(on)) for (arm, text), on in rows.items()], columns=['method', 'as it was run', 'on'])
    return table.sort_values('method', key=lambda names: names.map(methods().index), kind='stable').set_index('method')


def without_an_arm():
    "Which methods have no arm, on what, and why"
    table = pd.DataFrame([(method, why, titles[data]) for data, reasons in left_out.items() for method, why in reasons.items()], columns=['method', 'it', 'on'])
    table = table.groupby(['method', 'it'], sort=False).on.agg(', '.join).reset_index()
    return table.groupby(['it', 'on'], sort=False).method.agg(', '.join).reset_index().set_index('method')


__all__ = ['against', 'against_cutmix', 'arms', 'chosen_from', 'cost', 'costs', 'gain', 'gains', 'in_any_case', 'judges', 'left_out', 'load', 'methods', 'metrics', 'named',
           'pd', 'percent', 'picture', 'plt', 'points', 'read_together', 'score', 'settings', 'stage', 'table', 'titles', 'told', 'without_an_arm']
