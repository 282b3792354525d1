"Time calls in turn, and say how quiet the machine was meanwhile"
import contextlib
import ctypes
import gc
import os
import random
import time
from types import SimpleNamespace

import numpy as np


def interleave(calls, rounds, warmup=2, most=60., rarest=5):
    """The seconds that each of `calls` (name -> function) took in each round.

    Every round runs the calls in an order drawn anew, so that a slow phase of the machine hits them all and none always follows the
    same other. One that takes over four times as long as the fastest joins in every second round, over eight times in every third, and so on, up
    to every `rarest`th; with 1, all join in all. What a call returns is released within its time. At most about `most` seconds, but three rounds.
    """
    order, times, start = random.Random(0), {name: [] for name in calls}, time.perf_counter()
    every = dict.fromkeys(calls, 1)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(-warmup, rounds):
            if i >= 3*max(every.values()) and time.perf_counter() - start > most: break
            for name in order.sample(list(calls), len(calls)):
                if i % every[name]: continue
                call, begin = calls[name], time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
            if i == -1:
                fastest = min(t[-1] for t in times.values())
                every = {name: min(1 + int(t[-1]/fastest/4), rarest) for name, t in times.items()}
                times = {name: [] for name in calls}
            gc.collect(0)
    finally:
        if collecting: gc.enable()
    return times


def spread(times):
    "The distance between the quartiles, as a share of the median"
    low, middle, high = np.percentile(times, [25, 50, 75])
    return (high-low)/middle


def processor_seconds():
    "What all processes of the machine have used so far, and what there was; `None` where the system does not tell"
    try: fields = open('/proc/stat').readline().split()[1:9]
    except OSError: return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(f)/os.sysconf('SC_CLK_TCK') for f in fields)
    used = user + nice + system + irq + softirq + steal
    return used, used + idle + iowait


def quietly(measure, base, attempts=3, most=.1, patience=float('inf')):
    """Run `measure`, which returns the times of each call, until it was quiet, and return the quietest attempt.

    Quiet means: other processes had less than `most` of the processors, and the times of `base`, the yardstick, spread by less than
    twice that. Another attempt begins only while all those after the first took less than `patience` seconds; `again` says how long they took.
    """
    best, again = None, 0.
    for attempt in range(attempts):
        if attempt and again >= patience: break
        start = time.perf_counter()
        glibc('malloc_trim', 0) # what was measured before must not leave room that a tensor would otherwise have to ask the system for
        before, own = processor_seconds(), time.process_time()
        times = measure()
        own, after = time.process_time() - own, processor_seconds()
        others = float('nan')
        if before: others = max(0, (after[0]-before[0]-own)/max(after[1]-before[1], 1e-9))
        load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else float('nan')
        result = SimpleNamespace(times=times, others=others, load=load, spread=spread(times[base]), attempts=attempt+1)
        noise = np.nan_to_num(others) + result.spread/2
        if best is None or noise < best.noise: best = SimpleNamespace(**{**vars(result), 'noise': noise})
        if attempt: again += time.perf_counter() - start
        best.attempts, best.again = attempt+1, again
        if not (others > most or result.spread > 2*most): break
        print(f'    busy: load {load:.1f}, other processes had {others:.0%} of the processors, the yardstick spread by {result.spread:.0%}', flush=True)
    return best


def glibc(function, *arguments):
    "Call a function for memory that only glibc has; 0 elsewhere"
    try: call = getattr(ctypes.CDLL(None), function)
    except (AttributeError, OSError, TypeError): return 0
    return call(*arguments)


@contextlib.contextmanager
def kept_memory():
    """The process keeps the memory that it releases. Gives whether it does: only glibc can be told so.

    By itself glibc returns what is over 32 MiB to the system at once, and the next tensor of that size begins with fresh pages. It
    comes to that limit step by step; once told anything, it takes no more steps. So it is left at the last one.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4 # what these are called in `mallopt`
    try: yield all([glibc('mallopt', mmap_max, 0), glibc('mallopt', trim_threshold, 2**31-1)])
    finally:
        for name, value in (mmap_max, 2**16), (mmap_threshold, 2**25), (trim_threshold, 2**26): glibc('mallopt', name, value)


def machine():
    "The machine in plain words, as a dictionary"
    import platform

    import torch
    words = {'processor': platform.machine(), 'cores': os.cpu_count(), 'threads': torch.get_num_threads()}
    if os.path.exists('/proc/cpuinfo'):
        names = [line.split(':', 1)[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
        if names: words['processor'] = names[0]
    if hasattr(os, 'sched_getaffinity'): words['cores'] = len(os.sched_getaffinity(0))
    if 'SC_PHYS_PAGES' in os.sysconf_names: words['memory'] = f"{os.sysconf('SC_PHYS_PAGES')*os.sysconf('SC_PAGE_SIZE')/2**30:.0f} GiB"
    words['accelerator'] = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
    words['system'] = platform.system()
    return words


def versions():
    "The version of Python and of every library that is measured or measures; an empty text where it is not installed"
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import fastmix
    found = {'python': platform.python_version(), 'fastmix': fastmix.__version__}
    for name in ('fastai', 'torch', 'torchvision', 'timm', 'kornia', 'keras', 'numpy'):
        try: found[name] = version(name)
        except PackageNotFoundError: found[name] = ''
    return found
