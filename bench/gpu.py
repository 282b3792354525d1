"""What mixing costs on a GPU: `python -m bench.gpu`

Every check is a function of a device and gives the figures that it judged; `main` prints and stores them all, with its verdict. Without a
GPU it says so and does nothing; `--device cpu` is a rehearsal of the same code on small batches, whose figures mean nothing.
"""
import argparse
import contextlib
import random
import statistics
import time
from pathlib import Path

import fastai.callback.mixup as theirs
import pandas as pd
import torch
import torchvision
from fastai.losses import CrossEntropyLossFlat
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fastmix.all as ours
from fastmix.all import mix_rng
from fastmix.batch import tensors

from . import measure, peers, report
from .peers import CLASSES, learner

MIXERS = {
    "MixUp(per='sample')": lambda: ours.MixUp(seed=0), "MixUp(per='batch')": lambda: ours.MixUp(per='batch', seed=0),
    "CutMix(per='batch')": lambda: ours.CutMix(seed=0), "CutMix(per='sample')": lambda: ours.CutMix(per='sample', seed=0),
    'MixChoice': lambda: ours.MixChoice(ours.MixUp(), ours.CutMix(), seed=0),
}
FULL = dict(shape=(256, 3, 224, 224), runs=50)
REHEARSAL = dict(shape=(4, 3, 32, 32), runs=3)


@contextlib.contextmanager
def no_waiting(device):
    "An error where the host waits for the device. Without a GPU nothing waits"
    if torch.device(device).type != 'cuda':
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try: yield
    finally: torch.cuda.set_sync_debug_mode(before)


def clock(cycles=20_000_000):
    "How many cycles a GPU sleeps in a second"
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(cycles)
    start.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    return 1e3*cycles/start.elapsed_time(end)


def seconds(calls, device, runs, queued=False):
    """The median time of each of `calls` in seconds, taken in turn. On a GPU by its own clock, from start to end on the device.

    `queued`: the device begins only when the host has asked for everything, so that Python's time does not count, but for calls that
    wait for the device themselves.
    """
    order, times, asking = random.Random(0), {name: [] for name in calls}, dict.fromkeys(calls, .005)
    cuda = torch.device(device).type == 'cuda'
    per_second = clock() if cuda and queued else None
    for i in range(runs + 3):
        for name in order.sample(list(calls), len(calls)):
            if cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                if queued: torch.cuda._sleep(int(2*asking[name]*per_second)) # twice as long as the host has needed to ask
                start.record()
                begin = time.perf_counter()
                calls[name]()
                if 0 < i < 3: asking[name] = min(max(asking[name], time.perf_counter() - begin), .5) # a call that waits for the device sleeps longer each time
                end.record()
                end.synchronize()
                took = start.elapsed_time(end)/1e3
            else:
                begin = time.perf_counter()
                calls[name]()
                took = time.perf_counter() - begin
            if i >= 3: times[name].append(took)
    return {name: statistics.median(t) for name, t in times.items()}


def batch(device, shape, dtype=torch.bfloat16, memory_format=torch.channels_last):
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
    return x, torch.randint(0, CLASSES, (shape[0],), device=device)


def resnet(device, dtype=torch.bfloat16):
    return torchvision.models.resnet18(num_classes=CLASSES).to(device, dtype, memory_format=torch.channels_last)


def training_step(learn, x, y):
    "The events of a training batch, with the model, the loss and the optimizer's step between them, and nothing else"
    opt = torch.optim.SGD(learn.model.parameters(), lr=1e-3, momentum=.9)

    def step(around=contextlib.nullcontext):
        learn.xb, learn.yb = (x,), (y,)
        with around():
            learn('before_batch')
            pred = learn.model(*learn.xb) # in which a layer's input is mixed
            learn('after_pred')
        with around(): loss = learn.loss_func(pred.float(), *learn.yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        with around(): learn('after_batch')
        learn.xb = learn.yb = None
        return loss.detach()
    return step


def fault(run):
    "What went wrong in `run`, or nothing"
    try: run()
    except Exception as error: return f'{type(error).__name__}: {peers.reason(error)}'
    return ''


def waits(device, shape=(8, 3, 64, 64), steps=4, mixers=MIXERS, model=resnet):
    """Does the host ever wait for the device in the mixer's events, in the model or in the loss? For each mixer and loss torch's error, or nothing.

    The first batches are left out: a loss that fastmix does not know is tried once, and the answer is read.
    """
    found, mixers = {}, {**mixers, 'ManifoldMixUp': lambda: ours.ManifoldMixUp(torch.nn.Conv2d, per='sample', seed=0)}
    losses = {'CrossEntropyLossFlat()': CrossEntropyLossFlat(), 'CrossEntropyLoss(weight)': torch.nn.CrossEntropyLoss(weight=torch.ones(CLASSES, device=device)),
              'MultiMarginLoss()': torch.nn.MultiMarginLoss()}
    for name, mixer in mixers.items():
        for loss_name, loss in losses.items():
            x, y = batch(device, shape)
            step = training_step(learner(x, y, mixer(), loss, model(device)), x, y)
            for _ in range(4): step() # `MixChoice` takes some batches to come to each of its mixers
            found[f'{name}, {loss_name}'] = fault(lambda: [step(lambda: no_waiting(device)) for _ in range(steps)])
    return found


def moved(batch, device):
    "The batch on another device"
    return ours.Batch(*[tuple(t.to(device) for t in tensors(o)) for o in (batch.xb, batch.yb)])


def draws_wait(device, shape=(8, 3, 64, 64), rows=(64, 8)):
    "Does the host wait for the device while a method draws its mix or mixes the inputs? For each method torch's error, or nothing"
    found = {}
    for size in shape, rows:
        for name, mixer, batch, per in peers.every_method(size):
            if (mixer.data == 'table') != (size is rows): continue
            batch, rng = moved(batch, device), mix_rng(0)
            if batch.y is None: continue

            def run():
                drawn = mixer.draw_mix(batch, rng)
                for mix in drawn if isinstance(drawn, list) else [drawn]: mix.inputs(batch.xb)
            for _ in range(3): run()

            def quietly():
                with no_waiting(device): run()
            found[f"{name}(per='{per}')"] = fault(quietly)
    return found


def runs_ahead(device, shape=(8, 3, 64, 64), mixers=MIXERS, model=resnet):
    """For each mixer: has the host asked for the mix and its loss while the device is still busy with what came before?

    Torch tells of the waiting that it orders itself; CUDA may wait in a copy as well, which shows only in this way.
    """
    found, cuda = {}, torch.device(device).type == 'cuda'
    for name, mixer in mixers.items():
        x, y = batch(device, shape)
        learn = learner(x, y, mixer(), CrossEntropyLossFlat())
        pred, ahead = model(device)(x).float().detach().requires_grad_(), []
        for i in range(8):
            learn.xb, learn.yb = (x,), (y,)
            if cuda:
                torch.cuda.synchronize()
                if i == 0: per_second = clock()
                torch.cuda._sleep(int(.1*per_second))
            learn('before_batch')
            learn.loss_func(pred, *learn.yb)
            learn('after_batch')
            ahead.append(not (cuda and torch.cuda.current_stream().query()))
        found[name] = all(ahead[4:]) # what is loaded with the first batches may take its time
    return found


def compiled(device, shape=(8, 3, 64, 64), steps=6, mixers=MIXERS, model=resnet):
    "Train a compiled model: for each mixer torch's error where the graph breaks or is compiled a second time, or nothing"
    found, backend = {}, 'inductor' if torch.device(device).type == 'cuda' else 'aot_eager'
    for name, mixer in mixers.items():
        torch._dynamo.reset()
        x, y = batch(device, shape)
        whole = torch.compile(model(device), fullgraph=True, backend=backend)
        step = training_step(learner(x, y, mixer(), CrossEntropyLossFlat(), whole), x, y)
        with torch._dynamo.config.patch(error_on_recompile=True): found[name] = fault(lambda: [step() for _ in range(steps)])
    return found


def kernels(device, shape=(8, 3, 64, 64)):
    "How many kernels and copies a float32 training step runs on the device (on the CPU: operators), without a callback and with each, fastai's as well"
    cuda = torch.device(device).type == 'cuda'

    def count(mixer):
        x, y = batch(device, shape, torch.float32)
        step = training_step(learner(x, y, mixer, CrossEntropyLossFlat(), resnet(device, torch.float32)), x, y)
        for _ in range(3): step()
        if cuda: torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA]*cuda) as profiler:
            step()
            if cuda: torch.cuda.synchronize()
        kind = DeviceType.CUDA if cuda else DeviceType.CPU
        return sum(event.device_type == kind and not event.is_user_annotation for event in profiler.events())
    counts = {name: count(mixer()) for name, mixer in MIXERS.items()}
    return {'no callback': count(None), **counts, "fastai's MixUp": count(theirs.MixUp()), "fastai's CutMix": count(theirs.CutMix())}


def bandwidth(device, shape, runs):
    """Gigabytes per second of a copy, which reads and writes a batch in bf16, and of each mix, by what it must read and write.

    A blend reads two batches and writes one. A paste reads and writes one, like the copy.
    """
    x, _ = batch(device, shape, memory_format=torch.contiguous_format)
    rng, size = mix_rng(0), x.numel()*x.element_size()/1e9
    calls = {'x.clone()': x.clone}
    calls |= {name: lambda mixer=mixer(): mixer.draw_mix(ours.Batch((x,)), rng)(x) for name, mixer in MIXERS.items() if name != 'MixChoice'}
    moved = {name: 3 if name.startswith('MixUp') else 2 for name in calls}
    return {name: moved[name]*size/took for name, took in seconds(calls, device, runs, queued=True).items()}


def mixing(device, shape, runs):
    "Every library's way to mix a batch in float32, as a multiple of its clone; the rows of `bench.run`"
    small = [min(side, 12) for side in shape]
    numbered = [t.to(device) for t in peers.numbered(small, 'float32', 'contiguous')]
    peers.check_formula(*batch(device, small, torch.float32, torch.contiguous_format))
    refused = peers.refusals(*numbered)
    x, y = batch(device, shape, torch.float32, torch.contiguous_format)
    calls = {'x.clone()': x.clone}
    calls |= {f"{way.library} {way.name}, {way.kind}{', in place' if way.in_place else ''}": way.run for way in peers.ways(x, y, refused)}
    took = seconds(calls, device, runs, queued=True)
    return {name: t/took['x.clone()'] for name, t in took.items()}


def every_call(device, shape, runs):
    "Drawing a mix and mixing a batch in float32, for every method of fastmix, as a multiple of the clone"
    calls = {}
    for name, mixer, batch, per in peers.every_method(shape):
        if mixer.data == 'table': continue
        batch, rng = moved(batch, device), mix_rng(0)
        drawn = mixer.draw_mix(batch, rng)
        mix = drawn[-1] if isinstance(drawn, list) else drawn
        calls['x.clone()'] = batch.x.clone
        calls[f"{name}(per='{per}'), call"] = lambda mix=mix, batch=batch: mix.inputs(batch.xb)
        calls[f"{name}(per='{per}'), draw and call"] = lambda mixer=mixer, batch=batch, rng=rng: mixer.draw_mix(batch, rng).inputs(batch.xb)
    took = seconds(calls, device, runs, queued=True)
    return {name: t/took['x.clone()'] for name, t in took.items()}


def overhead(device, shape, runs):
    """The seconds of a ResNet-18's training step, parameters in bf16 and channels_last, without a callback and with each.

    Several steps in a row, as in training: the host asks for one while the device is at the last.
    """
    x, y = batch(device, shape)
    mixers, row = {'no callback': None, **{name: mixer() for name, mixer in MIXERS.items()}}, 8
    steps = {name: training_step(learner(x, y, mixer, CrossEntropyLossFlat(), resnet(device)), x, y) for name, mixer in mixers.items()}
    took = seconds({name: lambda step=step: [step() for _ in range(row)] for name, step in steps.items()}, device, max(runs//row, 2))
    return {name: t/row for name, t in took.items()}


def measured(device, shape, runs):
    """All of it, as rows of a table: what, the figure, its unit, what it should be, and whether it is.

    What fails as a whole is a row with its error, and the next follows.
    """
    def row(what, name, value, unit='', aim='', met=''): return dict(what=what, name=name, value=value, unit=unit, aim=aim, met='' if met == '' else ('yes' if met else 'no'))

    def errors(what, found):
        for name, error in found.items(): yield row(what, name, error, '', 'no error', not error)

    def ahead(what):
        for name, is_ahead in runs_ahead(device).items(): yield row(what, name, 'yes' if is_ahead else 'no', '', 'yes', is_ahead)

    def counts(what):
        found = kernels(device)
        for name, n in found.items(): yield row(what, name, n - found['no callback']*(name != 'no callback'), 'per step' if name == 'no callback' else 'more')

    def speeds(what):
        found = bandwidth(device, shape, runs)
        for name, value in found.items():
            share = value/found['x.clone()']
            yield row(what, name, value, 'GB/s', *(('85 % of the copy', share >= .85) if name.startswith('MixUp') else ()))
            yield row(what, name, 100*share, '% of the copy')

    def clones(what):
        for name, value in mixing(device, shape, runs).items(): yield row(what, name, value, 'clones')

    def methods(what):
        for name, value in every_call(device, (64, *shape[1:]), max(runs//5, 2)).items(): yield row(what, name, value, 'clones')

    def steps(what):
        found = overhead(device, shape, runs)
        for name, t in found.items():
            yield row(what, name, 1e3*t, 'ms')
            if name != 'no callback': yield row(what, name, more := 100*(t/found['no callback'] - 1), '% more', 'at most 1 %', more <= 1)

    for what, part in {
        'the host never waits': lambda what: errors(what, waits(device)), 'drawing and mixing never wait': lambda what: errors(what, draws_wait(device)),
        'the host runs ahead': ahead,
        'no graph break, no recompilation': lambda what: errors(what, compiled(device)), 'kernels and copies per step': counts,
        'bandwidth, bf16': speeds, 'mixing one batch, float32': clones, 'every method, float32': methods, 'step of a ResNet-18, bf16, channels_last': steps,
    }.items():
        found = []
        error = fault(lambda: found.extend(part(what)))
        yield from found
        if error: yield row(what, 'not measured', error, '', 'no error', False)
    for name, value in measure.machine().items(): yield row('machine', name, value)
    for name, value in measure.versions().items(): yield row('version', name, value)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m bench.gpu', description='What mixing costs on a GPU.')
    parser.add_argument('--device', default='cuda', help='cuda, or cpu for a rehearsal (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('results/bench'), help='folder for gpu.csv (%(default)s)')
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        print('No GPU here: nothing was measured. `python -m bench.gpu --device cpu` rehearses the script.')
        return None
    if device.type == 'cuda' and device.index: torch.cuda.set_device(device) # whose clock and events are asked for
    rows = []
    for row in measured(device, **(REHEARSAL if device.type == 'cpu' else FULL)):
        rows.append(row)
        report.write(table := pd.DataFrame(rows), options.out/'gpu.csv') # what is there is kept, whatever ends it
    if device.type == 'cpu': print('A rehearsal on the CPU: these figures mean nothing.')
    print(table.to_string(index=False, float_format='{:.3g}'.format))
    return table


if __name__ == '__main__': main()
