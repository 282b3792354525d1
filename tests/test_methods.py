"""What holds for every method there is, the next one too: they are those in `fastmix.all`."""
import inspect
import random
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastcore.docments import docments
from nbdev.process import NBProcessor

from fastmix.all import Batch, GuidedMixUp, MixChoice, MixedBatch, Mixer, MixUp, TransMix, all_mixers, arguments, check_mixer, mix_rng, show_mix, show_mixers
from fastmix.compare.arm import as_text
from fastmix.mixer import example_batch
from helpers import Spy, check_all, check_goes_on, learner

nbs = Path(__file__).parent.parent/'nbs'
every_method = pytest.mark.parametrize('cls', all_mixers.values(), ids=all_mixers)


def make(cls, **kwargs):
    if 'counts' in inspect.signature(cls).parameters: kwargs = dict(counts=[3, 1, 2, 9, 4, 1, 5, 2]) | kwargs
    return cls(MixUp(), **kwargs) if cls is MixChoice else cls(**kwargs)


def example(cls, n=6, size=(9, 7), x=None):
    "A batch that the method is for"
    batch = example_batch(cls.data, (n, 5) if cls.data == 'table' else (n, 3, *size))
    return batch if x is None else Batch((x,), batch.yb)


def of_inputs(cls):
    "Does it mix the input itself?"
    return cls is not MixChoice and make(cls).place(example(cls), mix_rng(0)) is None


def pers(cls): return ('batch', 'sample') if 'per' in inspect.signature(cls).parameters else (make(cls).per,)


def of(cls, per): return make(cls, **(dict(per=per) if 'per' in inspect.signature(cls).parameters else {}))


def first(mix): return mix[-1] if isinstance(mix, list) else mix


mixing = list(filter(of_inputs, all_mixers.values()))
inputs = pytest.mark.parametrize('cls', mixing, ids=lambda cls: cls.__name__)
images = pytest.mark.parametrize('cls', [cls for cls in mixing if cls.data != 'table'], ids=lambda cls: cls.__name__)
classes = pytest.mark.parametrize('cls', [cls for cls in mixing if cls.data in ('any', 'class')], ids=lambda cls: cls.__name__)


def test_they_are_those_that_the_notebooks_export():
    found = {cell.source.split('class ')[1].split('(')[0] for file in (nbs/'methods').glob('*.ipynb') for cell in NBProcessor(file).nb.cells
             if 'export' in getattr(cell, 'directives_', {}) and '\nclass ' in f'\n{cell.source}' and '(Mixer)' in cell.source}
    assert found == {cls.__name__ for cls in all_mixers.values()} and all(issubclass(cls, Mixer) for cls in all_mixers.values())


@every_method
def test_its_docstring_and_its_arguments_are_explained(cls):
    assert cls.__doc__, 'the class needs a docstring: what it trains on, and the paper'
    for name, doc in docments(cls, full=True).items():
        if name not in ('return', 'self'): assert doc.docment, f'{name} is not explained'
    assert {'p', 'start', 'stop', 'seed'} <= set(inspect.signature(cls).parameters)


@every_method
def test_arguments_that_make_no_sense(cls):
    for name, bad, error in ('p', 1.1, ValueError), ('start', -1, ValueError), ('stop', '1', TypeError), ('seed', -3, ValueError), ('seed', .5, TypeError), ('start', .9, ValueError):
        with pytest.raises(error, match=f'`{name}`'): make(cls, **({name: bad} | ({'stop': .5} if bad == .9 else {})))
    if alpha := inspect.signature(cls).parameters.get('alpha'):
        for bad, error in (0, ValueError), (-1, ValueError), ((1, 2, 3), ValueError), ('1', TypeError), (None, TypeError):
            if bad is None and alpha.default is None: continue
            with pytest.raises(error, match='`alpha`'): make(cls, alpha=bad)
    with pytest.raises(TypeError, match='unexpected|no `'): make(cls, colour='red')


@every_method
def test_two_that_differ_in_whatever_argument_have_other_texts(cls):
    "In an inherited one, too"
    texts = {as_text(make(cls))} | {as_text(make(cls, **given)) for given in (dict(p=.25), dict(start=.1), dict(stop=.9), dict(seed=3))}
    if cls is not MixChoice: texts |= {as_text(make(cls, targets='union')), as_text(make(cls, beside=True)), *(as_text(of(cls, per)) for per in pers(cls))}
    assert len(texts) == (5 if cls is MixChoice else 6 + len(pers(cls)))
    assert set(arguments(make(cls))) == {name.strip('*') for name in inspect.signature(cls).parameters}


@images
def test_it_keeps_what_a_mixer_promises(cls):
    dims = make(cls).places or (2,)
    for per in pers(cls):
        for size in [size for size in ((20, 30), (1, 7), (8, 8), (9,), (3, 5, 4)) if len(size) in dims]: check_mixer(of(cls, per), size, draws=8)
    check_mixer(make(cls, beside=True), draws=3)


@images
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(cls, dtype, layout):
    x = torch.rand(6, 3, 9, 7).to(dtype).contiguous(memory_format=layout)
    for per in pers(cls):
        mix = first(of(cls, per).draw_mix(example(cls, x=x), mix_rng(1)))
        out, = mix.inputs((x,))
        assert out.dtype == dtype and out.stride() == x.stride() and torch.equal(mix.inputs((x,))[0], out)


@inputs
@pytest.mark.parametrize('n', [2, 3, 7])
def test_small_and_odd_batches(cls, n):
    batch = example(cls, n, (5, 6))
    for per in pers(cls):
        mix = first(of(cls, per).draw_mix(batch, mix_rng(n)))
        assert mix.n == n and len(mix.lam) in (1, n) and ((mix.lam >= 0) & (mix.lam <= 1)).all()
        for x, out in zip(batch.xb, mix.inputs(batch.xb), strict=True): assert out.shape == x.shape and np.isfinite(out).all()


@inputs
def test_nothing_global_moves_and_nothing_is_written(cls):
    "Not the generators, not the batch, not a gradient"
    batch = example(cls)
    before, kept = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()), [t.clone() for t in (*batch.xb, *batch.yb)]
    for per in pers(cls): first(of(cls, per).draw_mix(batch, mix_rng(1))).inputs(batch.xb)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    assert all(map(torch.equal, kept, (*batch.xb, *batch.yb))) and all(t.grad is None for t in batch.inputs)


@images
def test_bytes_are_mixed_or_refused(cls):
    "Integers are pasted where each place is one sample's; never are they averaged in silence"
    x = torch.randint(0, 255, (6, 3, 9, 7), dtype=torch.uint8)
    mixer, batch = make(cls), example(cls, x=x)
    try: out = MixedBatch(mixer, batch, mix_rng(0)).inputs()[0]
    except TypeError as e: assert 'nothing in between' in str(e) or 'floating' in str(e)
    else: assert out.dtype is torch.uint8 and torch.isin(out, x).all()


@images
def test_two_ranks_draw_differently(cls, monkeypatch):
    if cls is GuidedMixUp: pytest.skip('nothing of it is random but whether a batch is mixed')
    def drawn(rank):
        monkeypatch.setenv('RANK', str(rank))
        mixer = make(cls, seed=1)
        mixer.seed_rng()
        batch = example(cls, 8, (16, 16))
        return torch.stack([first(mixer.draw_mix(batch, mixer.rng)).inputs(batch.xb)[0] for _ in range(4)])
    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


@classes
def test_in_a_fit_and_in_a_choice(cls):
    if cls is TransMix: pytest.skip('it needs a network with attention: tests/methods/test_transmix.py and test_family.py have one')
    for mixer in make(cls, seed=1, p=1.), MixChoice(make(cls, p=1.), MixUp(), seed=1):
        learn = learner([mixer, spy := Spy()], batches=3)
        learn.fit(1)
        if not cls.reweighs: check_all(spy, 3)
        else: assert len(spy.rows) == 3 and all(row.mix is not None and row.loss.isfinite() for row in spy.rows)


@images
def test_in_pictures(cls):
    batch = example(cls, 8, (16, 16))
    dls = DataLoaders(*[DataLoader(list(zip(*batch.xb, *batch.yb)), bs=8)]*2)
    assert show_mix(dls, make(cls, seed=1), sources=True, max_n=2).shape[0] == 2
    assert show_mixers(dls, {'this': make(cls), 'MixUp': MixUp()}, lams=(.2, .6)).shape == (2, 2)
    plt.close('all')


@inputs
def test_it_goes_on_after_a_stop_and_in_a_copy(cls): check_goes_on(lambda: make(cls), example(cls))


@inputs
def test_partners_come_from_a_source_or_that_is_refused(cls):
    "Row i of the source is the partner of sample i, where partners aren't chosen in another way"
    batch, other = example(cls, 8, (16, 16)), example(cls, 8, (16, 16))
    loader = DataLoader(list(zip(*[x*0 + 9 for x in other.xb], *other.yb)), bs=8)
    try: under = MixedBatch(make(cls, source=loader, seed=0), batch, mix_rng(0))
    except (TypeError, ValueError) as e: assert 'source' in str(e)
    else:
        mixed = torch.cat([x.float().flatten(1) for x in under.inputs()], 1)
        own = torch.cat([x.float().flatten(1) for x in batch.xb], 1)
        assert ((mixed >= own-1e-5) & (mixed <= 9 + 1e-5)).all() and (mixed > 1.2).any()
