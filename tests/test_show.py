"""The pictures show what is trained on, and leave no trace."""
import copy
import random
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import fastai
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp as FastaiMixUp
from fastai.data.block import CategoryBlock, DataBlock, MultiCategoryBlock, RegressionBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import ColReader, IndexSplitter, Normalize, RandomSplitter, get_image_files
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat
from fastai.tabular.core import Categorify, FillMissing
from fastai.tabular.core import Normalize as NormalizeColumns
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from fastai.tabular.model import TabularModel
from fastai.text.core import BaseTokenizer
from fastai.text.data import TextBlock
from fastai.text.learner import text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
from fastai.torch_core import TensorImage, get_random_states
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImageBW, TensorBBox, TensorPoint
from fastai.vision.data import ImageBlock, MaskBlock
from helpers import learner
from helpers import loaders as two_loaders
from scipy.stats import beta
from torch import nn

from fastmix.all import Batch, Blend, CutMix, ManifoldMixUp, Mask, MixChoice, Mixer, MixUp, Paste, Remix, draw_lam, mix_rng
from fastmix.show import hardly_mixed, label_of, mix_title, plot_lam, show_mix, show_mixers, untouched


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close('all')


def loaders(*data, bs=8, n_inp=None):
    "Loaders that give the first 8 samples in their order, and have no transforms to undo"
    dls = DataLoaders(*[DataLoader(list(zip(*data)), bs=bs)]*2)
    if n_inp: dls.n_inp = n_inp
    return dls


def images(n=8, c=3, size=(6, 4)): return torch.rand(n, c, *size, generator=torch.Generator().manual_seed(0))


def drawn_mix(mixer, x, *y): return mixer.draw_mix(Batch((x,), y), mix_rng(mixer.seed))


def pixels(ax, i=0): return np.asarray(ax.images[i].get_array())


def as_shown(image): return image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()


def rectangle(ax):
    "First row and column of the border drawn on `ax`, and one past the last"
    patch, = ax.patches
    (left, top), right, bottom = patch.get_xy(), patch.get_x() + patch.get_width(), patch.get_y() + patch.get_height()
    return [[top+.5, bottom+.5], [left+.5, right+.5]]


def bar(ax):
    "The lengths of the bar under `ax`"
    inset, = ax.child_axes
    return [patch.get_width() for patch in inset.patches]


def cells(ax):
    "The text of the table on `ax`, row by row"
    table, = ax.tables
    found = table.get_celld()
    return [[found[r, c].get_text().get_text() for c in range(1 + max(c for _, c in found))] for r in range(1 + max(r for r, _ in found))]


numbers = torch.arange(8)


# What is shown is what is trained on

@pytest.mark.parametrize('mixer', [MixUp(seed=1), CutMix(seed=1), CutMix(per='sample', seed=1), MixUp(per='batch', seed=1)], ids=repr)
@pytest.mark.parametrize('c', [1, 3])
def test_the_picture_and_the_title_are_those_of_the_mix(mixer, c):
    x = images(c=c)
    axes, mix = show_mix(loaders(x, numbers), mixer), drawn_mix(mixer, x)
    assert axes.shape == (8,)
    for i, (ax, lam, image) in enumerate(zip(axes, mix.lam.expand(8).tolist(), mix(x))):
        np.testing.assert_allclose(pixels(ax), as_shown(image), atol=1e-6)
        assert ax.get_title().replace('\n', ' ') == mix_title(lam, str(i), str(mix.partner[i].item()))
        assert not ax.child_axes and not ax.patches


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('stretch', [False, True], ids=['from 0 to 1', 'normalised'])
def test_any_dtype_and_range(dtype, stretch):
    x = images().to(dtype)
    if stretch: x = (x - .5)*7
    axes, low, high = show_mix(loaders(x, numbers), CutMix(seed=1)), *(x.float().min(), x.float().max())
    expected = drawn_mix(CutMix(seed=1), x)(x).float()
    if stretch: expected = (expected - low)/(high - low)
    for ax, image in zip(axes, expected): np.testing.assert_allclose(pixels(ax), as_shown(image), atol=2e-3)


def test_images_without_contrast():
    for value in 0., 5., -5.: assert np.isfinite(pixels(show_mix(loaders(torch.full((8, 3, 4, 4), value), numbers), MixUp())[0])).all()


@pytest.mark.parametrize('c, shown', [(2, 1), (4, 3), (7, 3)])
def test_other_numbers_of_channels(c, shown):
    x = images(c=c)
    np.testing.assert_allclose(pixels(show_mix(loaders(x, numbers), CutMix(seed=1))[0]), as_shown(drawn_mix(CutMix(seed=1), x)(x)[0, :shown]), atol=1e-6)


@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_sources_stand_beside_the_mix_with_a_bar_and_the_border(per):
    x, mixer = images(size=(20, 30)), CutMix(per=per, seed=2)
    mix, axes = drawn_mix(mixer, x), show_mix(loaders(x, numbers), mixer, max_n=8, sources=True)
    assert axes.shape == (8, 3)
    for i, (own, partner, mixed) in enumerate(axes):
        j = mix.partner[i].item()
        for ax, image in zip((own, partner, mixed), (x[i], x[j], mix(x)[i])): np.testing.assert_allclose(pixels(ax), as_shown(image), atol=1e-6)
        lam = mix.lam.expand(8)[i].item()
        assert tuple(ax.get_title().replace('\n', ' ') for ax in (own, partner, mixed)) == (f'own: {i}', f'partner: {j}', mix_title(lam, str(i), str(j)))
        np.testing.assert_allclose(bar(mixed), [lam, 1-lam], atol=1e-6)
        region = mix.region[i if per == 'sample' else 0]
        if np.ptp(region, 1).min():
            assert rectangle(partner) == rectangle(mixed) == region.tolist() and not own.patches


def test_no_border_where_nothing_is_pasted():
    class Nothing(Mixer):
        def draw(self, batch, lam, rng): return Paste([[2, 2], [0, 3]], batch.size, np.roll(np.arange(batch.n), 1))
    axes = show_mix(loaders(images(), numbers), Nothing(), sources=True)
    assert axes.shape == (4, 3) and not any(ax.patches for ax in axes.flat)
    assert bar(axes[0, 2]) == [1, 0]


def test_blends_have_no_border():
    axes = show_mix(loaders(images(), numbers), MixUp(), sources=True, max_n=1)
    assert not any(ax.patches for ax in axes.flat)


def grey_digits(batch_tfms=()):
    "Grey photographs, which are not as dark and as bright as can be"
    photos = (images(12, c=1, size=(9, 9))[:, 0]*128 + 60).byte().numpy()
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_x=lambda i: photos[i], get_y=lambda i: 'ab'[i % 2],
                      splitter=IndexSplitter(range(4)), batch_tfms=[*batch_tfms])
    return block.dataloaders(range(12), bs=8, num_workers=0, shuffle=False)


@pytest.mark.parametrize('batch_tfms', [[], [Normalize.from_stats([.5], [.25])], [Normalize()]], ids=['as they are', 'normalised', 'by the batch'])
def test_grey_images_are_drawn_as_fastai_draws_them(batch_tfms):
    dls = grey_digits(batch_tfms)
    with untouched(dls.train): dls.show_batch(max_n=4)
    theirs = [ax.images[0] for ax in plt.gcf().axes[:4]]
    for ours in show_mix(dls, MixUp(), lam=1, max_n=4), [row[0] for row in show_mix(dls, CutMix(), sources=True)]:
        for ax, image in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(pixels(ax), image.get_array(), atol=1)
            assert ax.images[0].get_cmap().name == image.get_cmap().name == 'Greys'
            assert ax.images[0].get_clim() == (0, 255), 'the scale is not one for all'


class Heat(TensorImage):
    _show_args = dict(cmap='hot', interpolation='bilinear')


class Framed(TensorImage):
    def show(self, ctx=None, **kwargs):
        super().show(ctx=ctx, **kwargs)
        ctx.axhline(1)


def test_a_type_has_its_own_way_of_drawing():
    x = images(c=1)
    ax = show_mix(loaders([Heat(image) for image in x], numbers), CutMix(seed=1))[0]
    assert (ax.images[0].get_cmap().name, ax.images[0].get_interpolation()) == ('hot', 'bilinear')
    np.testing.assert_allclose(pixels(ax), drawn_mix(CutMix(seed=1), x)(x)[0, 0], atol=1e-6)
    for ax in show_mix(loaders([Framed(image) for image in x], numbers), MixUp(), sources=True).flat: assert len(ax.lines) == 1


# Several partners, several mixes, another source

def three(batch, lam, rng):
    return Blend(rng.dirichlet([2, 2, 2], len(lam)).T, [np.roll(np.arange(batch.n), -shift) for shift in (1, 3)])


class Three(Mixer):
    def draw(self, batch, lam, rng): return three(batch, lam, rng)


@pytest.mark.parametrize('per', ['sample', 'batch'])
def test_all_partners_are_named_and_shown(per):
    x, mixer = images(), Three(per=per, seed=1)
    mix, axes = drawn_mix(mixer, x), show_mix(loaders(x, numbers), mixer, sources=True)
    assert axes.shape == (4, 4)
    for i, row in enumerate(axes):
        samples, shares = [i, (i+1) % 8, (i+3) % 8], mix.shares.expand(3, 8)[:, i].tolist()
        for ax, image in zip(row, (*x[samples], mix(x)[i]), strict=True): np.testing.assert_allclose(pixels(ax), as_shown(image), atol=1e-6)
        titles = [ax.get_title().replace('\n', ' ') for ax in row]
        assert titles[:3] == [f'own: {samples[0]}', f'partner 1: {samples[1]}', f'partner 2: {samples[2]}']
        assert titles[3] == ' + '.join(f'{share:.2f} {k}' for share, k in zip(shares, samples))
        np.testing.assert_allclose(bar(row[3]), shares, atol=1e-6)
        assert len({patch.get_facecolor() for patch in row[3].child_axes[0].patches}) == 3
    assert axes[0, 3].get_title().replace('\n', ' ') == show_mix(loaders(x, numbers), mixer)[0].get_title().replace('\n', ' ')
    assert show_mixers(loaders(x, numbers), {'three': mixer}).shape == (1, 5)


def test_the_title_of_numbers_sums_over_all_partners():
    x, y = images(), torch.rand(8)
    title = show_mix(loaders(x, y), Three(seed=1), max_n=1)[0].get_title().replace('\n', ' ')
    found = [float(word) for word in title.split() if word[0].isdigit()]
    assert title.count('×') == 3 and abs(sum(a*b for a, b in zip(found[:6:2], found[1:6:2])) - found[6]) < .02


def test_masks_of_several_partners_are_averaged():
    x, y = scenes()
    own, *others, mixed = show_mix(loaders(x, y), Three(seed=1), sources=True)[1]
    shares = drawn_mix(Three(seed=1), x).shares[:, 0].tolist()
    expected = sum(share*pixels(ax, 1) for share, ax in zip(shares, (own, *others)))
    np.testing.assert_allclose(pixels(mixed, 1), expected, atol=1e-5)


def test_a_table_lists_all_partners():
    class Inside(ManifoldMixUp):
        def draw(self, batch, lam, rng): return three(batch, lam, rng)
    people = pd.DataFrame(dict(job=['baker', 'nurse', 'pilot', 'clerk']*6, age=np.arange(24.), fine=['yes', 'no']*12))
    dls = TabularDataLoaders.from_df(people, procs=[Categorify, NormalizeColumns], cat_names=['job'], cont_names=['age'], y_names='fine', y_block=CategoryBlock(), bs=16, valid_idx=range(8))
    ax, = tabular_learner(dls, layers=[4], cbs=Inside(seed=1)).show_mix(max_n=2)
    rows = cells(ax)[1:]
    assert [row[0].rsplit(' ', 1)[0] for row in rows] == ['own', 'partner 1', 'partner 2']*2
    assert all(abs(sum(float(row[0].split()[-1]) for row in rows[i:i+3]) - 1) < .02 for i in (0, 3))
    assert rows[1][1:] == rows[3][1:], 'the first partner of the first sample is the second one'
    colours = [ax.tables[0][r, 0].get_facecolor() for r in range(1, 7)]
    assert colours[:3] == colours[3:] and len(set(colours)) == 3


def test_of_several_mixes_the_first_real_one_is_shown():
    x = images()
    axes, mix = show_mix(loaders(x, numbers), CutMix(seed=1, beside=True)), drawn_mix(CutMix(seed=1), x)
    for ax, image in zip(axes, mix(x)): np.testing.assert_allclose(pixels(ax), as_shown(image), atol=1e-6)
    assert axes[0].get_title().replace('\n', ' ') == mix_title(mix.lam, '0', str(mix.partner[0].item()))


def test_partners_are_shown_from_their_source():
    x, names = images(), numbers + 10
    class Other(Mixer):
        def draw(self, batch, lam, rng):
            batch.source = Batch((1-batch.x,), (names,))
            return Blend(lam, [3]*8)
    for i, (own, partner, mixed) in enumerate(show_mix(loaders(x, numbers), Other(seed=1), lam=.25, sources=True)):
        np.testing.assert_allclose(pixels(partner), as_shown(1-x[3]), atol=1e-6)
        np.testing.assert_allclose(pixels(mixed), as_shown(.25*x[i] + .75*(1-x[3])), atol=1e-6)
        assert partner.get_title() == 'partner: 13' and mixed.get_title().replace('\n', ' ') == f'0.25 {i} + 0.75 13'


# A share of one's choice

@pytest.mark.parametrize('mixer', [MixUp(seed=1), CutMix(seed=1), MixChoice(MixUp(), CutMix(), seed=1), ManifoldMixUp(['1'], seed=1)], ids=lambda mixer: type(mixer).__name__)
def test_a_share_of_ones_choice(mixer):
    dls = loaders(images(size=(20, 30)), numbers)
    for lam in 0, .4, 1:
        shown = {float(ax.get_title().replace('\n', ' ').split()[0]) for ax in show_mix(dls, mixer, lam=lam, sources=True)[:, -1]}
        assert shown == {lam} if type(mixer) in (MixUp, ManifoldMixUp) else min(shown) >= lam - .02


def test_partners_are_the_same_for_every_share():
    for mixer in MixUp(seed=1), CutMix(seed=1), MixChoice(MixUp(), CutMix(), seed=2):
        shown = [show_mix(loaders(images(size=(20, 30)), numbers), mixer, lam=lam, sources=True) for lam in (.3, .7)]
        assert len({tuple(ax.get_title() for ax in axes[:, 1]) for axes in shown}) == 1


def test_a_learner_shows_a_share_of_ones_choice():
    assert all(ax.get_title().startswith('0.60 ') for ax in learner(MixUp(seed=1)).show_mix(lam=.6))
    for lam, error in (1.5, ValueError), (-.1, ValueError), ('a', TypeError), (True, TypeError):
        with pytest.raises(error, match=re.escape(f'`lam` must be a number from 0 to 1; got {lam!r}')): learner(MixUp()).show_mix(lam=lam)


@pytest.mark.parametrize('lam, title', [(.997, '0.997 a + 0.003 b'), (.9996, '0.9996 a + 0.0004 b'), (.9951, '0.995 a + 0.005 b'), (.004, '0.004 a + 0.996 b'), (1, '1.00 a + 0.00 b'),
                                        (0., '0.00 a + 1.00 b'), (.994, '0.99 a + 0.01 b'), (.6, '0.60 a + 0.40 b'), (1-1e-9, '1.00 a + 0.00 b')])
def test_a_title_never_says_that_nothing_is_mixed_where_something_is(lam, title):
    assert mix_title(lam, 'a', 'b') == mix_title(torch.tensor([lam]), 'a', 'b') == title


def test_titles_of_several():
    shares = .5, .3, .2
    for lam in shares, [*shares], np.array(shares), torch.tensor(shares), shares[:2]: assert mix_title(lam, 'a', 'b', 'c') == '0.50 a + 0.30 b + 0.20 c'
    assert mix_title([.5, .498, .002], 'a', 'b', 'c') == '0.500 a + 0.498 b + 0.002 c'
    for lam in .5, [.5]*4:
        with pytest.raises(ValueError, match='a share for each of 3 names'): mix_title(lam, 'a', 'b', 'c')


# What comes next

def test_show_batch_is_the_mixed_batch_where_there_is_a_mixer():
    learn = learner(CutMix(seed=1))
    for kwargs in dict(), dict(max_n=2, sources=True):
        plt.close('all')
        assert learn.show_batch(**kwargs) is None, 'as fastai shows a batch'
        drawn = [ax for ax in plt.gcf().axes if ax.images]
        for a, b in zip(drawn, [ax for ax in learn.show_mix(**kwargs).flat if ax.images], strict=True):
            np.testing.assert_array_equal(pixels(a), pixels(b))
            assert a.get_title() == b.get_title()


def test_show_batch_is_the_loaders_own_where_there_is_none():
    learn = Learner(grey_digits(), deep(), loss_func=nn.CrossEntropyLoss())
    def shown(show, **kwargs):
        with untouched(learn.dls.train): assert show(**kwargs) is None
        return [(ax.get_title(), pixels(ax).tolist()) for ax in plt.gcf().axes if ax.images]
    for kwargs in dict(), dict(max_n=3), dict(nrows=1, max_n=2): assert shown(learn.show_batch, **kwargs) == shown(learn.dls.show_batch, **kwargs)
    learn.dls.show_batch = lambda **kwargs: kwargs
    assert learn.show_batch() == {} and learn.show_batch(max_n=3, nrows=1) == dict(max_n=3, nrows=1)


def test_a_vocab_names_what_a_plain_loader_numbers():
    x, names = images(), [f'kind {i}' for i in range(8)]
    axes = show_mix(loaders(x, numbers), CutMix(seed=1), vocab=names, max_n=3)
    plain = show_mix(loaders(x, numbers), CutMix(seed=1), max_n=3)
    for ax, other in zip(axes, plain):
        share, own, _, rest, partner = other.get_title().replace('\n', ' ').split()
        assert ax.get_title().replace('\n', ' ') == f'{share} kind {own} + {rest} kind {partner}'
    hot = torch.eye(8)[:, torch.arange(8)] + torch.eye(8).roll(1, 1)
    assert ' kind 0;kind 1 + ' in show_mix(loaders(x, hot), CutMix(seed=1), vocab=names, max_n=1)[0].get_title().replace('\n', ' ')
    figure = show_mixers(loaders(x, numbers), {'CutMix': CutMix()}, vocab=names, lams=[.5])[0, 0].figure
    assert figure._suptitle.get_text().startswith('λ kind ')


def test_fastai_has_no_show_batch_that_is_replaced():
    sources = [path.read_text() for path in Path(fastai.__file__).parent.rglob('*.py')]
    assert not any(re.search(r'def show_batch\(\s*self\s*:\s*Learner', text) for text in sources)
    assert 'def show_batch' not in (Path(fastai.__file__).parent/'learner.py').read_text()


@pytest.mark.parametrize('show', ['show_mix', 'show_batch'])
def test_a_mixer_of_fastai_is_named(show):
    learn = Learner(loaders(images(), numbers % 3), deep(), loss_func=nn.CrossEntropyLoss(), cbs=FastaiMixUp())
    with pytest.raises(TypeError, match=r'the MixUp of this learner is fastai\.callback\.mixup\.MixUp.*import fastmix last'): getattr(learn, show)()
    assert learn.show_mix(mixer=MixUp()).shape == (8,)


# Labels

def drawn_without_a_word(axes):
    "Draw the figure of `axes`: nothing is warned of"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        axes[0].figure.canvas.draw()


class Named(DataLoader):
    "A loader that decodes class numbers to names"
    def decode_batch(self, batch, max_n):
        return [(x, self.names[y]) for x, y in zip(batch[0][:max_n], batch[1][:max_n].tolist())]


def named(*names, n=8):
    dls = DataLoaders(*[Named([(image, torch.tensor(i % len(names))) for i, image in enumerate(images(n))], bs=n)]*2)
    dls.train.names = names
    return dls


@pytest.mark.parametrize('names', [['W'*40, 'soft_coated_wheaten_terrier_of_the_hills'], ['金色の猟犬'*8, '猫'], ['$a$', '$\\frac{'], ['a very long name, '*20, 'j']], ids=['letters', 'Chinese', 'dollars', 'very long'])
@pytest.mark.parametrize('sources', [False, True])
def test_no_name_makes_the_title_small_or_wide_or_noisy(names, sources):
    dls, mixer = named(*names), MixUp(seed=3)
    for axes in show_mix(dls, mixer, sources=sources), show_mix(dls, mixer, sources=sources, max_n=2, figsize=(5, 2)):
        drawn_without_a_word(axes.ravel())
        titles = [ax.title for ax in axes.flat]
        assert len({text.get_fontsize() for text in titles}) == 1 and titles[0].get_fontsize() >= 7
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            boxes = [text.get_window_extent() for text in titles]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert not any(text.get_parse_math() for text in titles)
        assert all(re.match(r'0\.\d\d', text.get_text()) for text in (titles[2::3] if sources else titles))
    axes = show_mixers(dls, {names[0]: mixer}, lams=(.3, .6))
    drawn_without_a_word(axes.ravel())
    assert axes[0, 0].figure.get_suptitle().count('λ') == 2


def test_a_short_name_in_any_script_stays():
    assert show_mix(named('猫', '犬'), MixUp(seed=1), max_n=1)[0].get_title().replace('\n', ' ') == mix_title(drawn_mix(MixUp(seed=1), images()).lam[0], '猫', '犬')


def test_a_warning_of_something_else_is_still_heard():
    ax = show_mix(named('猫', '犬'), MixUp(seed=1), max_n=1)[0]
    ax.set_xlabel('犬')
    ax.set_axis_on()
    with pytest.warns(UserWarning, match='missing from'): ax.figure.canvas.draw()


def test_names_in_a_table():
    dls = reviews(['猫 $a$ film', '犬']*8, ['$x$', '猫']*8)
    drawn_without_a_word(show_mix(dls, MixUp()))


def test_titles_fit_over_their_pictures():
    names = ['staffordshire_bull_terrier', 'wheaten_terrier']
    photos = (images(12, size=(9, 9))*255).byte().permute(0, 2, 3, 1).numpy()
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: photos[i], get_y=lambda i: names[i % 2], splitter=IndexSplitter(range(4)))
    axes = show_mix(block.dataloaders(range(12), bs=8, num_workers=0), CutMix(), sources=True, max_n=2)
    figure = axes[0, 0].figure
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in axes[0]]
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:])) and boxes[0].x0 >= 0 and boxes[2].x1 <= figure.bbox.x1
    assert axes[0, 0].title.get_fontsize() > 7 and '\n' in axes[0, 0].get_title()


def test_names():
    assert label_of(['cat']) == 'cat' and label_of([['cat', 'dog']]) == 'cat;dog' and label_of([[]]) == 'none'
    assert label_of([]) == label_of([torch.zeros(4, 4)]) == ''
    assert label_of([torch.zeros(4, 4), torch.tensor(3)]) == '3'
    assert label_of([torch.tensor([0, 1, 0, 1])]) == '1;3' and label_of([torch.tensor([.5, .25, 0, 1])]) == '0.5;0.25;0;…'


@pytest.mark.parametrize('y', [torch.rand(8), torch.rand(8, 1), torch.rand(8, 2), torch.rand(8, dtype=torch.float64)], ids=lambda y: f'{y.dtype} {tuple(y.shape)}')
def test_the_title_of_numbers_says_what_comes_of_them(y):
    x, mixer = images(), MixUp(seed=1)
    mix, axes = drawn_mix(mixer, x), show_mix(loaders(x, y), MixUp(seed=1))
    for i, (ax, mixed) in enumerate(zip(axes, mix(y))):
        name = [label_of([t]) for t in (y[i], y[mix.partner[i]], mixed)]
        lam = mix.lam[i].item()
        assert ax.get_title().replace('\n', ' ') == f"{mix_title(lam, f'× {name[0]}', f'× {name[1]}')} = {name[2]}"


def hot(t): return ';'.join(str(k) for k in t.nonzero().flatten().tolist()) or 'none'


def plain_titles(x, y, mixer): return [ax.get_title().replace('\n', ' ') for ax in show_mix(loaders(x, y), mixer)]


def test_several_labels():
    x, y = images(), (torch.rand(8, 5) < .4).float()
    mix = drawn_mix(MixUp(seed=1), x)
    for i, title in enumerate(plain_titles(x, y, MixUp(seed=1))): assert title == mix_title(mix.lam[i].item(), hot(y[i]), hot(y[mix.partner[i]]))


@pytest.mark.parametrize('targets', ['keep', 'union'])
def test_the_title_says_what_has_become_of_several_labels(targets):
    x, y = images(), (torch.rand(8, 5) < .4).float()
    mix = drawn_mix(MixUp(seed=1), x)
    own, partner = (mix.shares[:, :, None] >= .05) | (targets == 'keep')
    became = y if targets == 'keep' else torch.maximum(y*own, mix.others(y)*partner)
    for i, title in enumerate(plain_titles(x, y, MixUp(seed=1, targets=targets))):
        assert title == f'{mix_title(mix.lam[i].item(), hot(y[i]), hot(mix.others(y)[i]))} → {hot(became[i])}'


@pytest.mark.parametrize('mixer, soft', [(Remix(counts=[9, 1], seed=1), False), (CutMix(nominal=True, seed=1), False), (CutMix(nominal=True, seed=1), True)],
                         ids=['Remix', 'nominal', 'nominal, soft labels'])
def test_the_title_says_how_much_each_label_counts_where_the_shares_do_not(mixer, soft):
    x, y = images(), torch.tensor([0]*4 + [1]*4)
    target = F.one_hot(y, 5).float() if soft else y
    mix, told = drawn_mix(copy.deepcopy(mixer), x, target), []
    for i, title in enumerate(plain_titles(x, target, mixer)):
        (share, weight), names = (o[0].expand(8)[i].item() for o in (mix.shares, mix.weights)), [str(k[i].item()) for k in (y, mix.others(y))]
        label = {0.: names[1], 1.: names[0]}.get(weight, mix_title(weight, *names))
        assert title == mix_title(share, *names) + (f' → {label}' if f'{share:.2f}' != f'{weight:.2f}' else '')
        told.append('→' in title)
    assert any(told)


def test_the_title_of_numbers_that_count_by_other_weights_than_the_shares():
    x, y = images(), torch.arange(8.)
    mix = drawn_mix(CutMix(nominal=True, seed=1), x, y)
    (share, weight), other = (o.flatten()[0].item() for o in (mix.shares, mix.weights)), mix.others(y)
    assert f'{share:.2f}' != f'{weight:.2f}'
    for i, title in enumerate(plain_titles(x, y, CutMix(nominal=True, seed=1))):
        a, b = (f'{t[i]:g}' for t in (y, other))
        total = weight*y[i] + (1 - weight)*other[i]
        assert title == f"{mix_title(share, a, b)} → {mix_title(weight, f'× {a}', f'× {b}')} = {total:.4g}"


def test_a_loader_s_own_names_and_colours():
    "fastai's transforms are undone: normalisation, and the codes of categories"
    photos = (images(12, size=(9, 9))*255).byte().permute(0, 2, 3, 1).numpy()
    def block(y, get_y, **kwargs):
        block = DataBlock((ImageBlock, y), get_x=lambda i: photos[i], get_y=get_y, splitter=IndexSplitter(range(4)), batch_tfms=Normalize.from_stats([.5]*3, [.2]*3))
        return block.dataloaders(range(12), bs=8, num_workers=0, **kwargs)
    dls = block(CategoryBlock, lambda i: 'ab'[i % 2])
    for own, partner, mixed in show_mix(dls, MixUp(), sources=True, max_n=8):
        found = next(i for i in range(12) if np.abs(pixels(own) - photos[i]/255).max() < .01)
        assert own.get_title().replace('\n', ' ') == f"own: {'ab'[found % 2]}"
    titles = [ax.get_title().replace('\n', ' ') for ax in show_mix(block(MultiCategoryBlock, lambda i: ['x', 'yz'[i % 2]]), MixUp())]
    assert all(part.split(maxsplit=1)[1] in ('x;y', 'x;z') for title in titles for part in title.split(' + '))
    titles = [ax.get_title().replace('\n', ' ') for ax in show_mix(block(RegressionBlock, lambda i: float(i)), MixUp())]
    for title in titles:
        a, x, b, y, total = (float(word) for word in title.split() if word[0].isdigit())
        assert abs(a*x + b*y - total) < .11


def test_a_dollar_is_a_dollar():
    dls = DataLoaders(*[DataLoader([(torch.rand(3, 4, 4), torch.tensor(0))]*8, bs=8)]*2)
    ax = show_mix(dls, MixUp(), max_n=1)[0]
    assert not ax.title.get_parse_math()


def test_long_titles_are_broken_before_they_are_shrunk():
    y = torch.ones(8, 12)
    axes = show_mix(loaders(images(), y), MixUp(), nrows=1, figsize=(4, 2))
    assert all('\n+ ' in ax.get_title() for ax in axes)
    assert len({ax.title.get_fontsize() for ax in axes}) == 1


# Masks

def scenes():
    x = images(size=(10, 12))
    return x, (x[:, 0]*7).long()


@pytest.mark.parametrize('extra', [False, True], ids=['(n, h, w)', '(n, 1, h, w)'])
def test_cutmix_shows_one_colour_in_every_pixel(extra):
    x, y = scenes()
    mix, axes = drawn_mix(CutMix(seed=3), x), show_mix(loaders(x, y[:, None] if extra else y), CutMix(seed=3), sources=True)
    assert mix.lam < 1
    colour = {}
    for i, row in enumerate(axes):
        for ax, classes in zip(row, (y[i], y[mix.partner[i]], mix(y)[i])):
            assert ax.images[1].get_alpha() == .5
            for c, found in zip(classes.flatten().tolist(), pixels(ax, 1).reshape(-1, 3)): assert colour.setdefault(c, tuple(found)) == tuple(found)
    assert len(set(colour.values())) == len(colour) == 7


def test_mixup_shows_the_colours_of_both_masks():
    x, y = scenes()
    mix, axes = drawn_mix(MixUp(seed=3), x), show_mix(loaders(x, y), MixUp(seed=3), sources=True)
    for i, (own, partner, mixed) in enumerate(axes):
        lam = mix.lam[i].item()
        np.testing.assert_allclose(pixels(mixed, 1), lam*pixels(own, 1) + (1-lam)*pixels(partner, 1), atol=1e-6)
    assert mixed.get_title().replace('\n', ' ') == mix_title(lam, '', '')


def test_a_label_that_counts_otherwise_has_other_colours():
    "The picture of masks shows the loss: there labels may count otherwise than samples are seen"
    class Own(Mixer):
        def draw(self, batch, lam, rng): return Blend(lam, np.roll(np.arange(batch.n), 1), weights=.9)
    x, y = scenes()
    own, partner, mixed = show_mix(loaders(x, y), Own(), lam=.5, sources=True)[0]
    np.testing.assert_allclose(pixels(mixed, 1), .9*pixels(own, 1) + .1*pixels(partner, 1), atol=1e-5)
    assert mixed.get_title() == '0.50 + 0.50'


@pytest.mark.parametrize('per', ['batch', 'sample'])
@pytest.mark.parametrize('grid', [(10, 12), (5, 6), (20, 24)], ids=str)
def test_a_mask_with_floating_weights_has_the_colours_of_each_place(per, grid):
    x, n = images(size=(10, 12)), 8 if per == 'sample' else 1
    weights = torch.rand(n, 10, 12, generator=torch.Generator().manual_seed(1))
    class Soft(Mixer):
        places = 2,
        def draw(self, batch, lam, rng): return Mask(weights, np.roll(np.arange(batch.n), 1))
    y = torch.randint(0, 4, (8, *grid), generator=torch.Generator().manual_seed(0))
    mix = Soft().draw(Batch((x,)), None, None)
    for i, row in enumerate(show_mix(loaders(x, y), Soft(), sources=True)):
        own, partner, mixed = (pixels(ax, 1) for ax in row)
        share = F.interpolate(mix.own_at(grid)[i if n > 1 else 0][None, None], (10, 12))[0, 0, ..., None].numpy()
        np.testing.assert_allclose(mixed, share*own + (1-share)*partner, atol=1e-5)
        np.testing.assert_allclose(pixels(row[2]), as_shown(mix(x)[i]), atol=1e-6)
        assert not any(ax.patches for ax in row), 'only what was pasted has a border'


def test_a_mask_that_chooses_has_one_colour_in_every_pixel_and_no_border():
    x, y = scenes()
    class Checkers(Mixer):
        places = 2,
        def draw(self, batch, lam, rng): return Mask(torch.arange(120).view(1, 10, 12) % 2 == 0, np.roll(np.arange(batch.n), 1))
    own, partner, mixed = show_mix(loaders(x, y), Checkers(), sources=True)[0]
    chosen = (np.arange(120).reshape(10, 12, 1) % 2 == 0)
    np.testing.assert_array_equal(pixels(mixed, 1), np.where(chosen, pixels(own, 1), pixels(partner, 1)))
    assert not mixed.patches and not partner.patches


@pytest.mark.parametrize('word', ['keep', 'weigh'])
def test_numbers_that_are_not_averaged_have_no_sum(word):
    title = show_mix(loaders(images(), torch.rand(8)), MixUp(targets=word), max_n=1)[0].get_title()
    assert '=' not in title and '×' not in title


def test_a_mask_and_a_class():
    x, y = scenes()
    dls = loaders(x, y, numbers, n_inp=1)
    ax = show_mix(dls, MixUp(seed=3), max_n=1)[0]
    assert len(ax.images) == 2 and ax.get_title().replace('\n', ' ').endswith(f' {drawn_mix(MixUp(seed=3), x).partner[0]}')


def test_many_classes_and_one_to_ignore():
    x, y = scenes()
    y[:, 0] = 255
    y[:, 1] = -100
    assert np.isfinite(pixels(show_mix(loaders(x, y), MixUp())[0], 1)).all()


# Targets that are images

@pytest.mark.parametrize('mixer', [MixUp(seed=4), CutMix(seed=4)], ids=repr)
@pytest.mark.parametrize('target', [lambda x: 1-x, lambda x: F.interpolate(x, scale_factor=2), lambda x: x[:, 0]], ids=['colours', 'larger', 'depth'])
def test_a_target_image_has_a_picture_of_its_own(mixer, target):
    x = images(size=(10, 12))
    y, mix = target(x), drawn_mix(mixer, x)
    axes = show_mix(loaders(x, y), mixer, max_n=3)
    assert axes.shape == (3, 2)
    expected = mix(y) if y.ndim == 4 else mix(y)[:, None]
    for i, (_, ax) in enumerate(axes): np.testing.assert_allclose(pixels(ax), as_shown(expected[i]), atol=1e-6)
    axes = show_mix(loaders(x, y), mixer, max_n=3, sources=True)
    assert axes.shape == (3, 6)
    if isinstance(mixer, CutMix):
        times = y.shape[-1]//12
        assert rectangle(axes[0, 2]) == mix.region[0].tolist() and rectangle(axes[0, 5]) == rectangle(axes[0, 4]) == (mix.region[0]*times).tolist()
    assert axes[0, 2].child_axes and not axes[0, 5].child_axes


# Signals, volumes, vectors

@pytest.mark.parametrize('c', [1, 3])
def test_signals_are_lines(c):
    x = images(c=c, size=(30,))
    mix, axes = drawn_mix(CutMix(seed=4), x), show_mix(loaders(x, numbers), CutMix(seed=4), sources=True)
    for i, row in enumerate(axes):
        for ax, signal in zip(row, (x[i], x[mix.partner[i]], mix(x)[i])):
            np.testing.assert_allclose([line.get_ydata() for line in ax.lines], signal.numpy(), atol=1e-6)
        for ax in row[1:]:
            span, = ax.patches
            np.testing.assert_allclose([span.get_x()+.5, span.get_x()+span.get_width()+.5], mix.region[0, 0])


def test_classes_along_a_signal_are_colours_behind_it():
    x = images(c=2, size=(30,))
    y = (x[:, 0]*3).long()
    mix, axes = drawn_mix(MixUp(seed=4), x), show_mix(loaders(x, y), MixUp(seed=4), sources=True)
    own, partner, mixed = axes[0]
    lam = mix.lam[0].item()
    np.testing.assert_allclose(pixels(mixed), lam*pixels(own) + (1-lam)*pixels(partner), atol=1e-6)
    assert pixels(own).shape == (1, 30, 3)


def test_vectors_are_lines():
    x = images(c=5)[..., 0, 0]
    mix, axes = drawn_mix(MixUp(seed=4), x), show_mix(loaders(x, numbers), MixUp(seed=4))
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), mix(x)[0], atol=1e-6)
    with pytest.raises(ValueError, match='Use MixUp'): show_mix(loaders(x, numbers), CutMix())


def test_flat_signals_are_drawn_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        show_mix(loaders(torch.full((8, 1, 20), 3.), numbers), MixUp())[0].figure.canvas.draw()


def test_volumes_are_cut_in_the_middle():
    x = images(c=1, size=(7, 5, 6))
    axes = show_mix(loaders(x, numbers), MixUp(seed=4))
    np.testing.assert_allclose(pixels(axes[0]), drawn_mix(MixUp(seed=4), x)(x)[0, 0, 3], atol=1e-6)


@pytest.mark.parametrize('per', ['batch', 'sample'])
def test_volumes_are_cut_through_what_was_pasted(per):
    x, mixer = images(c=3, size=(7, 8, 9)), CutMix(per=per, seed=4)
    mix, axes = drawn_mix(mixer, x), show_mix(loaders(x, (x[:, 0]*4).long()), mixer, max_n=8, sources=True)
    seen = 0
    for i, row in enumerate(axes):
        region = mix.region[i if per == 'sample' else 0]
        if not np.ptp(region, 1).min(): continue
        seen += 1
        k = sum(region[0])//2
        assert region[0, 0] <= k < region[0, 1]
        np.testing.assert_allclose(pixels(row[2]), as_shown(mix(x)[i, :, k]), atol=1e-6)
        assert rectangle(row[1]) == rectangle(row[2]) == region[1:].tolist()
        assert pixels(row[2], 1).shape == (8, 9, 3)
    assert seen


# Several inputs

def test_of_several_inputs_the_first_image_is_shown():
    x, other, vector = images(), images()*.5, torch.rand(8, 4)
    for inputs in (x, other), (vector, x), ((x, other), vector), (dict(a=vector, b=x),):
        dls = DataLoaders(*[DataLoader([(*[{k: v[i] for k, v in t.items()} if isinstance(t, dict) else tuple(u[i] for u in t) if isinstance(t, tuple) else t[i] for t in inputs],
                                        numbers[i]) for i in range(8)], bs=8)]*2)
        dls.n_inp = len(inputs)
        axes = show_mix(dls, MixUp(seed=1))
        np.testing.assert_allclose(pixels(axes[0]), as_shown(drawn_mix(MixUp(seed=1), x)(x)[0]), atol=1e-6)


def test_a_signal_beside_an_image_has_no_region():
    "The mix is one of images, and the signal, which is shown, is blended"
    axes = show_mix(loaders(images(c=2, size=(30,)), images(), numbers, n_inp=2), CutMix(seed=3), sources=True)
    assert axes[0, 0].lines and not any(ax.patches for ax in axes.flat)


def test_the_region_grows_with_the_picture():
    "The mix is drawn for the smallest image, and the first one, here the larger, is shown"
    x = images(size=(8, 12))
    large = F.interpolate(x, scale_factor=3)
    mix = drawn_mix(CutMix(seed=3), x)
    axes = show_mix(loaders(large, x, numbers, n_inp=2), CutMix(seed=3), sources=True)
    assert rectangle(axes[0, 2]) == (mix.region[0]*3).tolist()
    np.testing.assert_allclose(pixels(axes[0, 2]), as_shown(mix(large)[0]), atol=1e-6)


def test_no_target():
    x = images()
    axes = show_mix(DataLoaders(*[DataLoader([(t,) for t in x], bs=8)]*2), MixUp(seed=1))
    assert axes[0].get_title() == mix_title(drawn_mix(MixUp(seed=1), x).lam[0].item(), '', '')


# Inside the network

def deep(n=72): return nn.Sequential(nn.Flatten(), nn.Linear(n, 6), nn.Tanh(), nn.Linear(6, 3))


def test_inside_the_network_own_and_partner_are_shown_and_the_layer_is_named():
    x = images()
    mixer = ManifoldMixUp(['3'], seed=1)
    learn = Learner(loaders(x, numbers % 3), deep(), loss_func=nn.CrossEntropyLoss(), cbs=mixer)
    axes = learn.show_mix()
    assert axes.shape == (4, 3) and mixer.found is None
    rng = mix_rng(1)
    rng.integers(1)
    mix = mixer.draw_mix(Batch((x,)), rng)
    for i, (own, partner, mixed) in enumerate(axes):
        np.testing.assert_allclose(pixels(own), as_shown(x[i]), atol=1e-6)
        np.testing.assert_allclose(pixels(partner), as_shown(x[mix.partner[i]]), atol=1e-6)
        assert not mixed.images and mixed.texts[0].get_text().split() == "mixed at the input of '3'".split()
        np.testing.assert_allclose(bar(mixed), [lam := mix.lam.item(), 1-lam], atol=1e-6)
    assert 'inside the network' in show_mix(loaders(x, numbers), mixer)[0, 2].texts[0].get_text().replace('\n', ' ')


def test_the_input_may_be_the_layer():
    x = images()
    learn = Learner(loaders(x, numbers % 3), deep(), loss_func=nn.CrossEntropyLoss(), cbs=ManifoldMixUp('input', seed=1))
    assert learn.show_mix().shape == (8,)


def test_layers_that_are_not_there():
    learn = Learner(loaders(images(), numbers), deep(), loss_func=nn.CrossEntropyLoss(), cbs=ManifoldMixUp('7'))
    with pytest.raises(ValueError, match="no layer '7'"): learn.show_mix()
    learn = Learner(loaders(images(), numbers), deep(), loss_func=nn.CrossEntropyLoss(), cbs=ManifoldMixUp())
    with pytest.raises(ValueError, match='Name them'): learn.show_mix()


def test_a_target_image_is_mixed_where_the_input_is_not():
    x = images()
    learn = Learner(loaders(x, 1-x), nn.Conv2d(3, 3, 1), loss_func=nn.MSELoss(), cbs=ManifoldMixUp([nn.Conv2d], seed=1))
    learn.model = nn.Sequential(nn.Identity(), learn.model)
    axes = learn.show_mix()
    assert axes.shape == (4, 6) and not axes[0, 2].images
    own, partner, mixed = (pixels(ax) for ax in axes[0, 3:])
    lam = bar(axes[0, 2])[0]
    np.testing.assert_allclose(mixed, lam*own + (1-lam)*partner, atol=1e-5)


def test_rows_of_a_table():
    people = pd.DataFrame(dict(job=['baker', 'nurse', 'pilot', 'clerk']*6, age=np.arange(24.)*3 + 20, worth=np.arange(24)*1001, fine=['yes', 'no']*12))
    for y, block in (('fine', CategoryBlock()), ('worth', RegressionBlock())):
        dls = TabularDataLoaders.from_df(people, procs=[Categorify, NormalizeColumns], cat_names=['job'], cont_names=['age'], y_names=y, y_block=block, bs=16, valid_idx=range(8))
        learn = tabular_learner(dls, layers=[4], cbs=MixUp(seed=1))
        ax, = learn.show_mix(max_n=5)
        heading, *rows = cells(ax)
        assert heading == ['', 'job', 'age', y] and len(rows) == 10 and ax.get_title() == "mixed at the input of 'layers'"
        known = {(row.job, f'{row.age:.6g}', str(row[y])) for _, row in people.iterrows()}
        for (own, *a), (partner, *b) in zip(rows[::2], rows[1::2]):
            assert own.split()[0] == 'own' and partner.split()[0] == 'partner' and abs(float(own.split()[1]) + float(partner.split()[1]) - 1) < .011
            assert {(*a[:2], a[2].split('.')[0]), (*b[:2], b[2].split('.')[0])} <= known
        assert show_mix(dls, MixUp())[0].get_title() == 'mixed inside the network'
        with pytest.raises(TypeError, match='category codes'): show_mix(dls, CutMix())


def test_shares_and_rows_are_those_of_the_fit():
    people = pd.DataFrame(dict(job=['baker', 'nurse', 'pilot', 'clerk']*6, age=np.arange(24.), fine=['yes', 'no']*12))
    dls = TabularDataLoaders.from_df(people, procs=[Categorify, NormalizeColumns], cat_names=['job'], cont_names=['age'], y_names='fine', y_block=CategoryBlock(), bs=16, valid_idx=range(8))
    learn = tabular_learner(dls, layers=[4], cbs=MixUp(seed=1))
    rows = cells(learn.show_mix(max_n=16)[0])[1:]
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    mix = learn.mix_up.mix
    assert [row[0] for row in rows[::2]] == ['own ' + mix_title(lam, '', '').split()[0] for lam in mix.lam.tolist()]
    assert [row[1:] for row in rows[1::2]] == [rows[2*j][1:] for j in mix.partner]


def test_codes_without_a_table_are_shown_as_they_are():
    codes, values = torch.randint(0, 4, (8, 2)), torch.rand(8, 2)
    learn = Learner(loaders(codes, values, numbers % 3, n_inp=2), TabularModel([(5, 4), (4, 3)], 2, 3, [8]), loss_func=nn.CrossEntropyLoss(), cbs=MixUp())
    heading, *rows = cells(learn.show_mix()[0])
    assert heading == ['', 'input', 'input', 'label'] and len(rows) == 8
    assert rows[0][1:] == [' '.join(map(str, codes[0].tolist())), ' '.join(f'{v:.6g}' for v in values[0].tolist()), '0']


def reviews(texts, opinions, **kwargs):
    table = pd.DataFrame(dict(text=texts, opinion=opinions))
    block = DataBlock((TextBlock.from_df('text', tok=BaseTokenizer(), n_workers=1, min_freq=1, seq_len=4), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('opinion'),
                      splitter=IndexSplitter(range(4)))
    return block.dataloaders(table, bs=8, num_workers=0)


def test_texts_are_cut_short_and_both_labels_stand_beside_them():
    long = 'costs $5 or $6 ' * 30
    dls = reviews(['a good film', long]*8, ['good', 'bad']*8)
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=8, n_layers=1)
    learn = text_classifier_learner(dls, AWD_LSTM, seq_len=4, config=config, pretrained=False, cbs=MixUp(seed=1))
    ax, = learn.show_mix()
    heading, *rows = cells(ax)
    assert heading == ['', 'text', 'label'] and ax.get_title() == "mixed at the input of '1.layers'"
    assert len(rows) == 8 and {row[2] for row in rows} == {'good', 'bad'}
    assert {row[1] for row in rows} == {'xxbos a good film', ('xxbos ' + long)[:109] + '…'}
    ax.figure.canvas.draw()


# Without a trace

def everything(dls, mixer):
    return (copy.deepcopy(get_random_states()['torch_state']), np.random.get_state()[1].tolist(), random.getstate(), dls.train.rng.getstate(),
            mixer.rng and copy.deepcopy(mixer.rng.bit_generator.state), {k: id(v) for k, v in vars(mixer).items()})


def same(a, b): return torch.equal(a[0], b[0]) and a[1:] == b[1:]


@pytest.mark.parametrize('seed', [None, 7])
@pytest.mark.parametrize('used', [False, True], ids=['fresh', 'in use'])
@pytest.mark.parametrize('make', [MixUp, CutMix, lambda: ManifoldMixUp(['1']), lambda: MixChoice(MixUp(), CutMix(), ManifoldMixUp(['1']))], ids=['MixUp', 'CutMix', 'ManifoldMixUp', 'MixChoice'])
def test_nothing_in_the_learner_or_any_generator_changes(make, used, seed):
    photos = (images(24, size=(9, 9))*255).byte().permute(0, 2, 3, 1).numpy()
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda i: photos[i], get_y=lambda i: 'ab'[i % 2], splitter=RandomSplitter(seed=0),
                      batch_tfms=[*aug_transforms(size=8), Normalize.from_stats([.5]*3, [.2]*3)])
    dls = block.dataloaders(range(24), bs=8, num_workers=0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*8*8, 4), nn.Dropout(.5), nn.Linear(4, 2))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), cbs=make(), lr=.1)
    mixer = learn.cbs[-1] if isinstance(learn.cbs[-1], Mixer) else next(cb for cb in learn.cbs if isinstance(cb, Mixer))
    if used:
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    held, weights = {k: id(v) for k, v in vars(learn).items()}, copy.deepcopy(model.state_dict())
    before = everything(dls, mixer)
    learn.show_mix(max_n=1, seed=seed)
    show_mix(dls, mixer, max_n=1, seed=seed, sources=True)
    if type(mixer) in (MixUp, CutMix): show_mixers(dls, {'own': mixer}, lams=[.3], seed=seed)
    assert same(before, everything(dls, mixer))
    assert held == {k: id(v) for k, v in vars(learn).items()} and learn.model.training == model.training
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values())) and not any(m._forward_pre_hooks for m in model.modules())


def test_nothing_changes_where_the_picture_fails():
    dls, mixer = loaders(torch.rand(8, 9), numbers), CutMix(seed=1)
    before = everything(dls, mixer)
    with pytest.raises(ValueError): show_mix(dls, mixer)
    assert same(before, everything(dls, mixer))


def test_the_batch_is_not_written_to():
    x, y = scenes()
    whole = copy.deepcopy((x, y))
    for mixer in MixUp(), CutMix(per='sample'): show_mix(loaders(x, y), mixer, sources=True)
    assert torch.equal(x, whole[0]) and torch.equal(y, whole[1])


@pytest.mark.parametrize('loss, shape', [(nn.CrossEntropyLoss(), (8,)), (lambda pred, y: F.cross_entropy(pred, y).sqrt(), (1,))], ids=['weighted', 'a closure'])
def test_the_shares_are_those_that_the_loss_allows(loss, shape):
    "A loss that is one number gets one λ for the batch: so does its picture"
    learn = learner(MixUp(seed=1), loss)
    shown = {ax.get_title()[:4] for ax in learn.show_mix()}
    if shape == (1,):
        with pytest.warns(UserWarning, match='one λ'): learn.fit(1)
    else: learn.fit(1)
    assert learn.mix_up.mix.lam.shape == shape
    assert (len(shown) > 1) == (shape == (8,)) and len({ax.get_title()[:4] for ax in show_mix(learn.dls, MixUp(seed=1))}) > 1


def test_what_was_known_before_a_stop_is_shown():
    "The picture is of the batch as it would be trained on next, also after `load_state_dict`"
    before, after = (learner(MixUp(seed=1), FocalLossFlat()) for _ in range(2))
    assert len({ax.get_title()[:4] for ax in after.show_mix()}) == 1
    before.fit(1)
    after.mix_up.load_state_dict(before.mix_up.state_dict())
    assert len({ax.get_title()[:4] for ax in after.show_mix()}) > 1
    after.fit(1)
    assert len(after.mix_up.mix.lam) == 8


def test_an_unknown_loss_is_shown_with_one_share_until_it_has_been_tried():
    def loss(pred, y, reduction='mean'): return F.cross_entropy(pred, y, reduction=reduction)
    learn = learner(MixUp(), loss)
    def shares(): return len({ax.get_title()[:4] for ax in learn.show_mix()})
    assert shares() == 1
    learn.fit(1)
    assert shares() > 1


def test_a_seed_draws_another_batch_the_same_each_time():
    dls = two_loaders((images(40), torch.arange(40)), shuffle=True)
    def shown(seed): return [ax.get_title() for ax in show_mix(dls, MixUp(), seed=seed)]
    assert shown(1) == shown(1) != shown(2) and shown(None) == shown(None)


def test_a_seed_of_numpy():
    dls = two_loaders((images(40), torch.arange(40)), shuffle=True)
    def shown(seed): return [ax.get_title() for ax in show_mix(dls, MixUp(), seed=seed)]
    assert shown(np.int64(1)) == shown(1)
    before = get_random_states()
    with pytest.raises(TypeError): show_mix(dls, MixUp(), seed='1')
    after = get_random_states()
    assert before['numpy_state'][1].tolist() == after['numpy_state'][1].tolist() and torch.equal(before['torch_state'], after['torch_state'])


@pytest.mark.parametrize('seed', [None, 3])
def test_generators_are_put_back_after_an_error(seed):
    dl = loaders(images(), numbers).train
    before = torch.get_rng_state(), random.getstate(), dl.rng
    with pytest.raises(RuntimeError), untouched(dl, seed):
        torch.rand(1), random.random(), dl.rng.random()
        raise RuntimeError
    assert torch.equal(before[0], torch.get_rng_state()) and before[1:] == (random.getstate(), dl.rng)


# Loaders, mixers, figures

def test_torch_loaders():
    dl = torch.utils.data.DataLoader(list(zip(images(), numbers)), batch_size=8)
    assert show_mix(DataLoaders(dl, dl), MixUp(), max_n=2).shape == (2,)


def test_a_mixer_may_be_a_class_and_takes_its_turn_by_weight():
    assert show_mix(loaders(images(), numbers), CutMix).shape == (8,)
    shapes = {show_mix(loaders(images(), numbers), MixChoice(MixUp(p=0), ManifoldMixUp(['1']), stop=0), max_n=1, seed=seed).shape for seed in range(9)}
    assert shapes == {(1,), (1, 3)}


def test_a_learner_shows_its_own_mixer_or_another():
    learn = learner(MixUp(seed=1))
    assert learn.show_mix(max_n=2, sources=True).shape == (2, 3) and not any(ax.patches for ax in learn.show_mix(sources=True).flat)
    assert any(ax.patches for ax in learn.show_mix(mixer=CutMix(seed=1), sources=True).flat)


def test_figures():
    dls, mixer = loaders(images(), numbers), MixUp()
    axes = show_mix(dls, mixer, nrows=2, figsize=(7, 5), facecolor='ivory')
    figure = axes[0].figure
    assert tuple(figure.get_size_inches()) == (7, 5) and len(figure.axes) == len(axes) == 8 and figure.get_facecolor()[2] < 1
    assert len(show_mix(dls, mixer, max_n=5)) == 5 and len(show_mix(dls, mixer, nrows=1, ncols=3)) == 3
    assert len({round(ax.get_position().y0, 6) for ax in show_mix(dls, mixer, max_n=4, ncols=4)}) == 1
    spare = show_mix(dls, mixer, max_n=5)[0].figure.axes[5]
    assert not spare.axison


def test_axes_of_ones_own():
    dls = loaders(images(), numbers)
    whole = plt.figure(figsize=(9, 5))
    mine = whole.subfigures(1, 2)[0].subplots(2, 3)
    before = plt.get_fignums()
    assert show_mix(dls, MixUp(), ax=mine[0, 0])[0] is mine[0, 0]
    assert show_mix(dls, MixUp(), ax=mine).tolist() == mine.ravel().tolist()
    assert show_mix(dls, MixUp(), ax=mine, sources=True).tolist() == mine.tolist()
    assert show_mix(dls, MixUp(), ax=list(mine[0]), max_n=2).tolist() == mine[0, :2].tolist()
    assert show_mixers(dls, {'a': MixUp(), 'b': CutMix()}, lams=(.2, .5, .8), ax=mine).tolist() == mine.tolist()
    assert show_mix(reviews(['a b']*12, ['c', 'd']*6), MixUp(), ax=mine[1, 1])[0] is mine[1, 1]
    assert plot_lam(1., ax=mine[1, 2]) is mine[1, 2]
    assert plt.get_fignums() == before
    with pytest.raises(ValueError, match='`ax` must hold 3 axes for each sample; got 2'): show_mix(dls, MixUp(), sources=True, ax=mine[0, :2])
    with pytest.raises(ValueError, match='`ax` must hold 1 axes for each sample; got 0'): show_mix(dls, MixUp(), ax=[])
    with pytest.raises(ValueError, match='2 rows of 2 axes'): show_mixers(dls, {'a': MixUp(), 'b': CutMix()}, lams=(.2, .5), ax=mine)


# Errors

@pytest.mark.parametrize('mixer', [MixUp(), CutMix(), ManifoldMixUp(['1'])], ids=repr)
@pytest.mark.parametrize('kind, n', [(TensorPoint, 2), (TensorBBox, 4)])
def test_points_and_boxes_are_refused_as_in_training(mixer, kind, n):
    items = [(image, kind(torch.rand(1, n))) for image in images()]
    with pytest.raises(TypeError, match=f'mixing is not defined for a target of type {kind.__name__}'): show_mix(DataLoaders(*[DataLoader(items, bs=8)]*2), mixer)


def test_errors():
    dls = loaders(images(), numbers)
    with pytest.raises(ValueError, match='no mixer'): learner().show_mix()
    with pytest.raises(ValueError, match='larger batch size'): show_mix(loaders(images(1), numbers[:1], bs=1), MixUp())
    with pytest.raises(TypeError, match='take `learn.dls`'): show_mix(learner(), MixUp())
    with pytest.raises(TypeError, match='`dls` must be `DataLoaders`; got list'): show_mix([1], MixUp())
    with pytest.raises(TypeError, match='fastai.callback.mixup.MixUp.*import fastmix last'): show_mix(dls, FastaiMixUp())
    with pytest.raises(TypeError, match='got builtins.NoneType'): show_mix(dls, None)
    for name, wrong in dict(max_n=(0, -1), nrows=(0, -2), ncols=(-1,)).items():
        for value in wrong:
            with pytest.raises(ValueError, match=f'`{name}` must be a whole number, 1 or more; got {value}'): show_mix(dls, MixUp(), **{name: value})
        for value in 2.5, 'a', True, [3]:
            with pytest.raises(TypeError, match=re.escape(f'`{name}` must be a whole number, 1 or more; got {value!r}')): show_mix(dls, MixUp(), **{name: value})
    for value in 'yes', 1, None:
        with pytest.raises(TypeError, match=f'`sources` must be True or False; got {value!r}'): show_mix(dls, MixUp(), sources=value)
    for show in lambda **kwargs: show_mix(dls, MixUp(), **kwargs), lambda **kwargs: show_mixers(dls, {'a': MixUp()}, **kwargs):
        with pytest.raises(TypeError, match="`seed` must be a whole number or None; got 'a'"): show(seed='a')
        with pytest.raises(ValueError, match='`seed` must not be negative; got -1'): show(seed=-1)
    assert len(show_mix(dls, MixUp(), max_n=np.int64(2), sources=np.True_)) == 2
    with pytest.raises(TypeError, match='no input with a batch dimension'): show_mix(DataLoaders(*[SimpleNamespace(one_batch=lambda: ('text', numbers))]*2), MixUp())
    with pytest.raises(TypeError, match='torch.int64'): show_mix(loaders(numbers[:, None], numbers), CutMix())


# One pair, several mixers

def test_one_pair_a_row_for_each_mixer_and_a_column_for_each_share():
    x, y = images(size=(20, 30)), torch.tensor([0, 0, 0, 1, 2, 0, 1, 1])
    lams = 0, .1, .5, .9, 1
    axes = show_mixers(loaders(x, y), {'blend': MixUp(), 'paste': CutMix(), 'each': CutMix(per='sample')}, lams, seed=5)
    assert axes.shape == (3, 5) and [row[0].texts[0].get_text() for row in axes] == ['blend', 'paste', 'each']
    assert axes[0, 0].figure._suptitle.get_text() == 'λ 0 + (1-λ) 1'
    pair = x[[0, 3]]
    for lam, mixed, pasted, each in zip(lams, *axes):
        np.testing.assert_allclose(pixels(mixed), as_shown(lam*x[0] + (1-lam)*x[3]), atol=1e-6)
        assert mixed.get_title() == f'λ = {lam:.2f}'
        mix = CutMix().draw_mix(Batch((pair,)), mix_rng(5), lam=lam)
        np.testing.assert_allclose(pixels(pasted), as_shown(mix(pair)[0]), atol=1e-6)
        np.testing.assert_array_equal(pixels(pasted), pixels(each)) # the same place, in every column and row
        kept = (np.abs(pixels(pasted) - as_shown(x[0])) < 1e-6).all(-1).mean()
        assert pasted.get_title() == f'λ = {mix.lam.item():.2f}' == f'λ = {kept:.2f}'


def test_the_first_sample_of_the_pair_is_own():
    x, y = images(), torch.tensor([2, 2, 1, 1, 1, 1, 1, 1])
    for mixer in MixUp(), CutMix(), CutMix(per='sample'), MixUp(beside=True):
        partner, own = show_mixers(loaders(x, y), {'': mixer}, lams=(0, 1), seed=2)[0]
        np.testing.assert_allclose(pixels(own), as_shown(x[0]), atol=1e-6)
        if type(mixer) is MixUp: np.testing.assert_allclose(pixels(partner), as_shown(x[2]), atol=1e-6)
        assert own.figure.get_suptitle() == 'λ 2 + (1-λ) 1'


def test_a_mixer_of_one_s_own():
    class Half(Mixer):
        def draw(self, batch, lam, rng):
            self.last = lam
            return Blend(np.float32(.5), [1, 0])
    mixer = Half()
    axes = show_mixers(loaders(images(), numbers), {'half': mixer})
    assert [ax.get_title() for ax in axes[0]] == ['λ = 0.50']*5 and not hasattr(mixer, 'last')


def test_pairs_of_other_kinds():
    for x in images(c=2, size=(30,)), images(c=1, size=(5, 6, 7)), images(c=5)[..., 0, 0]:
        assert show_mixers(loaders(x, numbers), {'MixUp': MixUp}).shape == (1, 5)
    x, y = scenes()
    assert len(show_mixers(loaders(x, y), {'CutMix': CutMix()})[0, 0].images) == 2
    axes = show_mixers(loaders(x, 1-x), {'MixUp': MixUp()}, lams=[.5])
    assert axes.shape == (1, 1) and axes[0, 0].figure._suptitle is None
    x[1:], y[1:] = x[0].clone(), y[0].clone() # no other target: the second sample
    assert show_mixers(loaders(x, y), {'MixUp': MixUp()}).shape == (1, 5)


def test_errors_of_mixers():
    dls = loaders(images(), numbers)
    for mixers in [MixUp()], {}, MixUp():
        with pytest.raises(TypeError, match='`mixers` must be a dict'): show_mixers(dls, mixers)
    with pytest.raises(ValueError, match="'deep' mixes inside the network"): show_mixers(dls, {'deep': ManifoldMixUp()})
    with pytest.raises(ValueError, match="'one' draws one of several"): show_mixers(dls, {'one': MixChoice(MixUp())})
    with pytest.raises(TypeError, match="one of fastmix's"): show_mixers(dls, {'theirs': FastaiMixUp()})
    with pytest.raises(ValueError, match='`lams` must be a number from 0 to 1; got 1.5'): show_mixers(dls, {'a': MixUp()}, lams=(.5, 1.5))
    with pytest.raises(TypeError, match='`lams` must be a number'): show_mixers(dls, {'a': MixUp()}, lams='ab')
    with pytest.raises(TypeError, match='`lams` must hold own shares.*got 0.5'): show_mixers(dls, {'a': MixUp()}, lams=.5)
    with pytest.raises(ValueError, match='`lams` is empty'): show_mixers(dls, {'a': MixUp()}, lams=())
    with pytest.raises(ValueError, match='larger batch size'): show_mixers(loaders(images(1), numbers[:1], bs=1), {'a': MixUp()})
    with pytest.raises(TypeError, match='category codes'): show_mixers(loaders(numbers[:, None], numbers), {'a': CutMix()})
    with pytest.raises(ValueError, match='inside the network'): show_mixers(loaders(numbers[:, None], numbers), {'a': MixUp()})


# What alpha does

@pytest.mark.parametrize('alpha', [.1, .4, 1., 8., (2., 1.), (.5, 3.)])
@pytest.mark.parametrize('fold', [False, True])
def test_hardly_mixed_is_the_share_that_is_drawn(alpha, fold):
    lam = draw_lam(alpha, mix_rng(0), 200_000, fold)
    assert abs(hardly_mixed(alpha, fold) - (lam > .95).mean()) < .004
    assert hardly_mixed(1.) == pytest.approx(.05) and hardly_mixed(1., fold=True) == pytest.approx(.1)


@pytest.mark.parametrize('fold', [False, True])
def test_the_plotted_density_is_that_of_lam(fold):
    ax = plot_lam(2., (3., 5.), fold=fold)
    for line, (a, b) in zip(ax.lines, ((2, 2), (3, 5))):
        lam, density = line.get_xdata(), line.get_ydata()
        keep = lam >= .5 if fold else lam > 0
        assert np.isnan(density[~keep]).all()
        assert np.trapezoid(density[keep], lam[keep]) == pytest.approx(1, abs=.01)
        where = keep.nonzero()[0][100]
        assert density[where] == pytest.approx(beta.pdf(lam[where], a, b) + fold*beta.pdf(1-lam[where], a, b))
    assert [text.get_text() for text in ax.get_legend().get_texts()][0] == f"α = 2.0{', folded'*fold}: {hardly_mixed(2., fold):.0%} hardly mixed"


def test_mixers_bring_their_own_alpha_and_fold():
    assert hardly_mixed(MixUp(.3)) == hardly_mixed(.3, fold=True) and hardly_mixed(CutMix(.3), fold=True) == hardly_mixed(.3) and hardly_mixed(MixUp) == hardly_mixed(MixUp())
    labels = [text.get_text() for text in plot_lam(MixUp(.3), CutMix(.3), .3, fold=True).get_legend().get_texts()]
    assert [label.split(':')[0] for label in labels] == ['MixUp', 'CutMix', 'α = 0.3, folded'] and 'folded' in labels[0] and 'folded' not in labels[1]


def test_errors_of_plot_lam():
    with pytest.raises(ValueError, match='at least one alpha'): plot_lam()
    for alpha in 0, -1., (1., 2., 3.), float('inf'):
        with pytest.raises(ValueError, match='`alpha` must be a positive number'): plot_lam(alpha)
    with pytest.raises(TypeError, match='`alpha` must be a positive number'): plot_lam('wide')
    with pytest.raises(ValueError, match='each with its own alpha'): plot_lam(MixChoice(MixUp(), CutMix()))
    assert tuple(plot_lam(.4, figsize=(3, 2)).figure.get_size_inches()) == (3, 2)


# Real data

def test_masks_of_real_scenes(data):
    folder = data/'camvid_tiny'
    block = DataBlock((ImageBlock, MaskBlock(np.loadtxt(folder/'codes.txt', dtype=str))), get_items=get_image_files, get_y=lambda o: folder/'labels'/f'{o.stem}_P.png',
                      splitter=RandomSplitter(seed=0), batch_tfms=[*aug_transforms(), Normalize.from_stats([.5]*3, [.25]*3)])
    dls = block.dataloaders(folder/'images', bs=8, num_workers=0)
    for mixer in MixUp(), CutMix():
        for row in show_mix(dls, mixer, sources=True, seed=1):
            for ax in row: assert [image.get_array().shape for image in ax.images] == [(96, 128, 3)]*2
            if isinstance(mixer, MixUp): np.testing.assert_allclose(pixels(row[2], 1), (lam := bar(row[2])[0])*pixels(row[0], 1) + (1-lam)*pixels(row[1], 1), atol=1e-4)


def test_rows_of_a_real_table(data):
    table = pd.read_csv(data/'adult'/'adult.csv', nrows=200, skipinitialspace=True)
    names = ['workclass', 'education', 'marital-status', 'occupation', 'relationship', 'race']
    dls = TabularDataLoaders.from_df(table, procs=[Categorify, FillMissing, NormalizeColumns], cat_names=[*names], cont_names=['age', 'fnlwgt', 'education-num'], y_names='salary',
                                     y_block=CategoryBlock(), bs=32, valid_idx=range(50))
    heading, *rows = cells(tabular_learner(dls, layers=[8], cbs=MixUp()).show_mix()[0])
    assert heading[1:] == [*names, 'education-num_na', 'age', 'fnlwgt', 'education-num', 'salary'] and len(rows) == 8
    people = {(row.age, row.fnlwgt) for row in table.itertuples()}
    for row in rows: assert (int(row[heading.index('age')]), int(row[heading.index('fnlwgt')])) in people and row[-1] in ('<50k', '>=50k')


def test_real_reviews(data):
    table = pd.read_csv(data/'imdb_sample'/'texts.csv', nrows=40)
    dls = reviews(table.text, table.label)
    config = awd_lstm_clas_config | dict(emb_sz=6, n_hid=8, n_layers=1)
    ax, = text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, cbs=MixUp()).show_mix()
    assert all(row[1].startswith('xxbos ') and len(row[1]) <= 110 and row[2] in ('positive', 'negative') for row in cells(ax)[1:])
    ax.figure.canvas.draw()


def test_real_pets(data):
    folder = data/'oxford-pets-160'
    files = get_image_files(folder/'images').sorted()[:64]
    block = DataBlock((ImageBlock, CategoryBlock), get_y=lambda o: o.stem.rsplit('_', 1)[0], splitter=RandomSplitter(seed=0), item_tfms=Resize(96))
    dls = block.dataloaders(files, bs=8, num_workers=0)
    assert all(part.split(maxsplit=1)[1] in dls.vocab for ax in show_mix(dls, MixUp()) for part in ax.get_title().replace('\n', ' ').split(' + '))
    grey = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_y=lambda o: o.stem.rsplit('_', 1)[0], splitter=RandomSplitter(seed=0), item_tfms=Resize(96))
    assert pixels(show_mix(grey.dataloaders(files, bs=8, num_workers=0), CutMix())[0]).shape == (96, 96)


# What is unusual

@pytest.mark.parametrize('kind', ['generator', 'sampler', 'workers'])
def test_a_loader_of_torch_is_left_as_it_was(kind):
    "Its generators, wherever they are, and its workers: the next epoch is the one that would have been"
    data, generator = list(zip(images(24), torch.arange(24))), torch.Generator()
    weights = torch.utils.data.WeightedRandomSampler(torch.ones(24), 24, generator=generator)
    kwargs = dict(generator=dict(shuffle=True, generator=generator), sampler=dict(sampler=weights), workers=dict(shuffle=True, num_workers=1, persistent_workers=True))[kind]
    dl = torch.utils.data.DataLoader(data, batch_size=8, **kwargs)
    dls = DataLoaders(dl, dl)
    def epoch(show):
        torch.manual_seed(0)
        generator.manual_seed(0)
        labels = []
        for i, (_, y) in enumerate(dl):
            if show and i == 1: shown.extend(ax.get_title() for _ in range(2) for ax in show_mix(dls, MixUp(), max_n=4, seed=1))
            labels += y.tolist()
        return labels
    list(dl) # the workers are there
    shown, expected = [], epoch(False)
    assert epoch(True) == expected and epoch(False) == expected
    assert shown[:4] == shown[4:], 'the seed does not decide which batch is shown'


@pytest.mark.parametrize('mixer', [MixUp(), CutMix(), ManifoldMixUp(['1'])], ids=lambda mixer: type(mixer).__name__)
@pytest.mark.parametrize('size', [(3, 2), (12, 8), (1, 6, 4), (6, 4)], ids=str)
def test_masks_of_another_size(mixer, size):
    "They are laid over the picture all the same; on a coarser grid CutMix weighs them place by place"
    masks = torch.randint(0, 3, (8, *size), generator=torch.Generator().manual_seed(0))
    assert all(len(ax.images) == 2 for ax in show_mix(loaders(images(), masks), mixer, max_n=2).flat if ax.images)


def test_a_target_that_is_no_mask_has_no_picture():
    assert all(len(ax.images) == 1 for ax in show_mix(loaders(images(), torch.zeros(8, 4, 7, dtype=torch.long)), MixUp(), max_n=2))


def test_a_complex_image_as_target_is_shown_beside_the_input():
    target = torch.complex(images(), images().flip(0))
    axes = show_mix(loaders(images(), target), CutMix(), max_n=2)
    assert axes.shape == (2, 2) and all(len(ax.images) == 1 for ax in axes.flat)


def test_a_pair_of_nested_inputs():
    vectors, classes = torch.rand(8, 5), torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    dls = DataLoaders(*[torch.utils.data.DataLoader([((x, v), y) for x, v, y in zip(images(), vectors, classes)], batch_size=8)]*2)
    assert show_mixers(dls, {'MixUp': MixUp()}, lams=[.5])[0, 0].figure.get_suptitle() == 'λ 0 + (1-λ) 1'


def test_a_signal_with_gaps():
    signals = torch.rand(8, 1, 20)
    signals[:, :, 3] = torch.nan
    assert len(show_mix(loaders(signals, torch.arange(8)), MixUp(), max_n=2)) == 2
