"""What holds for every method there is, the next one too: they are those in `fastmix.all`."""
import copy
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from fastcore.docments import docments
from nbdev.process import NBProcessor

from fastmix.all import Batch, MixChoice, Mixer, MixUp, all_mixers, arguments, check_mixer, mix_rng
from fastmix.compare.arm import as_text
from helpers import Spy, check_all, learner

nbs = Path(__file__).parent.parent/'nbs'
every_method = pytest.mark.parametrize('cls', all_mixers.values(), ids=all_mixers)


def make(cls, **kwargs): return cls(MixUp(), **kwargs) if cls is MixChoice else cls(**kwargs)


def of_inputs(cls):
    "Does it mix the input itself?"
    return cls is not MixChoice and make(cls).place(Batch((torch.zeros(4, 3, 8, 8),), (torch.zeros(4),)), mix_rng(0)) is None


inputs = pytest.mark.parametrize('cls', list(filter(of_inputs, all_mixers.values())), ids=lambda cls: cls.__name__)


def test_they_are_those_that_the_notebooks_export():
    found = {cell.source.split('class ')[1].split('(')[0] for file in (nbs/'methods').glob('*.ipynb') for cell in NBProcessor(file).nb.cells
             if 'export' in getattr(cell, 'directives_', {}) and '\nclass ' in f'\n{cell.source}' and '(Mixer)' in cell.source}
    assert found == {cls.__name__ for cls in all_mixers.values()} and all(issubclass(cls, Mixer) for cls in all_mixers.values())


@every_method
def test_its_docstring_and_its_arguments_are_explained(cls):
    assert cls.__doc__ and ('arXiv' in cls.__doc__ or cls is MixChoice)
    for name, doc in docments(cls, full=True).items():
        if name not in ('return', 'self'): assert doc.docment, f'{name} is not explained'
    assert {'p', 'start', 'stop', 'seed'} <= set(inspect.signature(cls).parameters)


@every_method
def test_arguments_that_make_no_sense(cls):
    for name, bad, error in ('p', 1.1, ValueError), ('start', -1, ValueError), ('stop', '1', TypeError), ('seed', -3, ValueError), ('seed', .5, TypeError), ('start', .9, ValueError):
        with pytest.raises(error, match=f'`{name}`'): make(cls, **({name: bad} | ({'stop': .5} if bad == .9 else {})))
    if 'alpha' in inspect.signature(cls).parameters:
        for bad, error in (0, ValueError), (-1, ValueError), ((1, 2, 3), ValueError), ('1', TypeError), (None, TypeError):
            with pytest.raises(error, match='`alpha`'): make(cls, alpha=bad)
    with pytest.raises(TypeError, match='unexpected|no `'): make(cls, colour='red')


@every_method
def test_two_that_differ_in_whatever_argument_have_other_texts(cls):
    "In an inherited one, too"
    texts = {as_text(make(cls))} | {as_text(make(cls, **given)) for given in (dict(p=.5), dict(start=.1), dict(stop=.9), dict(seed=3))}
    if cls is not MixChoice: texts |= {as_text(make(cls, targets='keep')), as_text(make(cls, beside=True)), as_text(make(cls, per={'batch': 'sample', 'sample': 'batch'}[make(cls).per]))}
    assert len(texts) == (5 if cls is MixChoice else 8)
    assert set(arguments(make(cls))) == {name.strip('*') for name in inspect.signature(cls).parameters}


@inputs
@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_it_keeps_what_a_mixer_promises(cls, per):
    dims = make(cls).places or (2,)
    for size in [size for size in ((20, 30), (1, 7), (8, 8), (9,), (3, 5, 4)) if len(size) in dims]: check_mixer(make(cls, per=per), size, draws=8)
    check_mixer(make(cls, per=per, beside=True), draws=3)


@inputs
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
def test_dtype_and_layout_are_kept(cls, dtype, layout):
    x = torch.rand(6, 3, 9, 7).to(dtype).contiguous(memory_format=layout)
    for per in 'batch', 'sample':
        mix = make(cls, per=per).draw_mix(Batch((x,)), mix_rng(1))
        out, = mix.inputs((x,))
        assert out.dtype == dtype and out.stride() == x.stride() and torch.equal(mix.inputs((x,))[0], out)


@inputs
@pytest.mark.parametrize('n', [2, 3, 7])
def test_small_and_odd_batches(cls, n):
    x = torch.rand(n, 2, 5, 6)
    for per in 'batch', 'sample':
        mix = make(cls, per=per).draw_mix(Batch((x,)), mix_rng(n))
        assert mix.n == n and mix.inputs((x,))[0].shape == x.shape and len(mix.lam) == (n if per == 'sample' else 1)
        assert ((mix.lam >= 0) & (mix.lam <= 1)).all() and np.isfinite(mix.inputs((x,))[0]).all()


@inputs
def test_in_a_fit_and_in_a_choice(cls):
    for mixer in make(cls, seed=1), MixChoice(cls, MixUp(), seed=1):
        learn = learner([mixer, spy := Spy()], batches=3)
        learn.fit(1)
        check_all(spy, 3)


@inputs
def test_it_goes_on_after_a_stop_and_in_a_copy(cls):
    def draws(mixer): return [mixer.draw_mix(Batch((torch.zeros(4, 2, 6, 6),)), mixer.rng).lam.tolist() for _ in range(3)]
    one, other = make(cls), make(cls)
    one.rng = mix_rng(4)
    draws(one)
    other.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    assert draws(one) == draws(other) == draws(copied)
