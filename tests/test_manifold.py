"""Mixing at the input of a layer: the prediction is what it must be, computed by hand from the mixed activations."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter
from fastai.optimizer import SGD
from fastai.vision.all import ImageBlock, resnet18, vision_learner, xresnet18
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, MixUp, find_layers, mixing_layers
from helpers import Spy, check, learner, loaders, mixed, samples, weighted

per = pytest.mark.parametrize('per', ['sample', 'batch'])


def net():
    "Three dense layers, the same each time"
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def by_hand(row, model, k, x=None):
    "What `model` says when the input of its layer `k` is mixed"
    with torch.no_grad(): return model[k:](mixed(row.mix, model[:k](row.own[0] if x is None else x)))


def hooks(model): return [m for m in model.modules() if m._forward_pre_hooks]


class Watch(Spy):
    "Keeps the model's input and output, the layer that was hooked, and what is left of hooks when the batch is over"
    def after_pred(self):
        self.row.x, self.row.pred = self.learn.xb, self.learn.pred.detach()
        self.row.hooked = hooks(self.learn.model)


class Over(Callback):
    order = 60
    def after_batch(self): assert not hooks(self.learn.model), 'a hook is left after the batch'


def fit(mixer, model, *cbs, data=None, epochs=1, lr=0., **kwargs):
    "What was seen of a fit that does not change the model"
    spy = Watch()
    learner([mixer, spy, Over(), *cbs], model=model, dls=loaders(data or samples(40)), **kwargs).fit(epochs, lr=lr)
    assert not hooks(model) and any((row.mix.lam < 1).any() for row in spy.rows)
    return spy.rows


# Predictions and batches in the midst of a batch

@per
@pytest.mark.parametrize('use', ['get_preds', 'one_batch'])
@pytest.mark.parametrize('floats', [False, True], ids=['labels', 'floats'])
def test_the_layer_is_mixed_also_after_predictions(per, use, floats):
    "A callback that comes after the mixer asks for predictions, or trains on another batch, before the forward pass"
    class Asks(Callback):
        order, busy = 20, False
        def before_batch(self):
            learn = self.learn
            if not learn.training or self.busy: return
            kept = {name: getattr(learn, name) for name in ('dl', 'n_iter', 'iter', 'xb', 'yb', 'training')}
            self.busy = True
            if use == 'get_preds': learn.get_preds()
            else: learn.one_batch(0, (kept['xb'][0][:5], kept['yb'][0][:5]))
            self.busy = False
            for name, value in kept.items(): setattr(learn, name, value)
            learn.model.train()
    x, y = samples(40)
    data, loss = ((x, F.one_hot(y, 3).float()), nn.MSELoss()) if floats else ((x, y), nn.CrossEntropyLoss())
    plain, asked = (fit(ManifoldMixUp('3', per=per, seed=0), net(), *cbs, data=data, loss_func=loss) for cbs in ((), (Asks(),)))
    if use == 'get_preds':
        for a, b in zip(plain, asked):
            assert_close(a.pred, b.pred)
            assert_close(a.loss, b.loss)
    for row in [row for row in asked if len(row.own[0]) == 8]:
        assert len(row.hooked) == 1
        assert_close(row.pred, by_hand(row, net(), 3))


# Which layer, and what happens there

@per
def test_one_of_the_layers_is_drawn_per_batch(per):
    model, layers = net(), {0: 'input', 3: '3', 5: '5'}
    rows = fit(ManifoldMixUp([*layers.values()], per=per, seed=0), model, epochs=15)
    drawn = []
    for row in rows:
        fits = [k for k in layers if torch.allclose(row.pred, by_hand(row, model, k), atol=1e-6)]
        assert fits and len(row.mix.lam) == (8 if per == 'sample' else 1)
        if len(row.mix.lam) > 1 or row.mix.lam < .99: assert len(fits) == 1
        k = fits[0]
        assert row.hooked == ([model[k]] if k else [])
        assert_close(row.x[0], by_hand(row, nn.Sequential(), 0) if k == 0 else row.own[0])
        assert_close(row.loss, weighted(row.mix, row.pred, *row.y))
        drawn.append(k)
    for k in layers: assert 10 <= drawn.count(k) <= 30, '60 batches: each of three layers in 20 on average, 3.65 the standard deviation'


ways = {'name': lambda model: '3', 'names': lambda model: ['3'], 'module': lambda model: model[3], 'modules': lambda model: [model[3]]}


@pytest.mark.parametrize('way', ways.values(), ids=ways)
def test_a_layer_by_name_or_as_module(way):
    model = net()
    for row in fit(ManifoldMixUp(way(model)), model):
        assert row.hooked == [model[3]] and torch.equal(row.x[0], row.own[0])
        assert_close(row.pred, by_hand(row, model, 3))


def test_a_layer_by_its_second_name():
    model = net()
    model.add_module('head', model[5])
    assert find_layers(model, ['head']) == [('head', model[5])] and find_layers(model, [model[5]]) == [('5', model[5])]


def test_layers_by_type():
    model = net()
    rows = fit(ManifoldMixUp(nn.Tanh, seed=0), model, epochs=5)
    for row in rows: assert_close(row.pred, by_hand(row, model, 2 if row.hooked == [model[2]] else 4))
    assert {id(module) for row in rows for module in row.hooked} == {id(model[2]), id(model[4])}


class Branches(nn.Module):
    "The layer `join` is given a tuple, a keyword, and what is no tensor"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.join = nn.Linear(32, 4), nn.Linear(32, 3), Join()
    def forward(self, x): return self.join((self.a(x.flatten(1)), torch.ones(len(x), dtype=torch.long)), scale=self.b(x.flatten(1)), name='join')


class Join(nn.Module):
    def forward(self, pair, scale, name):
        values, counts = pair
        assert counts.dtype == torch.long and name == 'join'
        return values[:, :3]*counts[:, None] + scale**2


@per
def test_a_layer_of_several_tensors(per):
    model = Branches()
    for row in fit(ManifoldMixUp('join', per=per), model):
        x = row.own[0].flatten(1)
        with torch.no_grad(): a, b = mixed(row.mix, model.a(x)), mixed(row.mix, model.b(x))
        assert_close(row.pred, a[:, :3] + b**2)


@per
def test_gradients_are_those_of_the_formula(per):
    model = net()
    for row in fit(ManifoldMixUp('3', per=per), model):
        hidden = model[:3](row.own[0])
        loss = weighted(row.mix, model[3:](mixed(row.mix, hidden)), *row.y)
        assert_close(row.grads, list(torch.autograd.grad(loss, list(model.parameters()))))


@pytest.mark.parametrize('target', ['float', 'mask'])
def test_other_targets(target):
    "Floating targets are blended, masks weighted"
    x, _ = samples(40)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1))
    y, loss = (x.flip(1), nn.MSELoss()) if target == 'float' else ((x[:, 0] > .5).long(), nn.CrossEntropyLoss())
    for row in fit(ManifoldMixUp('2'), model, data=(x, y), loss_func=loss):
        assert_close(row.pred, by_hand(row, model, 2))
        expected = F.mse_loss(row.pred, mixed(row.mix, row.y[0])) if target == 'float' else weighted(row.mix, row.pred, row.y[0])
        assert_close(row.loss, expected)


# fastai's vision models

@pytest.mark.parametrize('arch, stages', [(resnet18, ['4', '5', '6', '7']), (xresnet18, ['4', '5', '6', '7'])], ids=['resnet', 'xresnet'])
def test_stages_of_a_vision_model_are_found(arch, stages):
    torch.manual_seed(0)
    block = DataBlock((ImageBlock, CategoryBlock), getters=[lambda i: (255*samples(20, (32, 32))[0][i].repeat(2, 1, 1)[:3]).byte().permute(1, 2, 0).numpy(),
                                                            lambda i: i % 3], splitter=IndexSplitter(range(4)))
    learn = vision_learner(block.dataloaders(range(20), bs=4, num_workers=0), arch, pretrained=False, normalize=False, ps=0., lin_ftrs=[8],
                           cbs=[ManifoldMixUp(seed=1), spy := Watch(), Over()])
    with learn.no_bar(), learn.no_logging(): learn.fit(3, lr=0)
    body, head = learn.model.train()
    named, seen = {id(module): name for name, module in body.named_children()}, set()
    assert mixing_layers(learn.model) == ['input', *(f'0.{stage}' for stage in stages)]
    for row in spy.rows: # the tolerance: batch normalisation over four small images blows rounding up
        layer = named[id(row.hooked[0])] if row.hooked else 'input'
        k = [*named.values()].index(layer) if row.hooked else 0
        with torch.no_grad(): assert_close(row.pred, head(body[k:](mixed(row.mix, body[:k](row.own[0])))), rtol=1e-2, atol=1e-3)
        seen.add(layer)
    assert len(seen) >= 3 and 'input' in seen


# The forward pass runs again

class Sam(Callback):
    "A second forward and backward pass at the same mix, from other weights: sharpness-aware minimisation"
    def __init__(self): self.rows = []
    def after_backward(self):
        params = list(self.learn.model.parameters())
        kept = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params: p.add_(p.grad, alpha=.05)
        self.learn.opt.zero_grad()
        pred = self.learn.model(*self.learn.xb)
        loss = self.learn.loss_func(pred, *self.learn.yb)
        loss.backward()
        row, unhooked = self.learn.watch.row, net()
        unhooked.load_state_dict(self.learn.model.state_dict())
        self.rows.append((row, pred.detach(), by_hand(row, unhooked, 3), loss.detach()))
        with torch.no_grad():
            for p, k in zip(params, kept): p.copy_(k)


@per
def test_a_second_pass_has_the_same_mix(per):
    model, sam = net(), Sam()
    fit(ManifoldMixUp('3', per=per), model, sam)
    assert len(sam.rows) == 4
    for row, pred, expected, loss in sam.rows:
        assert (pred - row.pred).abs().max() > 1e-4, 'the weights are others'
        assert_close(pred, expected)
        assert_close(loss, weighted(row.mix, pred, *row.y))


class Checkpointed(nn.Module):
    "The middle is computed again in the backward pass"
    def __init__(self, reentrant):
        super().__init__()
        self.net, self.reentrant, self.runs = net(), reentrant, 0
    def middle(self, x):
        self.runs += self.training
        return self.net[2:4](x)
    def forward(self, x): return self.net[4:](checkpoint(self.middle, self.net[:2](x), use_reentrant=self.reentrant))


@pytest.mark.parametrize('reentrant', [False, True])
def test_gradient_checkpointing(reentrant):
    model = Checkpointed(reentrant)
    plain, kept = fit(ManifoldMixUp('3', seed=1), net(), lr=.1, opt_func=SGD), fit(ManifoldMixUp('net.3', seed=1), model, lr=.1, opt_func=SGD)
    assert model.runs == 2*len(kept)
    for a, b in zip(plain, kept, strict=True):
        assert_close(a.pred, b.pred)
        assert_close(a.grads, b.grads)


# Faults

places = ['before_batch', 'after_pred', 'after_loss', 'before_backward', 'after_backward', 'before_step', 'after_step', 'after_batch', 'layer before', 'layer after']


@pytest.mark.parametrize('fault', [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError, CancelBatchException, CancelFitException], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize('place', places)
def test_no_hook_is_left_by_a_fault(place, fault):
    model, raised = net(), []
    def fail(*_):
        if len(raised) or len(spy.rows) == 0 and place != 'before_batch': return
        raised.append(hooks(model))
        raise fault('a fault')
    spy, before = Watch(), model(samples(8)[0]).detach()
    cbs = [Callback(**{place: fail})] if '_' in place else []
    if '_' in place: cbs[0].order = 60 # when the hook has been set
    else: handle = model[1 if 'before' in place else 4].register_forward_hook(fail)
    learn = learner([ManifoldMixUp('3'), spy], model=model, dls=loaders(samples(40)))
    try: learn.fit(1, lr=0, cbs=cbs)
    except fault: pass
    if '_' not in place: handle.remove()
    assert raised == [[]] if place == 'after_batch' else raised == [[model[3]]]
    assert not hooks(model)
    assert_close(model(samples(8)[0]), before)
    spy.rows.clear()
    learn.fit(1, lr=0)
    assert len(spy.rows) == 4
    for row in spy.rows: assert_close(row.pred, by_hand(row, model, 3))


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(32, 3), nn.Linear(32, 3)
    def forward(self, x): return self.used(x.flatten(1))


class Mean(nn.Module):
    "Gives its last layer what has no batch in front, or no floating numbers"
    def __init__(self, kind):
        super().__init__()
        self.kind, self.last = kind, nn.Identity()
        self.zero = nn.Parameter(torch.zeros(3))
    def forward(self, x):
        self.last(x[:3] if self.kind == 'part' else x.mean() if self.kind == 'number' else x.long())
        return self.zero.expand(len(x), 3)


def test_a_layer_that_never_ran_is_named():
    model = Skips()
    with pytest.raises(RuntimeError, match="'spare' did not run in the forward pass"): fit(ManifoldMixUp('spare'), model)
    assert not hooks(model)


@pytest.mark.parametrize('kind, error, message', [('part', ValueError, r'\(3, 2, 4, 4\).*the batch is 8'), ('number', ValueError, 'batch first'),
                                                  ('codes', TypeError, 'no floating tensor, but .*int64.*later layer')])
def test_a_layer_that_cannot_be_mixed_at(kind, error, message):
    model = Mean(kind)
    with pytest.raises(error, match=f"the layer 'last' .*{message}"): fit(ManifoldMixUp('last'), model)
    assert not hooks(model)


@pytest.mark.parametrize('layers, message', [('9', "no layer '9': it has '0', '1'"), (nn.Conv2d, 'no layer .*Conv2d'), (nn.Linear(1, 1), 'no layer Linear'), (None, 'Name them')])
def test_a_layer_that_is_not_there(layers, message):
    with pytest.raises(ValueError, match=message): fit(ManifoldMixUp(layers), net())


def test_a_text_reader_reads_a_part_of_the_batch_at_a_time():
    "Inside of it the batch is another, which is said"
    from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, get_text_classifier
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=10, n_layers=1)
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.reader = get_text_classifier(AWD_LSTM, 50, 3, seq_len=4, config=config)
        def forward(self, x): return self.reader(x)[0]
    tokens = torch.randint(2, 50, (24, 8))
    tokens[::2, :4] = 1 # half of the texts are padded in front
    y = samples(24)[1]
    with pytest.raises(ValueError, match=r"the layer '.*rnns.0' is given a tensor of shape .*the batch is 8"):
        fit(ManifoldMixUp('reader.0.module.rnns.0'), First(), data=(tokens, y))


# One of several; wrappers

def test_a_part_of_a_choice():
    model, spy = net(), Watch()
    choice = MixChoice(ManifoldMixUp('3'), MixUp(), CutMix(), seed=1)
    learner([choice, spy, Over()], model=model, dls=loaders(samples(40))).fit(5, lr=0)
    for row in spy.rows:
        if row.hooked:
            assert row.hooked == [model[3]] and torch.equal(row.x[0], row.own[0])
            assert_close(row.pred, by_hand(row, model, 3))
            assert_close(row.loss, weighted(row.mix, row.pred, *row.y))
        else: check(row)
    kinds = [(type(row.mix).__name__, bool(row.hooked)) for row in spy.rows]
    assert set(kinds) == {('Blend', True), ('Blend', False), ('Paste', False)}


def test_a_choice_looks_for_the_layers_before_the_first_batch():
    spy = Watch()
    with pytest.raises(ValueError, match="no layer '9'"):
        learner([MixChoice(MixUp(), ManifoldMixUp('9'), weights=[1, 0]), spy], model=net()).fit(1)
    assert not spy.rows


def test_names_within_a_distributed_model(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        inner = net()
        for layer in '3', inner[3], 'module.3':
            if layer == 'module.3': # the wrapper's own name is none
                with pytest.raises(ValueError, match="no layer 'module.3'"): fit(ManifoldMixUp(layer), DistributedDataParallel(inner))
                continue
            for row in fit(ManifoldMixUp(layer), DistributedDataParallel(inner)):
                assert row.hooked == [inner[3]]
                assert_close(row.pred, by_hand(row, inner, 3))
                loss = weighted(row.mix, inner[3:](mixed(row.mix, inner[:3](row.own[0]))), *row.y)
                assert_close(row.grads, list(torch.autograd.grad(loss, list(inner.parameters()))))
    finally: torch.distributed.destroy_process_group()


wrappers = {'compiled': torch.compile, 'compiled in place': lambda model: model.compile() or model,
            'compiled within': lambda model: nn.Sequential(model[:3], torch.compile(model[3:])), 'data parallel': nn.DataParallel}


@pytest.mark.parametrize('wrap', wrappers.values(), ids=wrappers)
def test_where_a_hook_would_not_work(wrap):
    model = wrap(net())
    with pytest.raises(ValueError, match='samples cannot be mixed at the input of the layer .*(compiled|DataParallel)'): fit(ManifoldMixUp(nn.Linear), model)
    assert not hooks(model)


@pytest.mark.parametrize('mixer', [partial(ManifoldMixUp, 'input'), MixUp], ids=['manifold', 'mix_up'])
def test_the_input_of_a_compiled_model_can_be_mixed(mixer):
    def compilations(*cbs):
        "How often a model is compiled in two epochs"
        torch._dynamo.reset() # what other tests compiled counts towards its limit
        inner, graphs = net(), []
        def backend(graph, _):
            graphs.append(graph)
            return graph.forward
        learner([*cbs, spy := Watch()], model=torch.compile(inner, backend=backend), dls=loaders(samples(40))).fit(2, lr=0)
        for row in spy.rows: assert_close(row.pred, by_hand(row, inner, 0) if cbs else inner(row.own[0]))
        return len(graphs)
    assert compilations(mixer(seed=1)) == compilations() > 0
