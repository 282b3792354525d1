"""C-Mixup: partners by the distance of targets, against a slow and literal version of the paper's algorithm."""
import copy
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.losses import MSELossFlat
from fastai.tabular.model import TabularModel
from torch import nn

from bench import gpu, peers
from fastmix.all import Batch, Blend, CMixUp, MixChoice, MixUp, check_mixer, mix_rng
from helpers import Spy, learner, loaders

rng = np.random.default_rng(7)
targets = {'one column': rng.normal(size=(8, 1)), 'no column': rng.normal(size=8)*40 + 300, 'three columns': rng.normal(size=(8, 3))*[1, 10, 100]}
every_target = pytest.mark.parametrize('y', targets.values(), ids=targets)


def chances(y, width):
    "The paper's algorithm, in loops: how likely each sample is to be the partner of each; targets in standard deviations, never itself"
    y = np.asarray(y, dtype=float).reshape(len(y), -1)
    out = np.zeros((len(y), len(y)))
    for i in range(len(y)):
        for j in range(len(y)):
            if i == j: continue
            out[i, j] = math.exp(-sum(((y[i, k]-y[j, k])/y[:, k].std(ddof=1))**2 for k in range(y.shape[1]))/(2*width**2))
        out[i] /= out[i].sum()
    return out


def batch_of(y, n_columns=2): return Batch((torch.zeros(len(y), n_columns),), (torch.as_tensor(y, dtype=torch.float32),))


def counts(mixer, batch, draws):
    generator = mix_rng(3)
    partners = np.stack([mixer.draw_partners(batch, generator) for _ in range(draws)])
    return (partners[:, :, None] == np.arange(batch.n)).sum(0)


@every_target
@pytest.mark.parametrize('width', [.8, 2.])
def test_partners_are_drawn_by_the_papers_law(y, width):
    "Within five standard errors each, and as a whole by chi², at 1 in 1,000"
    draws, wanted = 4000, chances(y, width)
    found = counts(CMixUp(width), batch_of(y), draws)/draws
    assert (np.abs(found - wanted) <= 5*np.sqrt(wanted*(1-wanted)/draws) + 1e-3).all()
    often = wanted*draws > 5
    assert ((found - wanted)[often]**2/wanted[often]).sum()*draws < often.sum() + 3.1*math.sqrt(2*often.sum())


@every_target
def test_nobody_is_mixed_with_itself(y): assert (counts(CMixUp(.01), batch_of(y), 200).diagonal() == 0).all()


def test_one_draw_by_hand():
    "The same noise, the same partner: the largest of log-probability and Gumbel noise"
    y = targets['three columns']
    partner = CMixUp().draw_partners(batch_of(y), np.random.default_rng(5))
    noise = -np.log(np.random.default_rng(5).standard_exponential((8, 8), dtype=np.float32))
    with np.errstate(divide='ignore'): assert (partner.numpy() == (np.log(chances(y, .5)) + noise).argmax(1)).all()


@pytest.mark.parametrize('y', [np.ones(6), np.full((6, 2), 1e6), [1., 2., np.nan, 4., 5., 6.], [1., np.inf, 3., 4., 5., 6.]], ids=['equal', 'equal, two columns', 'NaN', 'infinite'])
def test_what_has_no_distance_is_drawn_uniformly(y):
    found = counts(CMixUp(), batch_of(y), 3000)/3000
    assert np.abs(found - (1 - np.eye(6))/5).max() < 5*math.sqrt(.2*.8/3000)


def test_a_wide_kernel_is_uniform_and_a_narrow_one_takes_the_nearest():
    y = np.array([0., 1., 1.2, 5., 5.1, 9.])
    assert np.abs(counts(CMixUp(1e5), batch_of(y), 3000)/3000 - (1 - np.eye(6))/5).max() < 5*math.sqrt(.2*.8/3000)
    assert CMixUp(1e-3).draw_partners(batch_of(y), mix_rng(0)).tolist() == [1, 2, 1, 4, 3, 4]


def test_a_target_on_its_own_takes_the_nearest():
    "The kernel is 0 in float32 from everywhere else: the code of others, where a sample may draw itself, leaves such a one unmixed"
    y = np.append(np.linspace(0, 100, 63), 1e4)
    assert np.exp(np.float32(-((1e4/y.std(ddof=1))**2)/(2*.05**2))) == 0
    assert set(counts(CMixUp(.05), batch_of(y), 300)[-1].nonzero()[0]) <= set(range(55, 63))


def test_partners_are_nearer_than_chance():
    y = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    gaps = [(y - mixer.draw_mix(batch_of(y), mix_rng(0)).others(y)).abs().mean() for mixer in (CMixUp(.1), CMixUp(.5), CMixUp(2.), MixUp())]
    assert gaps == sorted(gaps) and gaps[1] < .5*gaps[3]


@pytest.mark.parametrize('per, m', [('batch', 1), ('sample', 8)])
def test_lambda_follows_beta_2(per, m):
    "Mean 1/2 and variance 1/20, within five standard errors; not folded"
    generator = mix_rng(0)
    lam = torch.cat([CMixUp(per=per).draw_mix(batch_of(torch.arange(8.)), generator).lam for _ in range(2400//m)])
    assert len(lam) == 2400 and abs(lam.mean() - .5) < 5*math.sqrt(.05/2400) and abs(lam.var() - .05) < .006 and lam.min() < .1


# What it is not for

@pytest.mark.parametrize('y', [torch.arange(4), torch.tensor([True, False]*2), torch.arange(4, dtype=torch.uint8)[:, None]])
def test_classes_are_refused(y):
    with pytest.raises(TypeError, match="regression.*int|uint8|bool.*MixUp, with `partner='same'`"): CMixUp().draw_mix(Batch((torch.zeros(4, 2),), (y,)), mix_rng(0))
    with pytest.raises(TypeError, match='CMixUp is for regression'): learner([CMixUp()]).fit(1)


def test_no_targets_are_refused():
    with pytest.raises(TypeError, match='the batch has none. Use MixUp'): CMixUp().draw_mix(Batch((torch.zeros(4, 2),)), mix_rng(0))


@pytest.mark.parametrize('width, error', [(0, ValueError), (-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), ('1', TypeError), (None, TypeError), (True, TypeError)])
def test_a_width_that_makes_no_sense(width, error):
    with pytest.raises(error, match='`width` must be a positive number; got'): CMixUp(width)


# In training

def numbers(n=32): return torch.rand(n, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.randn(n, 1, generator=torch.Generator().manual_seed(1))


class WeightedMSE:
    "A loss that counts large targets more"
    def __init__(self, reduction='mean'): self.reduction = reduction
    def __call__(self, pred, y):
        values = (pred - y)**2*(1 + y.abs())
        return values.mean() if self.reduction == 'mean' else values


@pytest.mark.parametrize('loss', [nn.MSELoss(), MSELossFlat(), F.l1_loss, WeightedMSE(), lambda pred, y: ((pred-y)**2).mean().sqrt()], ids=['mse', 'flat', 'function', 'weighted', 'closure'])
@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_the_loss_is_that_of_mixed_targets(loss, per):
    x, y = numbers()
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    learn = learner([CMixUp(per=per, seed=1), spy := Spy()], loss, model, loaders((x, y), bs=8))
    learn.fit(2)
    assert len(spy.rows) == 6
    for row in spy.rows:
        lam, partner = row.mix.lam.expand(8), row.mix.partner
        for i in range(8): torch.testing.assert_close(row.x[0][i], lam[i]*row.copy[0][i] + (1-lam[i])*row.copy[0][partner[i]])
        mixed = torch.stack([lam[i]*row.y[0][i] + (1-lam[i])*row.y[0][partner[i]] for i in range(8)])
        torch.testing.assert_close(row.loss, loss(row.pred, mixed))
        assert torch.equal(row.own[0], row.copy[0]) and (partner != torch.arange(8)).all()


def test_in_a_choice_and_beside_the_clean_batch():
    x, y = numbers()
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    for mixer in MixChoice(CMixUp(), MixUp(), seed=0), CMixUp(beside=True, seed=0): learner([mixer], nn.MSELoss(), model, loaders((x, y), bs=8)).fit(2)


def test_tables_with_codes():
    n, generator = 32, torch.Generator().manual_seed(0)
    items = list(zip(torch.randint(0, 5, (n, 1), generator=generator), torch.rand(n, 2, generator=generator), torch.rand(n, 1, generator=generator)))
    dls = DataLoaders(*[DataLoader(items, bs=8, n_inp=2)]*2)
    dls.train.n_inp = 2
    learn = learner([mixer := CMixUp(seed=0)], MSELossFlat(), TabularModel([(5, 3)], 2, 1, [8]), dls)
    learn.fit(1)
    assert type(mixer.mix) is Blend


@pytest.mark.parametrize('per', ['batch', 'sample'])
@pytest.mark.parametrize('y', [torch.randn(6, 1), torch.rand(6), torch.rand(6, 3, 20, 30)], ids=['numbers', 'a row', 'images'])
def test_it_keeps_what_a_mixer_promises(per, y): check_mixer(CMixUp(per=per), y=y, draws=5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    y = torch.randn(7, 1).to(dtype)
    mix = CMixUp().draw_mix(Batch((torch.rand(7, 2).to(dtype),), (y,)), mix_rng(0))
    assert mix(y).dtype == dtype and (mix.partner != torch.arange(7)).all()


@pytest.mark.parametrize('n', [2, 3])
def test_small_batches(n): assert (CMixUp().draw_partners(batch_of(torch.randn(n)), mix_rng(0)) != torch.arange(n)).all()


def test_it_goes_on_in_a_copy_and_after_a_stop():
    def draws(mixer): return [mixer.draw_mix(batch_of(np.arange(9.)), mixer.rng).partner.tolist() for _ in range(3)]
    one, other = CMixUp(seed=1), CMixUp()
    one.rng = mix_rng(2)
    draws(one)
    other.load_state_dict(one.state_dict())
    assert draws(copy.deepcopy(one)) == draws(other) == draws(one)


def test_partners_from_a_source_are_chosen_by_its_targets():
    own, source = batch_of(np.arange(6.)), batch_of(np.array([5., 4., 3., 2., 1., 0.]))
    own.source = source
    assert CMixUp(1e-3).draw_partners(own, mix_rng(0)).tolist() == [5, 4, 3, 2, 1, 0]
    own.source = batch_of(np.arange(6.)) # The same row may be the partner: it is another sample
    assert CMixUp(1e-3).draw_partners(own, mix_rng(0)).tolist() == [0, 1, 2, 3, 4, 5]


def test_in_a_fit_with_a_source():
    x, y = numbers()
    source = DataLoader(list(zip(x + 10, y)), bs=8, shuffle=True)
    learn = learner([CMixUp(1e-3, source=source, seed=1), spy := Spy()], nn.MSELoss(), nn.Sequential(nn.Flatten(), nn.Linear(32, 1)), loaders((x, y), bs=8))
    learn.fit(1)
    for row in spy.rows:
        share = 1 - row.mix.lam[:, None, None, None]
        partners = (row.x[0] - (1-share)*row.copy[0])/share
        labels = torch.stack([y[(x + 10 - p).flatten(1).abs().sum(1).argmin()] for p in partners])
        torch.testing.assert_close(row.loss, F.mse_loss(row.pred, (1-share[:, :, 0, 0])*row.y[0] + share[:, :, 0, 0]*labels), rtol=1e-3, atol=1e-4)
        assert (labels - row.y[0]).abs().mean() < (y[:, None] - y).abs().mean()


def test_partners_by_class_are_refused():
    with pytest.raises(ValueError, match='`partner`'): CMixUp(partner='same')


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    x, y = torch.rand(8, 3, 4, 4, device='meta'), torch.rand(8, 1, device='meta')
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 1, device='meta'))
    step = gpu.training_step(peers.learner(x, y, CMixUp(seed=0), nn.MSELoss(), model), x, y)
    for _ in range(3): assert step().shape == ()


def test_drawing_is_quick():
    "3 ms are allowed; the shortest of some, as other processes may be running"
    batch, generator, took = Batch((torch.zeros(64, 3, 224, 224),), (torch.randn(64, 1),)), mix_rng(0), []
    for _ in range(20):
        start = time.perf_counter()
        CMixUp().draw_mix(batch, generator)
        took.append(time.perf_counter() - start)
    assert min(took) < 3e-3
