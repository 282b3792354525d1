"""Remix: labels in favour of the rarer class, against a slow and literal version of the paper's rule."""
import copy
import math
import random
import time

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders, Datasets
from fastai.data.load import DataLoader
from fastai.data.transforms import Categorize
from fastai.losses import CrossEntropyLossFlat
from fastai.tabular.all import Categorify, CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
from torch import nn

from bench import gpu, peers
from fastmix.all import Batch, Blend, CutMix, MixChoice, MixUp, Remix, check_mixer, mix_rng, show_mix
from fastmix.methods.remix import count_classes, train_labels
from helpers import Spy, learner, loaders

SIZES = [30, 10, 9, 3, 1]


def rule(lam, own, other, kappa=3., tau=.5):
    "The paper's rule for one pair of classes, by their training samples"
    if own/other >= kappa and lam < tau: return 0.
    if own/other <= 1/kappa and 1-lam < tau: return 1.
    return lam


def imbalanced(sizes=SIZES):
    y = torch.cat([torch.full((size,), c) for c, size in enumerate(sizes)])
    return torch.rand(len(y), 2, 4, 4, generator=torch.Generator().manual_seed(0)), y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]


def batch_of(y, **kwargs): return Batch((torch.zeros(len(y), 2, 4, 4),), (torch.as_tensor(y),), **kwargs)


@pytest.mark.parametrize('kappa, tau', [(3., .5), (1., .5), (2., .9), (10., .1), (3., 0), (3., 1), (30., 1)])
@pytest.mark.parametrize('per', ['sample', 'batch'])
def test_label_weights_follow_the_papers_rule(kappa, tau, per):
    y, mixer, rng = imbalanced()[1], Remix(kappa, tau, counts=SIZES, per=per), mix_rng(0)
    for _ in range(20):
        mix = mixer.draw_mix(batch_of(y), rng)
        lam, partner = mix.lam.expand(len(y)).tolist(), mix.partner.tolist()
        expected = torch.tensor([rule(np.float32(lam[i]), SIZES[y[i]], SIZES[y[j]], kappa, tau) for i, j in enumerate(partner)])
        torch.testing.assert_close(mix.weights[0], expected)
        torch.testing.assert_close(mix.weights.sum(0), torch.ones(len(y)))
        assert type(mix) is Blend and len(mix.lam) == (len(y) if per == 'sample' else 1)


@pytest.mark.parametrize('lam, own, other, weight', [
    (.4, 30, 10, 0), (.4, 30, 11, .4), (.5, 30, 10, .5), (.6, 30, 10, .6), (0, 30, 10, 0), (.6, 10, 30, 1), (.6, 11, 30, .6), (.5, 10, 30, .5), (.4, 10, 30, .4), (1, 30, 10, 1), (1, 1, 1, 1)], ids=str)
def test_the_branches_at_their_borders(lam, own, other, weight):
    "At κ it is the rarer one's, at τ it isn't any more"
    mixer = Remix(counts=[own, other])
    assert mixer.draw(batch_of([0, 1]), np.array([lam]), mix_rng(0)).weights[0, 0].item() == pytest.approx(weight)


def test_all_three_branches_come_up_as_lambda_is_not_folded():
    y = torch.tensor([0, 2]*20)
    mix = Remix(counts=[30, 10, 9]).draw_mix(batch_of(y), mix_rng(0))
    w, own = mix.weights[0], y == 0
    mixed = y != y[mix.partner]
    assert mix.lam.min() < .2 and mixed.any()
    assert (w[own & mixed] == 0).any() and (w[~own & mixed] == 1).any() and ((w > 0) & (w < 1)).any()


def test_balanced_classes_are_mixup():
    y = torch.arange(12) % 3
    for per in 'batch', 'sample':
        mix, plain = (mixer.draw_mix(batch_of(y), mix_rng(4)) for mixer in (Remix(counts=[7, 7, 7], per=per), MixUp(1., per, fold=False)))
        torch.testing.assert_close(mix.lam, plain.lam)
        torch.testing.assert_close(mix.weights[0], plain.weights[0].expand(12))
        assert torch.equal(mix.partner, plain.partner)


def test_inputs_are_mixups():
    x, y = imbalanced()
    mix, plain = (mixer.draw_mix(Batch((x,), (y,)), mix_rng(4)) for mixer in (Remix(counts=SIZES), MixUp(1., fold=False)))
    assert torch.equal(mix(x), plain(x)) and not torch.equal(mix.weights, plain.weights)


def test_numbers_that_are_no_class_count_as_lambda_says():
    y = torch.tensor([0, -100, 2, -1])
    mix = Remix(kappa=1., tau=1., counts=[30, 10, 9]).draw_mix(batch_of(y), mix_rng(0))
    out = (y < 0) | (y[mix.partner] < 0)
    assert torch.equal(mix.weights[0][out], mix.lam[out])


# Counting

class Opened(list):
    "A transform or data set that notes what it opens"
    def __call__(self, file):
        self.append(file)
        return torch.zeros(2, 4, 4)


def kind_of(file): return file.split('_')[0]


def files(): return [f'{kind}_{i}' for kind, size in zip('abcde', SIZES) for i in range(size)]


def test_fastais_data_sets_open_nothing():
    opened = Opened()
    data = Datasets(files(), [[opened], [kind_of, Categorize()]], splits=[range(1, sum(SIZES)), [0]])
    opened.clear()
    assert count_classes(train_labels(data.dataloaders(bs=8, num_workers=0))) is not None
    opened.clear()
    dls = DataLoaders(DataLoader(data.train, bs=8), DataLoader(data.valid))
    assert count_classes(train_labels(dls)) == [29, *SIZES[1:]] and not opened


class Torchvisions(torch.utils.data.Dataset):
    "A data set that knows its targets, as torchvision's do"
    def __init__(self, y, target_transform=None): self.targets, self.target_transform, self.opened = y, target_transform, Opened()
    def __len__(self): return len(self.targets)
    def __getitem__(self, i):
        y = int(self.targets[i])
        return self.opened(i), self.target_transform(y) if self.target_transform else y


class Pairs(torch.utils.data.Dataset):
    "A data set that only has items, which are augmented by all the global generators"
    def __init__(self, y): self.y = y
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return torch.rand(2, 4, 4)*np.random.rand()*random.random(), int(self.y[i])


x, labels = imbalanced()
data_sets = {
    'pairs': (list(zip(x, labels)), True), 'ints': ([(o, int(c)) for o, c in zip(x, labels)], True), 'one column': ([(o, c[None]) for o, c in zip(x, labels)], True),
    'a TensorDataset': (torch.utils.data.TensorDataset(x, labels), True), 'targets in a list': (Torchvisions(labels.tolist()), True), 'targets in an array': (Torchvisions(labels.numpy()), True),
    'targets in a tensor': (Torchvisions(labels), True), 'items alone': (Pairs(labels), True), 'uint8': ([(o, np.uint8(c)) for o, c in zip(x, labels)], True),
    'two inputs': ([(o, o, c) for o, c in zip(x, labels)], True),
    'a subset': (torch.utils.data.Subset(Torchvisions(labels), (labels != 0).nonzero()[:, 0].tolist()), False),
    'targets that are transformed': (Torchvisions(labels, lambda c: (c+1) % 5), None)}


@pytest.mark.parametrize('data, whole', data_sets.values(), ids=data_sets)
def test_classes_are_counted_in_any_data_set(data, whole):
    dls = DataLoaders(DataLoader(data, bs=8), DataLoader(data, bs=8))
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    expected = {True: SIZES, False: [0, *SIZES[1:]], None: [1, *SIZES[:4]]}[whole]
    assert count_classes(train_labels(dls)) == expected
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()
    if whole is not None: assert not getattr(getattr(data, 'dataset', data), 'opened', None)


def test_loaders_of_torch():
    data = Torchvisions(labels)
    dls = DataLoaders(*[torch.utils.data.DataLoader(data, batch_size=8)]*2)
    assert count_classes(train_labels(dls)) == SIZES and not data.opened


def test_tables():
    frame = pd.DataFrame(dict(job=np.random.default_rng(0).choice(list('abc'), 90), age=np.arange(90.), rich=['no']*70 + ['yes']*20))
    dls = TabularDataLoaders.from_df(frame, procs=[Categorify, Normalize], cat_names=['job'], cont_names=['age'], y_names='rich', y_block=CategoryBlock(), bs=16, valid_idx=range(10))
    assert count_classes(train_labels(dls)) == [60, 20]
    learn = tabular_learner(dls, layers=[8], cbs=[mixer := Remix(seed=0), spy := Spy()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    for row in spy.rows: check_weighted(row, row.y[0][:, 0].long(), [60, 20])
    assert mixer.counted[1:-1].tolist() == [60, 20]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self): return iter(zip(x, labels))


@pytest.mark.parametrize('data', [Stream(), [dict(image=o, label=c) for o, c in zip(x, labels)], [(o, 'name') for o in x]], ids=['a stream', 'dictionaries', 'names'])
def test_where_classes_cannot_be_read_counts_are_asked_for(data):
    dls = DataLoaders(*[torch.utils.data.DataLoader(data)]*2)
    with pytest.raises((ValueError, TypeError), match='`counts=|one class number'): count_classes(train_labels(dls))


class Once(Pairs):
    reads = 0
    def __getitem__(self, i):
        self.reads += 1
        return super().__getitem__(i)


def test_counting_happens_once_in_a_fit_and_again_in_the_next():
    data = Once(labels)
    learn = learner([mixer := Remix(seed=0)], dls=DataLoaders(DataLoader(data, bs=8), DataLoader([(x[0], labels[0])], bs=8)), model=nn.Sequential(nn.Flatten(), nn.Linear(32, 5)))
    epoch = len(labels)
    learn.fit(3)
    assert data.reads == 4*epoch
    learn.dls.train.dataset.y = (labels + 1) % 5
    learn.fit(1)
    assert data.reads == 6*epoch and mixer.counted[1:-1].tolist() == [1, *SIZES[:4]]


# In training

def expected_weights(mix, y, sizes): return torch.tensor([rule(np.float32(lam), sizes[y[i]], sizes[y[j]]) for i, (lam, j) in enumerate(zip(mix.lam.expand(mix.n).tolist(), mix.partner.tolist()))])


def check_weighted(row, y, sizes, loss=F.cross_entropy, weight=None):
    "Was the loss of the batch weighted by the rule?"
    own, other = expected_weights(row.mix, y, sizes), y[row.mix.partner]
    w = torch.ones(len(sizes)) if weight is None else weight
    values = [loss(row.pred, o, reduction='none')*w[o] for o in (y, other)]
    total = (own*values[0] + (1-own)*values[1]).sum()
    torch.testing.assert_close(row.loss, total/(own*w[y] + (1-own)*w[other]).sum())


def margin(pred, y, reduction='mean'): return F.multi_margin_loss(pred, y, reduction=reduction)


@pytest.mark.parametrize('loss, value, weight', [
    (nn.CrossEntropyLoss(), F.cross_entropy, None), (CrossEntropyLossFlat(), F.cross_entropy, None), (margin, F.multi_margin_loss, None), (nn.MultiMarginLoss(), F.multi_margin_loss, None),
    (nn.CrossEntropyLoss(weight=torch.tensor([1., 4., .5, 2., 3.])), F.cross_entropy, torch.tensor([1., 4., .5, 2., 3.]))], ids=['plain', 'flat', 'function', 'margin', 'weights'])
@pytest.mark.parametrize('per', ['sample', 'batch'])
@pytest.mark.filterwarnings('error:.*one λ')
def test_the_loss_by_hand(loss, value, weight, per):
    dls = loaders((x, labels), bs=9, n_valid=8)
    sizes = [int((labels[8:] == c).sum()) for c in range(5)]
    learn = learner([Remix(seed=1, per=per), spy := Spy()], loss, nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), dls)
    learn.fit(2)
    assert len(spy.rows) == 10
    for row in spy.rows: check_weighted(row, row.y[0], sizes, value, weight)
    assert any((row.mix.weights[0] != row.mix.lam).any() for row in spy.rows)


@pytest.mark.parametrize('per', ['sample', 'batch'])
@pytest.mark.filterwarnings('error:.*every batch gets one λ')
def test_a_loss_that_is_one_number_is_refused_by_name(per):
    learn = learner([Remix(seed=1, per=per)], lambda pred, y: F.cross_entropy(pred, y).sqrt(), nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), loaders((x, labels), bs=9))
    with pytest.raises(ValueError, match='Remix weighs the labels of each sample'): learn.fit(1)


@pytest.mark.parametrize('y', [torch.rand(5, 1), F.one_hot(torch.arange(5)), F.one_hot(torch.arange(5)).float()], ids=['numbers', 'multi-hot', 'soft'])
def test_other_targets_are_refused(y):
    with pytest.raises(TypeError, match='one class number.*MixUp'): Remix(counts=[1, 2]).draw_mix(batch_of(y), mix_rng(0))
    with pytest.raises(TypeError, match='one class number.*MixUp'): count_classes(y)
    with pytest.raises(TypeError, match='one class number'): learner([Remix()], nn.MSELoss(), dls=loaders((x[:25], y.repeat(5, 1)))).fit(1)


def test_soft_losses_have_nothing_to_weigh_and_are_said_so():
    with pytest.raises(TypeError, match='first target is float32'): Remix(counts=[3, 1]).draw_mix(batch_of(torch.rand(4, 2)), mix_rng(0))


def test_in_a_choice_and_beside_the_clean_batch():
    for mixer in MixChoice(Remix(), CutMix(), seed=0), Remix(beside=True, seed=0):
        learner([mixer], nn.CrossEntropyLoss(), nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), loaders((x, labels), bs=9)).fit(2)
    remix = MixChoice(Remix()).mixers[0]
    assert remix.counted is None


@pytest.mark.parametrize('per', ['sample', 'batch'])
def test_it_keeps_what_a_mixer_promises(per):
    check_mixer(Remix(per=per), draws=4)
    check_mixer(Remix(per=per, counts=[60, 50, 40, 3, 2, 1]), draws=4)


def test_a_picture_before_a_fit():
    learn = learner([Remix()], nn.CrossEntropyLoss(), nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), loaders((torch.rand(53, 3, 4, 4), labels), bs=9))
    learn.show_mix(max_n=2)
    assert learn.remix.counted is None # Without a trace
    show_mix(learn.dls, Remix(), max_n=2)


@pytest.mark.parametrize('given, error, text', [
    (dict(kappa=.9), ValueError, '`kappa`'), (dict(kappa=math.inf), ValueError, '`kappa`'), (dict(kappa='3'), TypeError, '`kappa`'), (dict(kappa=math.nan), ValueError, '`kappa`'),
    (dict(tau=-.1), ValueError, '`tau`'), (dict(tau=1.1), ValueError, '`tau`'), (dict(tau=None), TypeError, '`tau`'),
    (dict(counts=[1, 0]), ValueError, '`counts`'), (dict(counts=[1, -2]), ValueError, '`counts`'), (dict(counts=[]), TypeError, '`counts`'), (dict(counts=5), TypeError, '`counts`'),
    (dict(counts=['a', 'b']), TypeError, '`counts`'), (dict(counts=[1, math.nan]), ValueError, '`counts`')], ids=str)
def test_arguments_that_make_no_sense(given, error, text):
    with pytest.raises(error, match=text): Remix(**given)


@pytest.mark.parametrize('counts', [np.array([3, 1]), torch.tensor([3., 1.]), (3, 1)], ids=['array', 'tensor', 'tuple'])
def test_counts_of_every_kind(counts): assert Remix(counts=counts).counted[1:-1].tolist() == [3, 1]


def test_too_few_counts():
    with pytest.raises(ValueError, match='2 classes, and a target is class 4'): learner([Remix(counts=[3, 1])], nn.CrossEntropyLoss(), nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), loaders((x, labels))).fit(1)
    dls = Datasets(files(), [[Opened()], [kind_of, Categorize()]]).dataloaders(bs=8, num_workers=0)
    with pytest.raises(ValueError, match='it has 2, and the data has 5 classes'): learner([Remix(counts=[3, 1])], nn.CrossEntropyLoss(), dls=dls).fit(1)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
def test_class_numbers_of_every_dtype(dtype):
    mix = Remix(counts=[30, 3]).draw_mix(batch_of(torch.tensor([0, 1, 0, 1, 1]).to(dtype)), mix_rng(0))
    assert mix.weights.shape == (2, 5)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_inputs(dtype):
    t = torch.rand(7, 3, 5, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    mix = Remix(counts=[30, 3]).draw_mix(Batch((t,), (torch.arange(7) % 2,)), mix_rng(0))
    assert mix(t).dtype == dtype and mix(t).stride() == t.stride()


def test_it_goes_on_in_a_copy_and_after_a_stop():
    def draws(mixer): return [mixer.draw_mix(batch_of(torch.arange(5)), mixer.rng).weights.tolist() for _ in range(3)]
    one, other = Remix(counts=SIZES), Remix(counts=SIZES)
    one.rng = mix_rng(4)
    draws(one)
    other.load_state_dict(one.state_dict())
    assert draws(copy.deepcopy(one)) == draws(other) == draws(one)


def test_the_partners_class_is_that_of_the_source():
    batch = batch_of(torch.zeros(4).long())
    batch.source = batch_of(torch.ones(4).long())
    mix = Remix(kappa=3., tau=1., counts=[30, 10]).draw_mix(batch, mix_rng(0))
    assert (mix.weights[0] == 0).all()


def test_nothing_is_read_off_the_device():
    "Torch's meta device has no data, so reading it raises; and what runs on it is what runs on a GPU"
    inputs, y = gpu.batch('meta', (8, 3, 4, 4), torch.float32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, peers.CLASSES, device='meta'))
    for loss in nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(peers.CLASSES, device='meta')):
        step = gpu.training_step(peers.learner(inputs, y, Remix(counts=range(1, peers.CLASSES+1), seed=0), loss, model), inputs, y)
        for _ in range(3): assert step().shape == ()


def test_drawing_is_quick():
    "3 ms are allowed; the shortest of some, as other processes may be running"
    batch, rng, took = Batch((torch.zeros(64, 3, 224, 224),), (torch.arange(64) % 5,)), mix_rng(0), []
    mixer = Remix(counts=SIZES)
    for _ in range(20):
        start = time.perf_counter()
        mixer.draw_mix(batch, rng)
        took.append(time.perf_counter() - start)
    assert min(took) < 3e-3
