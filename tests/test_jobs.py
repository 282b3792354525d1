"Runs in other processes: the numbers of this one, and nothing lost or left over whatever happens"
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from torch import nn

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, MixMetric, MixUp
from fastmix.compare.arm import fingerprint
from fastmix.compare.jobs import parcel_of, run_elsewhere
from fastmix.compare.results import read_results
from fastmix.compare.run import OtherResults, compare
from fastmix.compare.worker import Processes

root = Path(__file__).parent.parent


class Noisy:
    "Items that draw from torch's stream, as random transforms do"
    def __init__(self, n=96):
        self.y = torch.arange(n) % 3
        self.x = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(0)) + self.y[:, None, None, None]
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i] + torch.randn(1, 6, 6)/10, self.y[i]


def loaders(**kwargs): return DataLoaders(DataLoader(Noisy(), bs=8, shuffle=True, drop_last=True, **kwargs), DataLoader(Noisy(24), bs=24))


def learner_of(dls):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=[accuracy, MixMetric(right)], lr=.05)


def right(pred, y): return (pred.argmax(1) == y).float().mean()


dls = loaders()
def make_learner(): return learner_of(dls)
def fit(learn): learn.fit_one_cycle(2, .05)


def weights(learn):
    "A number that tells all weights to the last bit"
    return {'all_weights': int(fingerprint(*learn.model.parameters()), 16)}


def numbers(comparison): return comparison.runs.drop(columns=['seconds', 'cpu_seconds']), comparison.curves, comparison.made_of


def assert_equal(one, other):
    (runs, curves, made_of), (other_runs, other_curves, others_made_of) = numbers(one), numbers(other)
    assert runs.equals(other_runs) and curves.equals(other_curves) and made_of == others_made_of


def arms():
    used = MixUp(1.)
    learn = make_learner()
    learn.add_cb(used)
    return {'none': None, 'used': used, 'cutmix': CutMix(per='sample'), 'layer': ManifoldMixUp(), 'choice': [MixChoice(MixUp(), CutMix())]}


@pytest.fixture(scope='module')
def here(): return compare(make_learner, arms(), fit, seeds=2, evaluate=weights, progress=False)


def test_weights_curves_and_metrics_are_those_of_the_runs_by_themselves(here, tmp_path, capfd):
    there = compare(make_learner, arms(), fit, seeds=2, evaluate=weights, jobs=2, folder=tmp_path)
    assert_equal(here, there)
    assert_equal(here, read_results(tmp_path))
    out = capfd.readouterr().out
    assert out.startswith('2 runs at once, each with 1 thread and no loader workers\n')
    assert out.count('(run ') == 10 and '(run 10 of 10)' in out and 's left)' in out


def test_two_runs_in_one_process_do_not_share_the_random_stream(here):
    with ThreadPoolExecutor(2) as threads: assert_equal(here, compare(make_learner, arms(), fit, seeds=2, evaluate=weights, progress=False, jobs=threads))


class Reversed:
    "An executor that runs all in the end, the last one first"
    def __init__(self): self.todo = []

    def submit(self, function, *args):
        self.todo.append((Future(), function, args))
        if len(self.todo) == 4: threading.Thread(target=self.work, daemon=True).start()
        return self.todo[-1][0]

    def work(self):
        for future, function, args in reversed(self.todo):
            future.set_result(function(*args))
            time.sleep(.3)


def test_rows_stand_in_the_order_of_the_arms_at_any_time(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr('fastmix.compare.run.write_results', lambda result, folder: written.append([*zip(result.runs.arm, result.runs.seed)]))
    some = {'none': None, 'MixUp': MixUp()}
    compare(make_learner, some, fit, seeds=2, folder=tmp_path, progress=False, jobs=Reversed())
    order = [('none', 42), ('MixUp', 42), ('none', 43), ('MixUp', 43)]
    assert written == [order[3:], order[2:], order[1:], order]


# ---- what cannot be sent

def test_what_cannot_be_sent_is_named_before_anything_is_trained(tmp_path):
    rows, base, trained = (i for i in range(3)), sqlite3.connect(':memory:'), []
    def make_one(): return rows and make_learner()
    def evaluate(learn): return dict(n=base.execute('select 1').fetchone()[0])
    class Locked(Callback):
        def __init__(self): self.lock = threading.Lock()
    cases = [(dict(make_learner=make_one), r"make_learner can't be sent to another process: make_learner\.rows is a generator"),
             (dict(evaluate=evaluate), r"evaluate can't be sent .*: evaluate\.base is a Connection"),
             (dict(fit=lambda learn: (trained.append(1), next(rows))), r"fit can't be sent .*: fit\.rows is a generator.*jobs at 1")]
    for given, message in cases:
        with pytest.raises(TypeError, match=message):
            compare(**dict(make_learner=make_learner, arms={'none': None}, fit=fit, jobs=2, folder=tmp_path) | given)
    assert not trained and not (tmp_path/'results.csv').exists()


def test_a_lock_in_an_arm_is_named():
    class Locked(Callback):
        def __deepcopy__(self, memo): return self
    locked = Locked()
    locked.lock = threading.Lock()
    with pytest.raises(TypeError, match=r"arms can't be sent .*arms\['locked'\].*lock is a lock"):
        compare(make_learner, {'locked': locked}, fit, jobs=2)


def test_much_to_send_is_said():
    images = torch.zeros(51_000_000)
    with pytest.warns(UserWarning, match='make_learner holds 204 MB.*load them inside'):
        parcel_of(lambda: images, {'none': None}, fit, None, threads=1, workers=None)


@pytest.mark.parametrize('jobs', [0, -1, True, 1.5, 'all'])
def test_jobs_must_be_something(jobs):
    with pytest.raises(TypeError, match='jobs must be a number of processes'): compare(make_learner, {'none': None}, fit, jobs=jobs)


def test_a_learner_that_would_be_another_one_there_is_refused(tmp_path):
    (tmp_path/'changed_since.py').write_text('rate = .1\n')
    sys.path.insert(0, str(tmp_path))
    try:
        import changed_since
        changed_since.rate = .7
        def make_one():
            import changed_since
            return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), loss_func=CrossEntropyLossFlat(), cbs=Named(changed_since.rate))
        with pytest.raises(OtherResults, match=r'something else in another process: callbacks: .*0\.7.* here, .*0\.1.* there\. What is changed in a module'):
            compare(make_one, {'none': None}, fit, jobs=2, progress=False)
    finally: sys.path.remove(str(tmp_path))


class Named(Callback):
    def __init__(self, rate): self.rate = rate


# ---- what goes wrong

def test_runs_that_fail_and_processes_that_die_are_failed_runs_and_the_others_go_on(tmp_path):
    class Ends(Callback):
        def __init__(self, how): self.how = how
        def after_fit(self):
            if self.how == 'raise': raise torch.OutOfMemoryError('too small')
            if self.how == 'exit': raise SystemExit(3)
            if self.how == 'crash': os._exit(1)
            if self.how == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    ways = {'none': None} | {how: Ends(how) for how in ('raise', 'exit', 'crash', 'kill')} | {'last': MixUp()}
    result = compare(make_learner, ways, fit, folder=tmp_path, jobs=2, progress=False)
    status = dict(zip(result.runs.arm, result.runs.status))
    assert [*status] == [*ways] and status['none'] == status['last'] == 'finished'
    assert status['raise'].startswith('failed: OutOfMemoryError') and 'too small' in status['raise'] and status['exit'] == 'failed: SystemExit: 3'
    assert status['crash'].startswith('failed: TerminatedWorkerError') and status['kill'].startswith('failed: TerminatedWorkerError')
    assert read_results(tmp_path).runs.status.equals(result.runs.status) and not children()


class Gone:
    "The pool of somebody else, which is no more"
    def submit(self, *_):
        future = Future()
        future.set_exception(BrokenExecutor('all workers are gone'))
        return future


def test_when_the_users_executor_is_gone_no_run_is_called_a_failed_one(tmp_path):
    with pytest.raises(BrokenExecutor): compare(make_learner, {'none': None}, fit, folder=tmp_path, jobs=Gone())
    assert not (tmp_path/'results.csv').exists()


def children(pid=None): return [p for p in psutil.Process(pid).children(recursive=True) if 'loky' in ' '.join(p.cmdline()) and 'tracker' not in ' '.join(p.cmdline())]


script = '''
import torch
torch.set_num_threads(1)
from fastai.vision.all import *
from fastmix.all import MixUp, CutMix
from fastmix.compare.run import compare
dls = DataLoaders(*[DataLoader([(torch.ones(4)*(i % 3), tensor(i % 3)) for i in range(48)], bs=8, shuffle=True, num_workers=WORKERS)]*2)
class Slow(Callback):
    def after_epoch(self): time.sleep(.05)
def make_learner(): return Learner(dls, nn.Linear(4, 3), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=Slow())
@patch
def fit_as_i_like(self:Learner): self.fit(EPOCHS, .1)
arms = {'none': None, 'MixUp': MixUp(), 'CutMix': MixUp(.2)}
compare(make_learner, arms, lambda learn: learn.fit_as_i_like(), seeds=4, folder='runs', jobs=JOBS)
'''


def begin(folder, jobs=2, epochs=2, workers=0):
    "The script without a guard, in a process and a group of its own"
    text = script.replace('JOBS', str(jobs)).replace('EPOCHS', str(epochs)).replace('WORKERS', str(workers))
    (folder/'script.py').write_text(text)
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]), OMP_NUM_THREADS='1')
    return subprocess.Popen([sys.executable, 'script.py'], cwd=folder, env=env, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_until(holds, seconds=120):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, 'waited for too long'
        time.sleep(.05)


def n_done(folder):
    try: return len(read_results(folder/'runs').runs)
    except FileNotFoundError: return 0


def family(process): return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def none_left(processes, seconds=15):
    wait_until(lambda: not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], seconds)


@pytest.mark.parametrize('how', ['to all', 'to the parent', 'kill'])
def test_a_comparison_that_is_stopped_leaves_no_process_and_loses_no_run(tmp_path, how):
    process = begin(tmp_path, epochs=30, workers=1)
    wait_until(lambda: n_done(tmp_path) > 0)
    all_of_them = family(process)
    assert len(all_of_them) > 3
    if how == 'to all': os.killpg(process.pid, signal.SIGINT)
    else: process.send_signal(signal.SIGINT if how == 'to the parent' else signal.SIGKILL)
    out = process.communicate(timeout=60)[0]
    none_left(all_of_them)
    kept = n_done(tmp_path)
    assert out.count('(run ') <= kept < 12 and (how == 'kill' or out.rstrip().endswith('KeyboardInterrupt'))
    assert read_results(tmp_path/'runs').runs.status.eq('finished').all()


def killed_often(folder, times):
    "Kill the script at some random moments of its work, then let it end"
    for _ in range(times):
        process = begin(folder)
        time.sleep(random.uniform(0, 20))
        processes = family(process) if process.poll() is None else []
        random.choice(processes or [process]).kill()  # the parent, or one of its children
        process.kill()
        process.communicate()
        none_left(processes)
    last = begin(folder)
    assert last.wait(300) == 0, last.stdout.read()


@pytest.mark.slow
def test_ten_kills_end_with_every_run_once_and_the_numbers_of_one_job(tmp_path):
    for name in ('killed', 'whole'): (tmp_path/name).mkdir()
    killed_often(tmp_path/'killed', 10)
    assert begin(tmp_path/'whole', jobs=1).wait(300) == 0
    killed, whole = (read_results(tmp_path/name/'runs') for name in ('killed', 'whole'))
    assert len(killed.runs) == 12 and not killed.runs.duplicated(['arm', 'seed']).any()
    assert_equal(killed.of([*zip(whole.runs.arm, whole.runs.seed)]), whole)


def begin_command(folder):
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    words = '--jobs 2 --epochs 8 --seeds 2 --mixes none,mixup --out'.split()
    return subprocess.Popen([sys.executable, '-m', 'fastmix', *words, str(folder/'runs')], env=env, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize('when', [0.7, 2, 4, 'later'])
def test_the_command_can_be_stopped_at_any_time(tmp_path, when):
    process = begin_command(tmp_path)
    if when == 'later': wait_until(lambda: n_done(tmp_path) > 0)
    else: time.sleep(when)
    processes = family(process)
    os.killpg(process.pid, signal.SIGINT)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and 'fastmix: stopped' in out and 'Traceback' not in out and 'warn' not in out
    none_left(processes)


def test_the_command_killed_leaves_no_process_and_goes_on(tmp_path):
    process = begin_command(tmp_path)
    wait_until(lambda: n_done(tmp_path) > 0)
    processes = family(process)
    process.kill()
    process.communicate()
    none_left(processes)
    kept = n_done(tmp_path)
    process = begin_command(tmp_path)
    out = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and f'{kept} of 4 runs are in' in out and n_done(tmp_path) == 4


# ---- what is divided

def test_loader_workers_are_divided_and_said_and_not_mixed_with_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('fastmix.compare.jobs.cores', lambda: 4)
    busy = loaders(num_workers=3)
    def make_busy(): return learner_of(busy)
    once = {'none': None}
    there = compare(make_busy, once, fit, evaluate=weights, folder=tmp_path, jobs=2)
    assert 'each with 1 thread and 2 + 0 loader workers' in capsys.readouterr().out
    assert there.made_of['none']['loader workers'] == '[2, 0]'
    fewer = loaders(num_workers=2)
    assert_equal(there, compare(lambda: learner_of(fewer), once, fit, evaluate=weights, progress=False))
    with pytest.raises(OtherResults, match=r'loader workers: \[2, 0\] there, \[3, 0\] now'):
        compare(make_busy, once, fit, seeds=2, evaluate=weights, folder=tmp_path, progress=False)


def test_threads_are_divided(monkeypatch):
    torch.set_num_threads(4)
    try: result = compare(make_learner, {'none': None}, fit, jobs=2, progress=False)
    finally: torch.set_num_threads(1)
    assert result.made_of['none']['threads'] == '2'


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4, 6')
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    from fastmix.compare.jobs import gpu_names, usual_jobs
    assert gpu_names() == ['4', '6'] and usual_jobs(make_learner()) == 2
    with Processes(3, gpus=gpu_names()) as processes:
        assert [p.submit(os.getenv, 'CUDA_VISIBLE_DEVICES').result() for p in processes.all] == ['4', '6', '4']


@pytest.mark.cuda
def test_a_gpu_gives_the_numbers_of_one_job():
    on_gpu = loaders(device=torch.device('cuda'))
    one, two = (compare(lambda: learner_of(on_gpu), arms(), fit, evaluate=weights, progress=False, jobs=jobs) for jobs in (1, 2))
    assert_equal(one, two)


# ---- engines

def test_a_local_cluster_of_two_workers(here, tmp_path):
    distributed = pytest.importorskip('distributed', reason='needs the extra fastmix[cluster]')
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, local_directory=str(tmp_path/'dask')) as cluster,
          distributed.Client(cluster) as client):
        there = compare(make_learner, arms(), fit, seeds=2, evaluate=weights, progress=False, jobs=client.get_executor(pure=False))
    assert_equal(here, there)


def test_a_run_elsewhere_leaves_no_state_to_the_next():
    calls = []
    def counting():
        calls.append(1)
        learn = make_learner()
        learn.n_calls = len(calls)
        return learn
    parcel = parcel_of(counting, {'none': None}, fit, lambda learn: dict(n_calls=learn.n_calls), threads=1, workers=None)
    assert [run_elsewhere(parcel, 'none', seed, {})[0]['n_calls'] for seed in (1, 2)] == [1, 1]
