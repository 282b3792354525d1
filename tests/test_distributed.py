"""Two processes under fastai's own `distrib_ctx`, on the CPU."""
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from helpers import Spy, check, formula_grads, learner, loaders, samples


def worker(folder):
    "What each of the processes does: the same fit with a mixer, twice, and once with another seed"
    import fastai.distributed as distributed
    from fastai.torch_core import set_seed

    from fastai.learner import Recorder
    from fastai.metrics import accuracy

    from fastmix.all import CutMix, MixChoice, MixMetric, MixUp

    def broadcast(self, t, rank): # fastai's moves to a GPU first
        t = torch.tensor(t)
        torch.distributed.broadcast(t, rank)
        return t.tolist()
    distributed.DistributedDL._broadcast = broadcast

    def fit(seed, mixer=None):
        set_seed(seed)
        learn = learner([mixer or MixChoice(MixUp(), CutMix()), spy := Spy()], dls=loaders(samples(72), shuffle=True))
        with learn.distrib_ctx(): learn.fit(1)
        return spy.rows, [p.detach() for p in learn.model.parameters()]
    rank = distributed.rank_distrib()
    torch.save([fit(0), fit(0), fit(1), fit(0, MixUp(beside=True))], Path(folder)/f'{rank}.pt')
    measured = learner([MixUp(p=.5), Recorder(train_metrics=True)], dls=loaders(samples(72), shuffle=True), metrics=MixMetric(accuracy))
    with measured.distrib_ctx(): measured.fit(2) # one rank may mix where the other does not: both must gather as often
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    "Ranks draw different mixes from one seed, have the mean gradient of both, and a seed repeats it all"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(s.getsockname()[1]), ACCELERATE_USE_CPU='true', OMP_NUM_THREADS='1',
                   PYTHONPATH=os.pathsep.join(sys.path))
    processes = [subprocess.Popen([sys.executable, '-W', 'ignore', __file__, tmp_path], env=dict(env, RANK=rank, LOCAL_RANK=rank)) for rank in '01']
    try: assert [p.wait(120) for p in processes] == [0, 0]
    finally:
        for p in processes: p.kill()
    ranks = [torch.load(tmp_path/f'{rank}.pt', weights_only=False) for rank in range(2)]

    for (first, weights), (again, weights_again), (other, _), _ in ranks: # a seed repeats it
        assert mixes(first) == mixes(again) != mixes(other)
        for a, b in zip(weights, weights_again, strict=True): assert torch.equal(a, b)
    (rows, weights), (others, other_weights) = ranks[0][0], ranks[1][0]
    assert len(rows) == len(others) == 4
    for a, b in zip(weights, other_weights, strict=True): assert torch.equal(a, b)
    for a, b in zip(rows, others):
        assert mixes([a]) != mixes([b]) and not torch.equal(a.copy[0], b.copy[0])
        for row in a, b: check(row)
        for g, h in zip(a.grads, b.grads, strict=True): assert torch.equal(g, h)
    torch.testing.assert_close(rows[0].grads, formula_grads(learner().model, [rows[0], others[0]], 1/2))


    (rows, _), (others, _) = ranks[0][3], ranks[1][3]  # the clean batch beside the mixed one
    halves = [SimpleNamespace(mix=mix, x=x, y=row.y) for row in (rows[0], others[0]) for mix, x in ((None, row.copy), (row.mix, (row.x[0][8:],)))]
    assert [len(row.x[0]) for row in rows] == [16]*4 and torch.equal(rows[0].x[0][:8], rows[0].copy[0])
    torch.testing.assert_close(rows[0].grads, formula_grads(learner().model, halves, 1/4))


def mixes(rows): return [(type(row.mix).__name__, row.mix.lam.view(-1).tolist(), row.mix.shift) for row in rows]


if __name__ == '__main__': worker(sys.argv[1])
