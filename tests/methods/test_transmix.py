"""TransMix on timm's vision transformers, where timm is installed, and on a copy of their structure in any case."""
import copy
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench import gpu, peers
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.learner import vision_learner
from test_family import N, RootLoss, classes, data, shares_seen
from torch import nn

from fastmix.all import Batch, MixChoice, MixUp, Paste, TransMix, check_mixer, mix_rng
from fastmix.methods.transmix import find_attention, patch_grid


class Attention(nn.Module):
    "As timm's: queries, keys and values in one layer, attention that is fused"
    def __init__(self, dim, num_heads, qk_norm=False):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim//num_heads)**-.5
        self.qkv, self.proj, self.attn_drop = nn.Linear(dim, 3*dim), nn.Linear(dim, dim), nn.Dropout(0.)
        self.q_norm, self.k_norm = (nn.LayerNorm(dim//num_heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c//self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    def __init__(self, dim, num_heads, attention, **kwargs):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), attention(dim, num_heads, **kwargs), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2*dim), nn.GELU(), nn.Linear(2*dim, dim))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    "As timm's: patches, a class token and registers before them, blocks, and a prediction from the class token"
    def __init__(self, img_size=(8, 12), patch_size=2, in_chans=N+3, num_classes=3, global_pool='token', embed_dim=24, depth=2, num_heads=3,
                 class_token=True, reg_tokens=0, patch_drop_rate=0., attn_layer=Attention, **kwargs):
        super().__init__()
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.has_class_token, self.global_pool, self.num_prefix_tokens = class_token, global_pool, class_token + reg_tokens
        self.prefix = nn.Parameter(torch.randn(1, self.num_prefix_tokens, embed_dim)*.02)
        self.pos_embed = nn.Parameter(torch.randn(1, (img_size[0]//patch_size)*(img_size[1]//patch_size), embed_dim)*.02)
        self.patch_drop = nn.Dropout(patch_drop_rate) if patch_drop_rate else nn.Identity()
        self.blocks = nn.Sequential(*[Block(embed_dim, num_heads, attn_layer, **kwargs) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).mT + self.pos_embed
        x = self.norm(self.blocks(self.patch_drop(torch.cat([self.prefix.expand(len(x), -1, -1), x], 1))))
        return self.head(x[:, 0] if self.has_class_token else x.mean(1))


@pytest.fixture(params=['copy', 'timm'])
def vit(request, monkeypatch):
    "Makes small vision transformers"
    if request.param == 'copy':
        module = ModuleType('timm.models.vision_transformer')
        module.Attention, module.VisionTransformer = Attention, VisionTransformer
        monkeypatch.setitem(sys.modules, module.__name__, module)
        made = VisionTransformer
    else: made = pytest.importorskip('timm.models.vision_transformer').VisionTransformer
    def make(**kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            vit = made(**dict(img_size=(8, 12), patch_size=2, in_chans=N+3, num_classes=3, embed_dim=24, depth=2, num_heads=3) | kwargs)
        with torch.no_grad(): # Attention that prefers something
            for p in vit.blocks[-1].attn.qkv.parameters(): p.mul_(8 if p.ndim > 1 else 1)
        return vit
    return make


def literal_row(attention, tokens, prefix):
    "What the class token attends to in the patches, for each sample, head by head"
    weight, bias = attention.qkv.weight.detach().double().numpy(), attention.qkv.bias.detach().double().numpy()
    dim, heads, rows = weight.shape[1], attention.num_heads, []
    def normed(norm, v):
        if not isinstance(norm, nn.LayerNorm): return v
        v = (v - v.mean(-1, keepdims=True))/np.sqrt(v.var(-1, keepdims=True) + norm.eps)
        return v*norm.weight.detach().numpy() + norm.bias.detach().numpy()
    for sample in tokens.detach().double().numpy():
        made, total = sample @ weight.T + bias, 0
        for head in range(heads):
            part = slice(head*dim//heads, (head+1)*dim//heads)
            q, k = normed(attention.q_norm, made[:1, :dim][:, part]), normed(attention.k_norm, made[:, dim:2*dim][:, part])
            likeness = (k @ q[0])*(dim//heads)**-.5
            e = np.exp(likeness - likeness.max())
            total = total + e/e.sum()
        rows.append((total/heads)[prefix:])
    return np.array(rows)


def tokens_of(model):
    "Where the tokens that the last attention is given are kept, once the model runs"
    kept = []
    model.blocks[-1].attn.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    return kept


@pytest.mark.parametrize('kwargs', [{}, dict(qk_norm=True), dict(reg_tokens=4), dict(img_size=(12, 12), patch_size=3, num_heads=4)], ids=str)
def test_the_row_of_the_class_token_is_the_literal_one(vit, kwargs):
    model = vit(**kwargs)
    if kwargs.get('qk_norm'):
        with torch.no_grad():
            for p in model.blocks[-1].attn.k_norm.parameters(): p.add_(.3*torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    name, layer, read = find_attention(model, None)
    assert name == 'blocks.1.attn.qkv' and layer is model.blocks[-1].attn.qkv
    kept, seen = tokens_of(model), []
    layer.register_forward_hook(lambda _, args, out: seen.append(out))
    model(torch.rand(3, N+3, *kwargs.get('img_size', (8, 12)), generator=torch.Generator().manual_seed(0)))
    row = read(seen[0])
    np.testing.assert_allclose(row, literal_row(model.blocks[-1].attn, kept[0], 1 + kwargs.get('reg_tokens', 0)), rtol=1e-4, atol=1e-6)
    assert not row.requires_grad and row.std() > .001


class Look(Callback):
    "Keeps what the network was given and gave, and the loss"
    order, run_valid = 95, False
    def __init__(self, kept): self.kept, self.rows = kept, []
    def before_batch(self): self.seen = self.learn.xb[0]
    def after_pred(self): self.out = self.learn.pred
    def after_loss(self):
        mixer = next(cb for cb in self.learn.cbs if hasattr(cb, 'pick'))
        self.rows.append(dict(seen=self.seen.detach(), out=self.out.detach(), tokens=self.kept[-1].detach(), loss=self.learn.loss.detach(), part=mixer.batch.mixer,
                              attention=copy.deepcopy(self.learn.model.blocks[-1].attn), prefix=self.learn.model.num_prefix_tokens))


def fit(model, cbs, epochs=2, loss=None, y=classes, **kwargs):
    look = Look(tokens_of(model))
    learn = Learner(data(y), model, loss_func=loss or nn.CrossEntropyLoss(), cbs=[*cbs, look], lr=.05, **kwargs)
    learn.logger = lambda _: None
    learn.remove_cbs([ProgressCallback, Recorder]).fit(epochs)
    return learn, look.rows


def counts(row, half=slice(None)):
    "`(n, N)`: how much each sample's label counts, from what was seen and attended to"
    seen = row['seen'][half]
    shares = shares_seen(seen)
    if not isinstance(row['part'], TransMix): return shares
    patches = F.avg_pool2d(seen[:, :N], 2).flatten(2)
    attention = torch.from_numpy(literal_row(row['attention'], row['tokens'][half], row['prefix'])).float()[:, None]
    attended = (patches*attention).sum(2)/attention.sum(2)
    return .5*shares + .5*torch.where(attention.sum(2) > 1e-30, attended, shares)


def by_hand(row, weight=None, y=classes):
    "The cross entropy of a batch"
    weight = torch.ones(3) if weight is None else weight
    per_class = torch.stack([counts(row)[:, y == c].sum(1) for c in range(3)], 1)*weight
    return -(per_class*row['out'].log_softmax(1)).sum()/per_class.sum()


class Logged(nn.NLLLoss):
    "A loss of one's own, with a reduction"
    def forward(self, pred, y): return super().forward(pred.log_softmax(1), y)


weights = torch.tensor([1., 4., .5])

@pytest.mark.parametrize('per', ['batch', 'sample'])
@pytest.mark.parametrize('loss, weight', [(nn.CrossEntropyLoss(), None), (Logged(), None), (CrossEntropyLossFlat(weight=weights), weights)], ids=['plain', 'own', 'class weights'])
def test_the_loss_by_hand(vit, per, loss, weight):
    _, rows = fit(vit(), [TransMix(per=per, seed=1)], loss=loss)
    apart = [(counts(row) - shares_seen(row['seen'])).abs().max() for row in rows]
    assert len(rows) == 4 and max(apart) > .005
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row, weight))


def test_registers_are_passed_over(vit):
    for row in fit(vit(reg_tokens=4, qk_norm=True), [TransMix(seed=1)])[1]: torch.testing.assert_close(row['loss'], by_hand(row))


def test_beside_another_in_a_choice(vit):
    rows = fit(vit(), [MixChoice(MixUp(), TransMix(), seed=2)], epochs=5)[1]
    assert {type(row['part']) for row in rows} == {MixUp, TransMix}
    for row in rows: torch.testing.assert_close(row['loss'], by_hand(row))


def test_beside_the_clean_batch(vit):
    for row in fit(vit(), [TransMix(seed=1, beside=True)])[1]:
        clean, mixed = (-(torch.stack([part[:, classes == c].sum(1) for c in range(3)], 1)*row['out'][half].log_softmax(1)).sum(1).mean()
                        for half, part in ((slice(8), shares_seen(row['seen'][:8])), (slice(8, 16), counts(row, slice(8, 16)))))
        assert len(row['out']) == 16
        torch.testing.assert_close(row['loss'], (clean + mixed)/2)


def test_soft_labels_are_weighed_too(vit):
    "They are kept, and the loss weighted: averaged before the forward pass, they'd have the share of the pixels"
    soft = F.one_hot(classes, 3).float()*.8 + .2/3
    for row in fit(vit(), [TransMix(seed=1)], y=soft)[1]:
        torch.testing.assert_close(row['loss'], -((counts(row) @ soft)*row['out'].log_softmax(1)).sum(1).mean())


class Half(Callback):
    "The forward pass and the loss in bfloat16"
    order = 12
    def before_batch(self):
        self.on = torch.autocast('cpu', torch.bfloat16)
        self.on.__enter__()
    def after_loss(self): self.on.__exit__(None, None, None)
    after_cancel_batch = after_loss


def test_in_lower_precision(vit):
    for row in fit(vit(), [TransMix(seed=1), Half()])[1]:
        row['out'] = row['out'].float()
        torch.testing.assert_close(row['loss'].float(), by_hand(row), rtol=.02, atol=.02)


@pytest.mark.parametrize('loss', [RootLoss(), lambda pred, y: F.cross_entropy(pred, y)], ids=['root', 'closure'])
def test_a_loss_that_is_one_number_is_refused_by_name(vit, loss):
    with pytest.raises(ValueError, match='TransMix weighs the labels of each sample'): fit(vit(), [TransMix(seed=1)], loss=loss)


def hooks(model): return [hook for module in model.modules() for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())]


@pytest.mark.parametrize('event', ['after_pred', 'after_loss', 'after_backward', 'before_batch'])
def test_no_hook_stays_after_an_exception(vit, event):
    class Stop(Exception): pass
    class Stops(Callback): order = 96
    def stop(self): raise Stop('here')
    setattr(Stops, event, stop)
    model, mixer = vit(), TransMix(seed=1)
    learn = Learner(data(classes), model, loss_func=nn.CrossEntropyLoss(), cbs=[mixer, Stops()], lr=.05)
    with learn.no_bar(), learn.no_logging(), pytest.raises(Stop): learn.fit(1)
    assert not hooks(model) and type(learn.loss_func) is nn.CrossEntropyLoss


def test_nothing_is_left_and_exports_are_clean(vit):
    model, mixer = vit(), TransMix(seed=1)
    learn = Learner(data(classes), model, loss_func=nn.CrossEntropyLoss(), cbs=mixer, lr=.05)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert not hooks(model) and mixer.found is None
    copied = copy.deepcopy(learn)
    assert type(copied.trans_mix) is TransMix and copied.trans_mix.learn is copied
    mixer.learn = nn.Identity() # Attached, to something that can be pickled
    assert b'fastmix' not in pickle.dumps(mixer)


def test_an_attention_by_name_or_as_a_module(vit):
    model = vit(depth=3)
    first = model.blocks[0].attn
    for given in first, 'blocks.0.attn':
        name, layer, read = find_attention(nn.Sequential(model), given if given is first else f'0.{given}')
        assert name == '0.blocks.0.attn.qkv' and layer is first.qkv and read.args[1] == 1


def test_models_that_say_nothing_of_their_patches(vit):
    class Unusual(sys.modules['timm.models.vision_transformer'].Attention): "It may do something else"
    for kwargs, why in (dict(class_token=False, global_pool='avg'), 'has no class token'), (dict(global_pool='avg'), 'predicts from its patches'), \
                       (dict(patch_drop_rate=.5), 'drops patches at random'), (dict(attn_layer=Unusual), 'has an unusual attention'):
        with pytest.raises(ValueError, match=f'{why}.*Use CutMix'): fit(vit(**kwargs), [TransMix()])


def test_other_models():
    net = nn.Sequential(nn.Flatten(), nn.Linear((N+3)*96, 3))
    def train(**kwargs): Learner(data(classes), net, loss_func=nn.CrossEntropyLoss(), cbs=TransMix(**kwargs)).fit(1)
    for kwargs, why in ({}, "finds the attention in timm's.*attention="), (dict(attention='attn'), "no layer 'attn'"), (dict(attention=nn.Linear(2, 2)), 'no layer Linear'), \
                       (dict(attention='1'), r"the layer '1' gives \[\(8, 3\)\].*\(n, heads, 1\+T, 1\+T\)"):
        with pytest.raises(ValueError, match=why): train(**kwargs)
    assert not hooks(net)
    for bad in 3, ['a'], nn.Linear:
        with pytest.raises(TypeError, match='`attention` must be a module, its name, or None'): TransMix(bad)


def test_a_compiled_model_is_refused(vit):
    with pytest.raises(ValueError, match='inside a compiled model a hook never runs'): fit_compiled(vit())


def fit_compiled(model):
    learn = Learner(data(classes), torch.compile(model), loss_func=nn.CrossEntropyLoss(), cbs=TransMix())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_grids():
    for patches, size, grid in (196, (224, 224), (14, 14)), (24, (8, 12), (4, 6)), (208, (250, 200), (16, 13)), (1, (9, 9), (1, 1)), (5, (1, 5), (1, 5)), (98, (112, 224), (7, 14)):
        assert patch_grid(patches, size) == grid
    for patches, size in (200, (224, 224)), (195, (224, 224)), (24, (12, 12)), (0, (4, 4)), (7, (8, 8)):
        with pytest.raises(ValueError, match=f'attends to {patches} patches'): patch_grid(patches, size)


def test_even_attention_leaves_the_share_and_the_own_label_gets_what_the_own_patches_get():
    "Another implementation gives it the partner's share of the attention"
    mixer = TransMix('attention')
    mixer.found = find_attention(nn.ModuleDict({'attention': nn.Identity()}), 'attention')
    for size, grid in ((8, 12), (4, 6)), ((9, 9), (2, 2)):
        mix = Paste([(0, 4), (0, 8)], size, [1, 2, 0])
        row = torch.zeros(3, 2, 1 + grid[0]*grid[1], 1 + grid[0]*grid[1])
        torch.testing.assert_close(mixer.settle(mix, row + 1), mix.lam.expand(3))
        own, last = mix.own_at(grid).float().flatten(), row.clone()
        last[..., -1] = 1 # The last patch, which is kept
        torch.testing.assert_close(mixer.settle(mix, last), ((mix.lam + own[-1])/2).expand(3))
        last[..., 1], last[..., -1] = 1, 0 # The first, which is the partner's
        torch.testing.assert_close(mixer.settle(mix, last), ((mix.lam + own[0])/2).expand(3))


def test_where_no_patch_is_attended_to_the_share_counts():
    "All attention may be on the class token itself, or not a number"
    mixer = TransMix('attention')
    mixer.found = find_attention(nn.ModuleDict({'attention': nn.Identity()}), 'attention')
    mix = Paste([(0, 3), (0, 3)], (8, 8), [1, 2, 0])
    row = torch.zeros(3, 1, 5, 5)
    row[0, ..., 0], row[1] = 1, np.nan
    row[2, ..., 4] = 1
    torch.testing.assert_close(mixer.settle(mix, row), torch.tensor([mix.lam.item()]*2 + [(mix.lam.item() + 1)/2]))


def test_a_patch_counts_by_its_pixels():
    mixer = TransMix('attention')
    mixer.found = find_attention(nn.ModuleDict({'attention': nn.Identity()}), 'attention')
    mix = Paste([(0, 3), (0, 3)], (8, 8), [1, 0]) # 9 of 16 pixels of the first patch
    row = torch.zeros(2, 1, 5, 5)
    row[..., 1] = 1
    torch.testing.assert_close(mixer.settle(mix, row), torch.full((2,), (1 - 9/64 + 7/16)/2))


@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_it_keeps_what_a_mixer_promises(per):
    for size in (20, 30), (1, 7), (8, 8): check_mixer(TransMix(per=per), size, draws=5)
    check_mixer(TransMix(per=per, beside=True), draws=3)
    for size in (20,), (4, 6, 8):
        with pytest.raises(ValueError, match='TransMix mixes places.*2 spatial'): check_mixer(TransMix(), size, draws=1)


def test_the_law_of_the_share():
    "CutMix's: .68 on average at alpha 1"
    rng, batch = mix_rng(0), Batch((torch.zeros(2, 3, 64, 64),))
    shares = [TransMix().draw_mix(batch, rng).lam.item() for _ in range(3000)]
    assert np.mean(shares) == pytest.approx(.684, abs=4*np.std(shares)/3000**.5)


def test_nothing_is_read_off_the_device(vit):
    "Torch's meta device has no data, so reading it raises"
    x, y = gpu.batch('meta', (4, 3, 8, 12), torch.float32)
    for per in 'batch', 'sample':
        learn = peers.learner(x, y, TransMix(per=per), nn.CrossEntropyLoss(), vit(in_chans=3, num_classes=peers.CLASSES).to('meta'))
        step = gpu.training_step(learn, x, y)
        for _ in range(2): assert step().shape == ()


def test_as_vision_learner_makes_them():
    pytest.importorskip('timm')
    items = [(torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i)), i % 2) for i in range(4)]
    dls = DataLoaders(DataLoader(items, bs=2), DataLoader([], bs=2))
    learn = vision_learner(dls, 'vit_tiny_patch16_224', n_out=2, normalize=False, pretrained=False, loss_func=nn.CrossEntropyLoss(), cbs=TransMix(seed=0))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    mix = learn.trans_mix.mix
    assert mix.weights.shape == (2, 2) and (mix.weights[0] != mix.lam).any() and not hooks(learn.model)


@pytest.mark.cuda
@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_the_host_never_waits(vit, per):
    x, y = gpu.batch('cuda', (4, 3, 8, 12), torch.float32)
    step = gpu.training_step(peers.learner(x, y, TransMix(per=per), nn.CrossEntropyLoss(), vit(in_chans=3, num_classes=peers.CLASSES).cuda()), x, y)
    for _ in range(3): step()
    for _ in range(3): step(lambda: gpu.no_waiting('cuda'))
