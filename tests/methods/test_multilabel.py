"""Several labels at once: the union is what it says, a label at a time, and `'keep'` and `'mix'` are what they say."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import BCEWithLogitsLossFlat
from torch import nn

from bench import gpu, peers
from fastmix.all import Batch, Blend, CopyPaste, CutMix, ManifoldMixUp, MixChoice, MixedBatch, MixUp, mix_rng
from helpers import Spy, learner, loaders

N, LABELS = 10, 6
rng = torch.Generator().manual_seed(0)
sounds, labels = torch.rand(48, 2, 4, 4, generator=rng), (torch.rand(48, LABELS, generator=rng) < .4).float()
mixers = {'MixUp': MixUp, 'MixUp, unfolded': lambda **kwargs: MixUp(1., fold=False, **kwargs), 'MixUp per batch': lambda **kwargs: MixUp(1., per='batch', **kwargs),
          'CutMix': CutMix, 'CutMix per sample': lambda **kwargs: CutMix(per='sample', **kwargs)}
every_mixer = pytest.mark.parametrize('make', mixers.values(), ids=mixers)


def union_of(y, shares, partners, least=.05):
    "The labels of those that are in the mix, as sets, sample by sample"
    sets, out = [{c for c in range(LABELS) if row[c]} for row in y.tolist()], torch.zeros(len(y), LABELS)
    for i in range(len(y)):
        for share, j in zip(shares[:, i].tolist(), [i, *partners[:, i].tolist()]):
            if share >= least: out[i, sorted(sets[j])] = 1
    return out


@every_mixer
def test_the_union_is_that_of_sets(make):
    for seed in range(30):
        under = MixedBatch(make(targets='union'), Batch((sounds[:N],), (labels[:N],)), mix_rng(seed))
        assert torch.equal(under.labels()[0], union_of(labels[:N], under.mix.shares.expand(-1, N), under.mix.partners))
        assert not under.weighs()


@pytest.mark.parametrize('lam', [0., .04, .06, .5, .94, .96, 1.])
def test_what_is_hardly_there_is_not_named(lam):
    y = labels[:2]
    mix = MixedBatch(MixUp(targets='union'), Batch((sounds[:2],), (y,)), mix_rng(0), lam=lam)
    own, partner = y*(lam > .05), y.flip(0)*(lam < .95)
    assert torch.equal(mix.labels()[0], torch.maximum(own, partner))


def test_three_in_one():
    shares = torch.tensor([[.5, .9, .02], [.3, .06, .96], [.2, .04, .02]])
    class Three(MixUp):
        def draw(self, batch, lam, rng): return Blend(shares, [[1, 2, 0], [2, 0, 1]])
    under = MixedBatch(Three(targets='union'), Batch((sounds[:3],), (labels[:3],)), mix_rng(0))
    assert torch.equal(under.labels()[0], union_of(labels[:3], shares, under.mix.partners))


def test_partners_of_a_source_bring_their_labels():
    class FromAnother(MixUp):
        def draw(self, batch, lam, rng):
            batch.source = Batch((sounds[8:16],), (labels[8:16],))
            return Blend(lam, np.arange(8))
    under = MixedBatch(FromAnother(targets='union'), Batch((sounds[:8],), (labels[:8],)), mix_rng(0), lam=.5)
    assert torch.equal(under.labels()[0], torch.maximum(labels[:8], labels[8:16]))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8], ids=str)
def test_dtype_and_what_the_loader_gave_are_kept(dtype):
    y = labels[:N].to(dtype)
    before = y.clone()
    new, = MixedBatch(MixUp(targets='union'), Batch((sounds[:N],), (y,)), mix_rng(0), lam=.7).labels()
    assert new.dtype == dtype and torch.equal(y, before) and (new >= y).all() and (new > y).any()


@pytest.mark.parametrize('y', [torch.arange(N), torch.randn(N, 1)*20, torch.randint(0, 9, (N, 3)), -labels[:N]], ids=['classes', 'numbers', 'several classes', 'negative'])
def test_what_has_no_union_is_refused(y):
    with pytest.raises(TypeError, match='multi-hot.*class numbers'): MixedBatch(MixUp(targets='union'), Batch((sounds[:N],), (y,)), mix_rng(0)).labels()


def closure(pred, y): return F.binary_cross_entropy_with_logits(pred, y).sqrt()


losses = {'flat': BCEWithLogitsLossFlat(), 'plain': nn.BCEWithLogitsLoss(), 'weighted': nn.BCEWithLogitsLoss(weight=torch.arange(1., LABELS+1)), 'pos_weight': nn.BCEWithLogitsLoss(pos_weight=torch.arange(1., LABELS+1)), 'closure': closure}


@every_mixer
@pytest.mark.parametrize('loss', losses.values(), ids=losses)
@pytest.mark.parametrize('word', ['union', 'keep', 'mix', None])
@pytest.mark.filterwarnings('error:.*one λ')
def test_the_loss_in_a_fit(make, loss, word):
    learn = learner([make(targets=word, seed=2), spy := Spy()], loss, nn.Sequential(nn.Flatten(), nn.Linear(32, LABELS)), loaders((sounds, labels), bs=N, n_valid=8))
    learn.fit(1)
    for row in spy.rows:
        own, mix = row.y[0], row.mix
        lam = mix.lam.expand(N)[:, None]
        asked = {'union': union_of(own, mix.shares.expand(-1, N), mix.partners), 'keep': own}.get(word, lam*own + (1-lam)*own[mix.partner])
        torch.testing.assert_close(row.loss, loss(row.pred, asked))
    assert len(spy.rows) == 4


def test_in_a_choice_each_part_has_its_word():
    choice = MixChoice(MixUp(1., targets='union'), CutMix(targets='keep'), seed=0)
    learn = learner([choice, spy := Spy()], closure, nn.Sequential(nn.Flatten(), nn.Linear(32, LABELS)), loaders((sounds, labels), bs=N, n_valid=8))
    learn.fit(3)
    kinds = set()
    for row in spy.rows:
        kinds.add(type(row.mix))
        asked = union_of(row.y[0], row.mix.shares.expand(-1, N), row.mix.partners) if type(row.mix) is Blend else row.y[0]
        torch.testing.assert_close(row.loss, closure(row.pred, asked))
    assert len(kinds) == 2


def test_at_a_layer_and_beside_the_clean_batch():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, LABELS))
    learn = learner([ManifoldMixUp(['2'], targets='union', seed=0), spy := Spy()], closure, model, loaders((sounds, labels), bs=N, n_valid=8))
    learn.fit(1)
    for row in spy.rows: torch.testing.assert_close(row.loss, closure(row.pred, union_of(row.y[0], row.mix.shares.expand(-1, N), row.mix.partners)))
    learn = learner([MixUp(1., targets='union', beside=True, seed=0), spy := Spy()], closure, nn.Sequential(nn.Flatten(), nn.Linear(32, LABELS)), loaders((sounds, labels), bs=N, n_valid=8))
    both = []
    class Halves(nn.Module):
        def forward(self, t):
            both.append(t.detach())
            return t
    learn.model.append(Halves())
    learn.fit(1)
    for row, pred in zip(spy.rows, both):
        clean, mixed = pred.split(N)
        mix = row.mix
        torch.testing.assert_close(row.loss, (closure(clean, row.y[0]) + closure(mixed, union_of(row.y[0], mix.shares.expand(-1, N), mix.partners)))/2)


def test_labels_beside_a_mask():
    "A list of words: the mask is pasted, the labels are united by what was kept of each"
    mask = torch.zeros(6, 4, 4).long()
    mask[:3, :2] = 1
    mask[3:, 0, 0] = 1
    under = MixedBatch(CopyPaste(ignore=[0], targets=['paste', 'union']), Batch((sounds[:6],), (mask, labels[:6])), mix_rng(1))
    new_mask, new = under.labels()
    assert torch.equal(new, union_of(labels[:6], under.mix.shares, under.mix.partners)) and torch.equal(new_mask, torch.where(under.mix.own, mask, mask[under.mix.partner]))


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    x, y = torch.rand(8, 3, 4, 4, device='meta'), torch.zeros(8, 5, device='meta')
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5, device='meta'))
    for word in 'union', 'keep':
        step = gpu.training_step(peers.learner(x, y, MixUp(targets=word, seed=0), nn.BCEWithLogitsLoss(), model), x, y)
        for _ in range(2): assert step().shape == ()
