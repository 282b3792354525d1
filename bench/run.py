"""Measure everything in one run, and write it as a table, a CSV and a picture: `python -m bench`."""
import argparse
import itertools
import os
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.torch_core import TensorCategory, TensorImage

from fastmix.all import mix_rng

from . import losses, memory, peers, report, steps
from .measure import interleave, kept_memory, machine, quietly, spread, versions

# Shape, type, layout; the first is the case that all libraries are compared in.
CASES = [
    ((64, 3, 224, 224), 'float32', 'contiguous'),
    ((64, 3, 224, 224), 'bfloat16', 'contiguous'),
    ((64, 3, 224, 224), 'float32', 'channels_last'),
    ((512, 3, 32, 32), 'float32', 'contiguous'),
    ((512, 3, 32, 32), 'bfloat16', 'contiguous'),
    ((256, 1, 28, 28), 'float32', 'contiguous'),
    ((4, 1, 64, 128, 128), 'float32', 'contiguous'),
    ((4, 1, 64, 128, 128), 'bfloat16', 'contiguous'),
]
FULL = dict(cases=CASES, rounds=30, most=12., memory=([CASES[i] for i in (0, 1, 2, 6)], {'classes': (256, 1000), 'segmentation': (2, 21, 512, 512)}),
            steps=((64, 3, 32, 32), 2, 12), python=15,
            losses={'classes': ((256, 1000), 60), 'segmentation': ((8, 21, 512, 512), 8)},
            sizes=([16, 32, 64, 128, 256], 128, 32, [64, 96, 128, 192, 256, 384], 25),
            methods=((64, 3, 224, 224), (4096, 16), 24, 60.), arguments=((64, 3, 224, 224), 24, 15.))
QUICK = dict(cases=[((4, 3, 8, 8), 'float32', 'contiguous'), ((4, 3, 8, 8), 'bfloat16', 'channels_last'), ((4, 1, 4, 8, 8), 'float32', 'contiguous')],
             rounds=3, most=2., memory=([((64, 3, 128, 128), 'float32', 'contiguous')], {'classes': (8, 10), 'segmentation': (2, 3, 8, 8)}), steps=((8, 3, 8, 8), 2, 3), python=1,
             losses={'classes': ((8, 10), 3), 'segmentation': ((2, 3, 8, 8), 3)}, sizes=([2, 4], 8, 2, [8, 16], 3), methods=((4, 3, 8, 8), (8, 3), 3, 2.),
             arguments=((4, 3, 8, 8), 3, 2.))
COLUMNS = ['section', 'case', 'library', 'name', 'kind', 'method', 'per', 'in_place', 'value', 'unit', 'ms', 'fastest', 'spread', 'rounds', 'attempts', 'load', 'others', 'note']


def title(shape, dtype, layout): return f"{'×'.join(map(str, shape))} {dtype}" + ('' if layout == 'contiguous' else f', {layout}')


def batch(shape, dtype, layout):
    "A batch of random numbers, and labels"
    return peers.laid_out(torch.randn(shape), dtype, layout), torch.randint(0, peers.CLASSES, (shape[0],))


def timing(best, name, steps=1):
    "The columns that say how a call of `steps` steps was timed"
    times = best.times[name]
    return dict(ms=1e3*statistics.median(times)/steps, fastest=1e3*min(times)/steps, spread=spread(times), rounds=len(times), attempts=best.attempts, load=best.load, others=best.others)


class Run:
    "The rows so far, and how many seconds are left to measure again what was measured on a busy machine"
    def __init__(self, patience): self.rows, self.patience = [], patience

    def add(self, section, case='', **kwargs): self.rows.append({**dict.fromkeys(COLUMNS, ''), 'section': section, 'case': case, **kwargs})

    def quietly(self, measure, base):
        best = quietly(measure, base, patience=self.patience/2) # something is left for those that come later
        self.patience -= best.again
        return best

    def timed(self, section, case, calls, base, rounds, unit, most=60., warmup=2, paired=False, steps=1):
        """Time `calls`, (description as a dictionary, function) by name, and add a row for each: a multiple of the one named `base`.

        The multiple is that of the medians. `paired`: the median of the multiples in each round, for calls so long that the machine is
        now fast and now slow while they run; then `spread` is that of the multiples.
        """
        functions = {name: call for name, (_, call) in calls.items()}
        best = self.quietly(lambda: interleave(functions, rounds, warmup, most, 1 if paired else 5), base)
        yardstick = np.array(best.times[base]) if paired else statistics.median(best.times[base])
        for name, (description, _) in calls.items():
            multiples = np.array(best.times[name])/yardstick
            self.add(section, case, **description, value=np.median(multiples), unit=unit, **{**timing(best, name, steps), 'spread': spread(multiples)})
        print(f'  {section}, {case}: load {best.load:.1f}, other processes had {best.others:.0%} of the processors, '
              f'yardstick {timing(best, base)["ms"]:.3g} ms ± {best.spread/2:.0%}, {len(best.times[base])} rounds, attempt {best.attempts}', flush=True)


def describe(way): return dict(library=way.library, name=way.name, kind=way.kind, method=way.method, per=way.per, in_place='yes' if way.in_place else '')


def mixing(run, cases, rounds, most):
    "One batch, by every way, as a multiple of its clone"
    for case in cases:
        shape, dtype, layout = case
        small = tuple(min(side, 12) for side in shape)
        peers.check_formula(*batch(small, dtype, layout))
        refused = peers.refusals(*peers.numbered(small, dtype, layout))
        x, y = batch(*case)
        ways = peers.ways(x, y, refused)
        calls = {'clone': (dict(library='torch', name='x.clone()', kind='call'), x.clone)}
        calls |= {f'{w.library} {w.name} {w.kind}': (describe(w), w.run) for w in ways}
        longer = 2 if case is cases[0] else 1
        more, less = (1, 1) if x.numel() > 2**21 else (6, .5) # short calls need more rounds, and less time for them
        run.timed('mixing', title(*case), calls, 'clone', longer*more*rounds, 'clone', longer*less*most)
        for way in peers.ways(x, y):
            if (name := f'{way.library} {way.name}') in refused: run.add('mixing', title(*case), **describe(way), note=refused[name])
        for name in peers.missing: run.add('mixing', title(*case), library=name, note='not installed')


def methods(run, shape, table, rounds, most):
    "Every method of fastmix: drawing a mix, and calling it, as a multiple of the batch's clone"
    for size in shape, table:
        ways = [way for way in peers.every_method(size) if (way[1].data == 'table') == (size is table)]
        if not ways: continue
        inputs = ways[0][2].inputs
        calls = {'clone': (dict(library='torch', name='x.clone()', kind='clone'), lambda inputs=inputs: [x.clone() for x in inputs])}
        for name, mixer, batch, per in ways:
            rng, about = mix_rng(0), dict(library='fastmix', name=f"{name}(per='{per}')", method=name, per=per)
            drawn = [mixer.draw_mix(batch, rng) for _ in range(8)] # What it costs depends on what was drawn
            mixes = itertools.cycle(mix[-1] if isinstance(mix, list) else mix for mix in drawn)
            calls[f'draw {name} {per}'] = about | dict(kind='draw'), lambda mixer=mixer, batch=batch, rng=rng: mixer.draw_mix(batch, rng)
            calls[f'call {name} {per}'] = about | dict(kind='call'), lambda mixes=mixes, batch=batch: next(mixes).inputs(batch.xb)
        with steps.one_thread(): run.timed('methods', title(size, 'float32', 'contiguous'), calls, 'clone', rounds, 'clone', most)


def arguments(run, shape, rounds, most):
    "Arguments that change what a method costs, and peers that have the same, as a multiple of the clone of all that is mixed"
    small = tuple(min(side, 12) for side in shape)
    numbered = peers.numbered(small, 'float32', 'contiguous')
    x, y = batch(shape, 'float32', 'contiguous')
    masks, small_masks = peers.masks(shape[0], shape[2:]), peers.masks(small[0], small[2:])
    for offers, mixed, y, small_y in (peers.arguments, [x], y, numbered[1]), (peers.with_masks, [x, masks], masks, small_masks):
        case = title(shape, 'float32', 'contiguous') + (', with masks' if len(mixed) > 1 else '')
        refused = peers.refusals(numbered[0], small_y, offers)
        calls = {'clone': (dict(library='torch', name='x.clone()', kind='clone'), lambda mixed=mixed: [t.clone() for t in mixed])}
        calls |= {f'{w.library} {w.name}': (describe(w), w.run) for w in offers(x, y) if f'{w.library} {w.name}' not in refused}
        with steps.one_thread(): run.timed('arguments', case, calls, 'clone', rounds, 'clone', most)
        for way in offers(x, y):
            if (name := f'{way.library} {way.name}') in refused: run.add('arguments', case, **describe(way), note=refused[name])


def memories(run, cases, tasks):
    "The peak of memory, in a process of its own"
    if not memory.available():
        run.add('memory', note='not measured: this system does not tell')
        return
    found = memory.measured([['mixing', *case] for case in cases] + [['losses', *task] for task in tasks.items()])
    for case, rows in zip(cases, found):
        for library, name, kind, method, per, in_place, value in rows:
            run.add('memory', title(*case), library=library, name=name, kind=kind, method=method, per=per, in_place='yes' if in_place else '', value=value, unit='batch')
    for (task, shape), rows in zip(tasks.items(), found[len(cases):]):
        for library, name, group, value in rows: run.add('loss memory', loss_title(task, shape), library=library, name=name, kind=group, value=value, unit='prediction')
    print('  memory: done', flush=True)


def loss_title(task, shape): return f"{task}, {'×'.join(map(str, shape))}"


def weighted_losses(run, tasks, most):
    "The loss, forward and backward, as a multiple of the plain one"
    for task, (shape, rounds) in tasks.items():
        _, calls = losses.losses(task, shape)
        value = {c.name: float(c.run()) for c in calls if c.library == 'fastmix'}
        torch.testing.assert_close(value['nn.CrossEntropyLoss()'], value['a loss that it does not know'], rtol=1e-4, atol=1e-5)
        run.timed('loss', loss_title(task, shape), {f'{c.library} {c.name}': (dict(library=c.library, name=c.name, kind=c.group), c.run) for c in calls},
                  f'{calls[0].library} {calls[0].name}', rounds, 'plain loss', most, warmup=1)


def whole_steps(run, shape, n, rounds):
    "One training step of a small network, as a multiple of the step without a callback"
    calls = steps.training(*batch(shape, 'float32', 'contiguous'), n)
    calls = {f'{library} {name}': (dict(library=library, name=name), call) for (library, name), call in calls.items()}
    case = f"small ResNet, {'×'.join(map(str, shape))}"
    run.timed('step', case, calls, 'torch no callback', rounds, 'step without a callback', warmup=1, paired=True, steps=n)


def python_time(run, rounds):
    """Microseconds that a callback itself takes, beyond one that does nothing and the plain loss: the median of the differences in each round.

    `fastest` is here the round in which the callback that does nothing was fastest.
    """
    plain = batch((64, 1, 8, 8), 'float32', 'contiguous')
    typed = TensorImage(plain[0]), TensorCategory(plain[1]) # as fastai's loaders of images give them
    kinds = [*((part, part, plain, steps.IN_A_ROW) for part in steps.PARTS), ("events, fastai's types", 'events', typed, steps.IN_A_ROW), ('events, a single step', 'events', plain, 1)]
    with steps.one_thread():
        for kind, part, pair, n in kinds:
            calls = {f'{library} {name}'.strip(): (dict(library=library, name=name, kind=kind), call) for (library, name), call in steps.events(*pair, part, n).items()}
            best = run.quietly(lambda: interleave({name: call for name, (_, call) in calls.items()}, rounds if n > 1 else 10*rounds, rarest=1), 'nothing')
            nothing = np.array(best.times['nothing'])
            for name, (description, _) in calls.items():
                run.add('python', '64×1×8×8 float32, one thread', **description, unit='µs', **timing(best, name, n)
                        | dict(value=1e6*np.median(best.times[name]-nothing)/n, fastest=1e3*best.times[name][nothing.argmin()]/n))
            print(f'  python, {kind}: load {best.load:.1f}, other processes had {best.others:.0%} of the processors, attempt {best.attempts}', flush=True)


def sizes(run, batches, side, n, sides, rounds):
    "The cost against the size of the batch, and of the image, where memory need not be fetched"
    shapes = {'batch size': [(b, 3, side, side) for b in batches], 'image size': [(n, 3, s, s) for s in sides]}
    for what, shapes in shapes.items():
        calls = {}
        for shape in shapes:
            x, y = batch(shape, 'float32', 'contiguous')
            case = title(shape, 'float32', 'contiguous')
            calls[case, 'clone'] = dict(library='torch', name='x.clone()'), x.clone
            calls |= {(case, w.name): (describe(w), w.run) for w in peers.fastmix(x, y) if w.kind == 'call'}
        with kept_memory() as kept:
            best = run.quietly(lambda: interleave({name: call for name, (_, call) in calls.items()}, rounds, most=10.), (title(shapes[-1], 'float32', 'contiguous'), 'clone'))
        rows = {name: timing(best, name) for name in calls}
        for (case, name), (description, _) in calls.items():
            run.add('size', case, **{**description, 'kind': what}, value=rows[case, name]['ms']/rows[case, 'clone']['ms'], unit='clone', **rows[case, name],
                    note='' if kept else 'memory not kept: this C library cannot be told so')
        print(f'  size, {what}: load {best.load:.1f}, other processes had {best.others:.0%} of the processors, attempt {best.attempts}', flush=True)


def measure(settings, patience):
    "All rows of one run, as a table"
    run = Run(patience)
    for name, value in machine().items(): run.add('machine', name=name, value=value)
    for name, value in versions().items(): run.add('version', name=name, value=value, note='' if value else 'not installed')
    start = time.perf_counter()
    mixing(run, settings['cases'], settings['rounds'], settings['most'])
    methods(run, *settings['methods'])
    arguments(run, *settings['arguments'])
    weighted_losses(run, settings['losses'], 2*settings['most'])
    whole_steps(run, *settings['steps'])
    python_time(run, settings['python'])
    sizes(run, *settings['sizes'])
    memories(run, *settings['memory'])
    run.add('machine', name='seconds', value=round(time.perf_counter() - start))
    return pd.DataFrame(run.rows, columns=COLUMNS)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m bench', description=__doc__.split(':')[0])
    parser.add_argument('--out', type=Path, default=Path('results/bench'), help='folder for speed.csv and speed.png (%(default)s)')
    parser.add_argument('--page', type=Path, help='write the table of the documentation, a CSV, here as well')
    parser.add_argument('--quick', action='store_true', help='tiny batches: does everything run? The figures mean nothing')
    parser.add_argument('--patience', type=float, default=30, help='seconds to spend in all on measuring again what was measured on a busy machine (%(default)s)')
    options = parser.parse_args(arguments)
    warnings.filterwarnings('ignore', category=FutureWarning)
    torch.manual_seed(0)
    np.random.seed(0) # timm draws from it
    table = measure(QUICK, 0) if options.quick else measure(FULL, options.patience)
    options.out.mkdir(parents=True, exist_ok=True)
    for path in filter(None, (options.out/'speed.csv', options.page)): report.write(table, path)
    table = report.read(options.out/'speed.csv')
    print(report.text(table))
    report.picture(table).savefig(options.out/'speed.png', dpi=110)
    print(f"The table and a picture are in {options.out}{os.sep}")
    return table
