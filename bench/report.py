"Read a table of figures, and show it as text, as tables and as pictures. Nothing is measured here"
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fastmix.compare.results import write_file

COLORS = {'fastmix': '#d1495b', 'fastai': '#2e6f95', 'torch': '#8d99a6'}
FIGURES = ['value', 'ms', 'fastest', 'spread', 'rounds', 'attempts', 'load', 'others']


def write(table, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = table.copy()
    for name in table.columns.intersection(FIGURES): table[name] = table[name].map(lambda v: f'{v:.4g}' if isinstance(v, float) else v)
    write_file(path, table.to_csv(index=False, lineterminator='\n')) # whole, or not at all


def read(path): return pd.read_csv(path, dtype=str, keep_default_na=False)


def figures(table, section, case=None):
    "The rows of a section that hold a figure, with numbers for numbers"
    rows = table[(table.section == section) & (table.value != '')]
    if case is not None: rows = rows[rows.case == case]
    return rows.assign(**{name: pd.to_numeric(rows[name], errors='coerce') for name in FIGURES})


def cases(table, section): return list(dict.fromkeys(table[table.section == section].case))


def settings(table, section): return dict(table[table.section == section][['name', 'value']].values)


def machine(table):
    "The machine in a sentence"
    found = settings(table, 'machine')
    memory = f", {found['memory']} of memory" if 'memory' in found else ''
    return f"{found['cores']} cores ({found['processor']}){memory}; threads that torch computed with: {found['threads']}; accelerator: {found['accelerator']}"


def libraries(table): return ', '.join(f"{name} {version or 'not installed'}" for name, version in settings(table, 'version').items())


def quiet(table):
    "How busy the machine was while it measured: the load, and the share of the processors that other processes had, at most"
    timed = table[table.load != '']
    return pd.to_numeric(timed.load).max(), pd.to_numeric(timed.others, errors='coerce').max()


def groups(rows):
    "The ways of mixing that fastmix was measured in: method, and per what"
    mine = rows[rows.library == 'fastmix']
    return list(dict.fromkeys(zip(mine.method, mine.per)))


def group(rows, method, per):
    "The rows of one way of mixing; a λ for each pair of samples counts as one for each sample"
    return rows[(rows.method == method) & rows.per.isin([per] if per == 'batch' else ['sample', 'pair'])]


def error(row):
    "The standard error of a median, as a share of it: from the distance between the quartiles"
    return .93*row.spread/math.sqrt(row.rounds)


def who(mine, best):
    "Who is ahead; 'level' where the two are within 3 % of each other, or within twice the standard error of their difference"
    if abs(mine.value/best.value - 1) <= max(.03, 2*math.hypot(error(mine), error(best))): return 'level'
    return 'fastmix' if mine.value < best.value else best.library


def compared(table):
    """For each case and way of mixing: what fastmix's callback costs, and its fastest peer, both as multiples of the clone.

    `ahead` says who is; empty where no peer offers it.
    """
    lines = []
    for case in cases(table, 'mixing'):
        rows = figures(table, 'mixing', case)
        for method, per in groups(rows):
            offers = group(rows, method, per)
            mine = offers[(offers.library == 'fastmix') & (offers.kind == 'callback')].iloc[0]
            own = mine.value
            peers = offers[offers.library != 'fastmix'].sort_values('value')
            line = dict(case=case, method=method, per=per, fastmix=own, peer='', value=float('nan'), ahead='')
            if len(peers):
                best = peers.iloc[0]
                line |= dict(peer=f"{best.library} {best['name']}" + (', in place' if best.in_place else ''), value=best.value, ahead=who(mine, best))
            lines.append(line)
    return pd.DataFrame(lines)


MET = {'fastmix': 'yes', 'level': 'not to be told apart'}


def aims(table):
    "What fastmix aims at on a CPU with two cores, and what was measured"
    lines, first = [], cases(table, 'mixing')[0]
    def add(what, aim, value, form='{:.2f}', note=''): lines.append(dict(what=what, aim='at most ' + form.format(aim), measured=form.format(value) + note, met='yes' if value <= aim else 'no'))
    fastest = compared(table).set_index(['case', 'method', 'per'])
    own = figures(table, 'mixing', first)[lambda rows: rows.library == 'fastmix'].set_index(['method', 'per', 'kind']).value
    for (method, per), aim in {('MixUp', 'sample'): 1.15, ('MixUp', 'batch'): 1.15, ('CutMix', 'batch'): 1.2, ('CutMix', 'sample'): 1.4}.items():
        row = fastest.loc[first, method, per]
        for kind in 'call', 'callback': add(f'{method} per {per}, as a {kind}, {first}, in clones', aim, own.loc[method, per, kind], '{:.3f}')
        lines.append(dict(what='the callback beside the fastest peer', aim='ahead', measured=f'{row.fastmix:.3f}, {row.peer} {row.value:.3f}', met=MET.get(row.ahead, 'no')))
    memory = figures(table, 'memory')
    add('the most memory that a call takes beyond the batch, in batches', 1, round(memory[memory.library == 'fastmix'].value.max(), 2))
    case = next(case for case in cases(table, 'loss') if 'segmentation' in case)
    loss = figures(table, 'loss', case).set_index(['library', 'name']).value
    flat = next(value for (library, name), value in loss.items() if library == 'fastai' and name.endswith('not mixed'))
    for name in 'nn.CrossEntropyLoss()', 'nn.CrossEntropyLoss(weight)':
        add(f'{name}, weighted by λ, {case}, in plain ones', 1.3, loss['fastmix', name])
        add("the same, in fastai's plain CrossEntropyLossFlat(axis=1)", .7, loss['fastmix', name]/flat)
    for line in family_aims(table): add(*line)
    for mine, best in argument_peers(table):
        lines.append(dict(what=f"the callback of {mine['name']} beside {best.library}", aim='ahead', measured=f"{mine.value:.2f}, {best['name']} {best.value:.2f}", met=MET.get(who(mine, best), 'no')))
    events = figures(table, 'python')[lambda rows: rows.kind == 'events'].set_index(['library', 'name'])
    for name, row in events.loc['fastmix'].iterrows():
        add(f"Python's own time of {name}, in µs", 100, row.value, '{:.0f}', f" ({1000*(row.fastest - events.loc['', 'nothing'].fastest):.0f})")
    return pd.DataFrame(lines)


MIXING = dict(HMix=1.35, GMix=1.35, FMix=1.4, PatchMix=1.4, SpecMix=1.4, ResizeMix=3, RICAP=1.4)
DRAWING = dict(FMix=120, SaliencyMix=100, GuidedMixUp=100) # Milliseconds; all others 3
ARGUMENTS = dict(k=1.9, source=1.3, partner=1.6)


def family_aims(table):
    "What is aimed at for the family of methods, `(what, aim, measured, form, note)`: of the ways to call one the slowest"
    def slowest(rows, column='value'):
        row = rows.loc[rows[column].idxmax()]
        return row[column], f" ({row['name']})"
    rows = figures(table, 'methods')[lambda rows: rows.library == 'fastmix']
    for method, aim in MIXING.items():
        measured, name = slowest(rows[(rows.method == method) & (rows.kind == 'call')])
        yield f'{method}, mixing, in clones', aim, measured, '{:.2f}', name
    draws = rows[(rows.kind == 'draw') & (rows.case == rows.case.iloc[0])]
    for method, aim in DRAWING.items(): yield f'{method}, drawing, in ms', aim, *slowest(draws[draws.method == method], 'ms')[:1], '{:.0f}'
    measured, name = slowest(draws[~draws.method.isin(DRAWING)], 'ms')
    yield 'every other method, drawing, in ms', 3, measured, '{:.1f}', name
    rows = figures(table, 'arguments')[lambda rows: rows.library == 'fastmix']
    for argument, aim in ARGUMENTS.items():
        found = rows[rows.kind == argument]
        if len(found): yield f'`{argument}=`, the callback, in clones', aim, *slowest(found)[:1], '{:.2f}', slowest(found)[1]


def argument_peers(table):
    "The rows of fastmix and of its fastest peer, for each argument that a peer has as well"
    rows = figures(table, 'arguments')
    for _, part in rows.groupby(['method', 'kind', 'per'], sort=False):
        peers = part[part.library != 'fastmix'].sort_values('value')
        if len(peers) < len(part) and len(peers): yield part[part.library == 'fastmix'].iloc[0], peers.iloc[0]


def page(): return read(Path(__file__).resolve().parent.parent/'nbs/experiments/results/speed.csv')


def cost(method, table=None):
    "What a method costs, in a sentence or two: mixing in multiples of the copy, drawing in milliseconds"
    table = page() if table is None else table
    rows = figures(table, 'methods')[lambda rows: rows.method == method]
    if not len(rows): return f"{method} hasn't been measured yet: `make bench BENCH='--page nbs/experiments/results/speed.csv'` does it."
    case, by = rows.case.iloc[0], rows.set_index(['kind', 'per'])
    pers = [per for per in ('batch', 'sample') if ('call', per) in by.index]
    what = dict(batch='one draw for the batch', sample='one per sample')
    n, *rest = case.split()[0].split('×')
    things = f"{n} photographs of {rest[-2]}×{rest[-1]} pixels" if len(rest) == 3 else f"a table of {n} rows and {2*int(rest[0])} columns"
    times = '; '.join(f"{by.value['call', per]:.2f} times with {what[per]}" for per in pers).replace(' times', ' times as long as copying them,', 1)
    draws = ' and '.join(f"{ms:.2f}" if ms < 1 else f"{ms:.1f}" for ms in (by.ms['draw', per] for per in pers))
    said = f"Mixing {things} takes {times}. Drawing the mix takes {draws} ms before that. "
    steps = figures(table, 'step').set_index(['library', 'name']).value
    if ('fastmix', f'{method}()') in steps.index:
        said += f"A training step of a small residual network becomes {100*(steps['fastmix', f'{method}()'] - 1):.1f} % longer. "
    return said + arguments_cost(method, table) + '[Speed](../experiments/speed.ipynb) has the machine and the noise.'


def call(row): return f"{'' if row.library == 'fastmix' else row.library + ' '}`{row['name']}`{', in place,' if row.in_place else ''}"


def arguments_cost(method, table):
    "What a method costs with an argument, and a peer that has the same, in a sentence for each copy that they are measured by"
    rows, said = figures(table, 'arguments')[lambda rows: rows.method == method], ''
    for case, part in rows.groupby('case', sort=False):
        calls = ', '.join(f"{call(row)} {row.value:.2f}" for _, row in part.sort_values('kind', kind='stable').iterrows())
        what = 'Drawing and masks included, in copies of both' if 'masks' in case else 'Drawing included, in copies'
        said += f"{what}: {calls}. "
    return said


def arguments_table(table):
    "What arguments cost, and peers that have the same: multiples of the clone of all that is mixed, and milliseconds"
    rows = figures(table, 'arguments')[lambda rows: rows.library != 'torch'].sort_values(['method', 'kind'], kind='stable')
    calls = rows.library + ' ' + rows['name'] + rows.in_place.map({'yes': ', in place', '': ''})
    shown = dict(argument=rows.method + ', ' + rows.kind, call=calls, clones=rows.value.map('{:.2f}'.format), ms=rows.ms.map('{:.0f}'.format))
    return pd.DataFrame(shown).set_index('argument').rename_axis(None)


def methods_table(table):
    "For each method what it costs: multiples of the clone, and the milliseconds of the draw"
    rows = figures(table, 'methods')[lambda rows: rows.library == 'fastmix']
    texts = rows.assign(text=[f'{row.value:.2f}' if row.kind == 'call' else f'{row.ms:.2f} ms' for row in rows.itertuples()],
                        column=rows.kind.map(dict(call='mixing', draw='drawing')) + ', per ' + rows.per)
    wide = texts.pivot(index='method', columns='column', values='text').fillna('–')
    order = [f'{kind}, per {per}' for kind in ('mixing', 'drawing') for per in ('batch', 'sample')]
    return wide.loc[list(dict.fromkeys(rows.method)), [name for name in order if name in wide]].rename_axis(index=None, columns=None)


def python_time(table):
    "For each callback and part of the step the microseconds, the median over rounds, and in brackets those in the fastest round of the callback that does nothing"
    rows = figures(table, 'python')
    nothing = rows.library == ''
    taken_off = rows.kind.map(rows[nothing].set_index('kind').fastest).mask(nothing, 0)
    figure = rows.value.mask(nothing, 1000*rows.ms).map('{:.0f}'.format) + (1000*(rows.fastest - taken_off)).map(' ({:.0f})'.format)
    rows = rows.assign(figure=figure, callback=(rows.library + ' ' + rows['name']).mask(nothing, '(a callback that does nothing)'))
    return rows.pivot(index='callback', columns='kind', values='figure')[list(dict.fromkeys(rows.kind))].rename_axis(index=None, columns=None)


def text(table):
    "The whole table, to be printed"
    blocks = [machine(table), libraries(table)]
    for section, unit in ('mixing', 'x.clone()'), ('memory', 'one batch'), ('loss', 'the plain loss'), ('loss memory', 'the prediction'), ('step', 'the step without a callback'):
        for case in cases(table, section):
            blocks.append(f'\n{section}: {case}; times {unit}')
            for _, row in figures(table, section, case).iterrows():
                kind = f' [{row.kind}]' if row.kind and section != 'memory' else ''
                blocks.append(f"{row.value:8.2f}  {row.library:12}{row['name']}{kind}{'  (in place)' if row.in_place else ''}")
            for _, row in table[(table.section == section) & (table.case == case) & (table.note != '')].iterrows():
                blocks.append(f"       –  {row.library:12}{row['name']}: {row.note}")
    for case in cases(table, 'python'):
        blocks += [f'\nthe Python time of a callback: {case}; microseconds, in brackets those of the fastest round of the callback that does nothing', python_time(table).to_string()]
    if cases(table, 'arguments'): blocks += ['\narguments, and peers that have the same, in clones of all that is mixed', arguments_table(table).to_string()]
    if cases(table, 'methods'): blocks += ['\nevery method: mixing in clones, drawing in milliseconds', methods_table(table).to_string()]
    blocks += ['\nwhat is aimed at', aims(table).to_string(index=False)]
    rows = figures(table, 'size')
    if len(rows):
        blocks.append('\nthe cost against the size; times x.clone() of the same size')
        for (kind, name), line in rows[rows.library == 'fastmix'].groupby(['kind', 'name'], sort=False):
            blocks.append(f"  {kind}, {name}: " + ', '.join(f"{row.value:.2f} at {row.case.split()[0]}" for _, row in line.iterrows()))
    return '\n'.join(blocks)


def bars(ax, labels, values, colors, hatches):
    "Horizontal bars with their figures; those far beyond the others are cut, and say so with an arrow"
    most = max(6., 2.5*np.median(values))
    at = range(len(values))[::-1]
    drawn = ax.barh(at, [min(v, most) for v in values], color=colors, height=.72)
    for bar, hatch in zip(drawn, hatches):
        if hatch: bar.set(hatch='////', edgecolor='white', linewidth=0)
    for y, value in zip(at, values):
        ax.text(min(value, most) + .012*min(max(values), most), y, f'{value:.2f}' + (' →' if value > most else ''), va='center', fontsize=8,
                bbox=dict(facecolor='white', edgecolor='none', pad=.6))
    ax.axvline(1, color='#444444', linewidth=.8, linestyle=':', zorder=.5)
    ax.set_yticks(list(at), labels, fontsize=8)
    ax.set_xlim(0, min(max(values), most)*1.18)
    ax.tick_params(axis='x', labelsize=8)
    ax.spines[['top', 'right']].set_visible(False)
    return ax


def mixing_bars(table, case, section='mixing', axes=None):
    "What it costs to mix one batch of a case: MixUp on the left, CutMix on the right"
    rows = figures(table, section, case)
    rows = rows[(rows.library != 'fastmix') | (rows.kind == 'callback')]
    if axes is None: _, axes = plt.subplots(1, 2, figsize=(8.2, 3.3), layout='constrained')
    for ax, method in zip(axes, ('MixUp', 'CutMix')):
        shown = rows[rows.method == method].sort_values('value')
        labels = [f"{row.library}, per {row.per}{' *' if row.in_place else ''}" for _, row in shown.iterrows()]
        bars(ax, labels, list(shown.value), [COLORS.get(library, '#b5bec8') for library in shown.library], [row.in_place for _, row in shown.iterrows()])
        ax.set_title(method, fontsize=10)
    axes[0].figure.suptitle(f"{case}, {'times x.clone()' if section == 'mixing' else 'peak of memory in batches'}   (* writes into the batch it was given)", fontsize=10)
    return axes


def loss_bars(table, case, section='loss', ax=None):
    "What the loss costs, forward and backward"
    rows = figures(table, section, case).sort_values('value')
    if ax is None: _, ax = plt.subplots(figsize=(8.2, .5 + .24*len(rows)), layout='constrained')
    labels = [f"{row.library}: {row['name']}" for _, row in rows.iterrows()]
    bars(ax, labels, list(rows.value), [COLORS.get(library, '#b5bec8') for library in rows.library], ['']*len(rows))
    ax.set_title(f"{case}, {'times the plain loss, forward and backward' if section == 'loss' else 'peak of memory in predictions'}", fontsize=10)
    return ax


def size_lines(table, axes=None):
    "The time of a call against the size of the batch in megabytes, both on logarithmic scales"
    if axes is None: _, axes = plt.subplots(1, 2, figsize=(8.2, 3.2), layout='constrained')
    rows = figures(table, 'size')
    for ax, (kind, part) in zip(axes, rows.groupby('kind', sort=False)):
        for (library, name), line in part.groupby(['library', 'name'], sort=False):
            ax.plot(megabytes(line), line.ms, marker='o', markersize=3, linewidth=1, color=COLORS['torch'] if library == 'torch' else None,
                    label=f'{name}: slope {slope(line):.2f}')
        ax.set(xscale='log', yscale='log', xlabel='one batch, MB', ylabel='ms')
        ax.set_title(f'against the {kind}', fontsize=10)
        ax.set_xticks(ticks := sorted(set(megabytes(part))), [f'{tick:.3g}' for tick in ticks])
        ax.yaxis.set_major_formatter('{x:g}')
        ax.minorticks_off()
        ax.spines[['top', 'right']].set_visible(False)
        ax.legend(fontsize=7, frameon=False)
    return axes


def megabytes(rows):
    "The size of a float32 batch, from its case"
    sizes = []
    for case in rows.case:
        values = 1
        for side in case.split()[0].split('×'): values *= int(side)
        sizes.append(4*values/1e6)
    return sizes


def slope(rows, least=2.):
    "By which power of the size the time grows: 1 is linear. Batches of less than `least` megabytes, where Python counts, are left out"
    size, ms = np.array(megabytes(rows)), rows.ms.to_numpy()
    large = size >= least if (size >= least).sum() > 1 else size > 0
    return float(np.polyfit(np.log(size[large]), np.log(ms[large]), 1)[0])


def picture(table):
    "The first case, the losses and the sizes on one page"
    losses = cases(table, 'loss')
    figure = plt.figure(figsize=(12, 11), layout='constrained')
    top, *middle, bottom = figure.subfigures(2 + len(losses), 1, height_ratios=[1.5, *[1.1]*len(losses), 1.2])
    mixing_bars(table, cases(table, 'mixing')[0], axes=top.subplots(1, 2))
    for part, case in zip(middle, losses): loss_bars(table, case, ax=part.subplots())
    size_lines(table, bottom.subplots(1, 2))
    return figure
