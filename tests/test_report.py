import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.layers import Flatten
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.tabular.core import Categorify, Normalize
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from fastai.text.data import TextBlock
from fastai.torch_core import get_random_states
from PIL import Image
from torch import nn

from fastmix.all import CutMix, ManifoldMixUp, MixChoice, MixUp
from fastmix.compare.report import accuracy_per_class, batch_pictures, said_once
from fastmix.compare.results import read_results
from fastmix.compare.run import compare
from fastmix.data import digit_images, image_dls


def once(learn): learn.fit(1)


class Page(HTMLParser):
    "Check that every element is closed in its turn, and keep texts, images and addresses"
    empty = 'meta', 'link', 'img'

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images, self.addresses, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs.get('class')))
        self.addresses += [attrs[name] for name in ('href', 'src') if name in attrs]
        if tag == 'img':
            self.images.append((attrs['alt'], Image.open(io.BytesIO(base64.b64decode(attrs['src'].removeprefix('data:image/png;base64,'))))))
        if tag not in self.empty: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data):
        if self.open and self.open[-1] != 'style': self.texts.append(data.replace('\xa0', ' '))

    @property
    def text(self): return ' '.join(self.texts)


def page_of(path): return Page(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def make_learner():
    images = digit_images()
    images.train, images.valid = images.train[::12], images.valid[::6]
    dls = image_dls(images, size=8, bs=16)
    def make():
        return Learner(dls, nn.Sequential(Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), metrics=accuracy)
    return make


@pytest.fixture(scope='module')
def comparison(make_learner):
    def fail(learn):
        if hasattr(learn, 'mix_choice'): raise torch.OutOfMemoryError('<no> memory')
        once(learn)
    arms = {'none': None, '<b>Mix & "Up"</b>': MixUp(), 'Cut_Mix': CutMix(), 'inside': ManifoldMixUp('1'), 'choice': MixChoice(MixUp(), CutMix())}
    return compare(make_learner, arms, fail, seeds=3, progress=False, settings={'note <i>': 'a & b'})


@pytest.fixture(scope='module')
def report(comparison, tmp_path_factory): return comparison.report(tmp_path_factory.mktemp('report')/'new'/'folder', title='Digits <&>')


def test_everything_is_on_the_page(comparison, report):
    page = page_of(report)
    assert page.texts.count('Digits <&>') == 2
    assert '5 arms, 3 seeds, ' in page.text and 'fastmix 0.' in page.text and 'PIL' not in page.text
    for line in [comparison.summary(), comparison.fine_print(), *comparison.verdicts(), *comparison.failures()]: assert page.texts.count(line) == 1
    assert ('ul', 'legend') in page.tags and ('details', None) in page.tags and 'All 15 runs' in page.texts and 'Accuracy per class' not in page.texts
    assert 'choice against none: no seed in which both have a value' in page.texts
    assert {'train loss', 'valid loss', 'accuracy, %', 'accuracy against none, points', 'note <i>', 'a & b', '0 (3 failed)'} <= set(page.texts)
    assert 'nan' not in re.findall(r'\w+', page.text)
    assert [alt for alt, _ in page.images] == [
        'Plot of train loss', 'Plot of valid loss', 'Plot of accuracy, %', 'Plot of accuracy against none, points',
        *(f'Samples of a training batch: {arm}' for arm in comparison.arms)]
    for _, image in page.images:
        pixels = np.asarray(image.convert('RGBA'))
        assert min(image.size) > 300 and pixels[..., 3].std() > 10
    assert len({image.tobytes() for _, image in page.images}) == 9
    assert list(report.parent.iterdir()) == [report] and report.name == 'report.html'


def test_a_narrow_cell_breaks_only_before_an_interval(report):
    arms = report.read_text(encoding='utf-8').partition('class="arms"')[2].partition('</table>')[0].replace('\xa0', '_')
    cells = re.findall('<td>([^<]+)</td>', arms)
    assert len(cells) > 9 and all(re.fullmatch(r'\S+( \[\S+)?', cell) for cell in cells), cells


def test_no_other_file_belongs_to_it(report):
    assert all(address.startswith('data:') for address in page_of(report).addresses)
    plain = re.sub('base64,[^"]*', '', report.read_text(encoding='utf-8'))
    assert not re.search(r'http|//|url\(|@import|<script', plain)


def test_the_picture_of_a_mix_is_mixed(comparison):
    pictures = batch_pictures(comparison.make_learner, comparison.arms, 42)
    titles = {arm: [ax.get_title() for ax in fig.axes] for arm, fig in pictures.items()}
    assert all(' + ' not in title for title in titles['none']) and len(titles['none']) == 4
    for arm in ('<b>Mix & "Up"</b>', 'Cut_Mix', 'choice'): assert all(re.match(r'\d\.\d\d \w+\s\+ \d\.\d\d \w+', title) for title in titles[arm])
    plt.close('all')


def test_a_report_leaves_nothing_behind(comparison, tmp_path):
    plt.close('all')
    own, before = plt.figure(), get_random_states()
    comparison.report(tmp_path)
    assert plt.get_fignums() == [own.number] and torch.equal(before['torch_state'], get_random_states()['torch_state'])
    plt.close(own)


def test_verdicts_are_marked(comparison, tmp_path):
    runs = comparison.runs.copy()
    for i, (arm, gain) in enumerate({'<b>Mix & "Up"</b>': .2, 'Cut_Mix': -.2}.items()):
        runs.loc[runs.arm == arm, 'accuracy'] = runs[runs.arm == 'none'].accuracy.to_numpy() + gain + np.array([0, .01, .02])
    page = page_of(type(comparison)(runs, comparison.curves, comparison.settings).report(tmp_path))
    assert [kind for tag, kind in page.tags if tag == 'li' and kind] == ['better', 'worse', 'open', 'open']
    assert 'What the network saw' not in page.texts


def test_a_report_of_results_that_were_read(make_learner, tmp_path):
    compare(make_learner, {'none': None}, once, folder=tmp_path, progress=False)
    page = page_of(read_results(tmp_path).report(tmp_path))
    assert len(page.images) == 3 and '1 arm, 1 seed, ' in page.text and ('ul', 'verdicts') not in page.tags


def test_by_another_measure(comparison, tmp_path):
    page = page_of(comparison.report(tmp_path, 'valid_loss'))
    assert 'valid loss against none, lower is better' in page.texts and 'accuracy against none, points' not in page.texts
    assert comparison.verdicts('valid_loss')[1] in page.texts


def test_accuracy_per_class(make_learner, tmp_path):
    comparison = compare(make_learner, {'none': None, 'MixUp': MixUp()}, once, seeds=2, evaluate=accuracy_per_class, progress=False)
    names = [name for name in comparison.measures if name.startswith('accuracy of ')]
    learn = make_learner()
    found = accuracy_per_class(learn)
    preds, y = learn.get_preds()
    right = preds.argmax(1) == y
    assert len(names) == 10 and [*found] == names and comparison.judged_by() == ('accuracy', True)
    assert found == {f'accuracy of {name}': pytest.approx(right[y == i].float().mean().item()) for i, name in enumerate(learn.dls.vocab)}
    page = page_of(comparison.report(tmp_path))
    assert 'Accuracy per class' in page.texts and {'MixUp, points', 'none, %', *learn.dls.vocab} <= {*page.texts} and '10 classes' in page.text
    assert len(page.images) == 6 and 'accuracy of' not in page.text


def test_no_accuracy_per_class_without_classes():
    dls = DataLoaders(DataLoader([(torch.randn(4), torch.randn(1))]*8, bs=4), DataLoader([(torch.randn(4), torch.randn(1))]*8, bs=4))
    assert accuracy_per_class(Learner(dls, nn.Linear(4, 1), loss_func=nn.MSELoss())) == {}


def test_a_setting_is_said_once(comparison, tmp_path):
    again = type(comparison)(comparison.runs, comparison.curves, dict(bs=16, lr=.01, arch='small', epochs=1), comparison.made_of)
    rows = [*said_once(again).setting]
    assert len({*rows}) == len(rows) and 'bs' not in rows and 'lr' not in rows and {'batch size', 'learning rate', 'arch', 'epochs'} <= {*rows}


def test_a_margin(comparison, tmp_path):
    page = page_of(comparison.report(tmp_path, margin=.9))
    assert 'is the same as none within 90.0 points' in page.text


def test_a_title_that_cannot_be_drawn_does_not_cost_the_report(make_learner, tmp_path, monkeypatch):
    comparison = compare(make_learner, {'none': None, 'MixUp': MixUp()}, once, progress=False)
    before = plt.get_fignums()
    monkeypatch.setattr(Learner, 'show_mix', lambda *args, **kwargs: plt.subplots()[1].set_title('caf\udce9'))
    page = page_of(comparison.report(tmp_path, title='caf\udce9'))
    assert any(text.startswith('No picture: ') for text in page.texts) and 'caf\\udce9' in page.texts and plt.get_fignums() == before


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_report(make_learner, tmp_path, monkeypatch):
    comparison = compare(make_learner, {'none': None, 'MixUp': MixUp()}, once, progress=False)
    def broken(*args, **kwargs): raise RuntimeError('no <display>')
    monkeypatch.setattr(Learner, 'show_mix', broken)
    page = page_of(comparison.report(tmp_path))
    assert 'No picture: no <display>' in page.texts and len(page.images) == 4


def table_dls():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(job=rng.choice(['cook', 'smith'], 120), age=rng.normal(40, 9, 120), rich=rng.choice(['no', 'yes'], 120)))
    return TabularDataLoaders.from_df(table, procs=[Categorify, Normalize], cat_names=['job'], cont_names=['age'], y_names='rich', valid_idx=range(90, 120), bs=16)


def test_tables(tmp_path, capsys):
    dls = table_dls()
    def make(): return tabular_learner(dls, layers=[8], metrics=accuracy)
    comparison = compare(make, {'none': None, 'MixUp': MixUp()}, once, seeds=2, progress=False)
    page = page_of(comparison.report(tmp_path))
    assert [alt for alt, _ in page.images][-1] == 'Samples of a training batch: MixUp' and 'No picture' not in page.text
    assert len(page.images) == 5 and capsys.readouterr().out == ''


def test_texts(tmp_path, capsys):
    table = pd.DataFrame(dict(text=['a good book', 'a bad film', 'good', 'bad bad bad']*15, label=['pos', 'neg']*30))
    block = DataBlock((TextBlock.from_df('text', seq_len=8), CategoryBlock), get_x=ColReader('text'), get_y=ColReader('label'),
                      splitter=RandomSplitter(.2, 1))
    dls = block.dataloaders(table, bs=8, num_workers=0)
    def make(): return Learner(dls, nn.Sequential(nn.EmbeddingBag(len(dls.vocab[0]), 8), nn.Linear(8, 2)), loss_func=CrossEntropyLossFlat())
    comparison = compare(make, {'none': None, 'inside': ManifoldMixUp('1')}, once, progress=False)
    capsys.readouterr() # of the tokenizer
    page = page_of(comparison.report(tmp_path))
    assert [alt for alt, _ in page.images][-1] == 'Samples of a training batch: inside' and capsys.readouterr().out == ''


def test_plain_loaders(tmp_path):
    y = torch.arange(48) % 3
    pairs = list(zip(torch.randn(48, 3, 6, 6) + y[:, None, None, None], y))
    dls = DataLoaders(DataLoader(pairs[:32], bs=8), DataLoader(pairs[32:], bs=8))
    def make(): return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), loss_func=nn.CrossEntropyLoss())
    comparison = compare(make, {'none': None, 'CutMix': CutMix()}, once, progress=False)
    assert [alt for alt, _ in page_of(comparison.report(tmp_path)).images][2:] == ['Samples of a training batch: CutMix']


look = """<iframe src="report.html" width="1200" height="900"></iframe><iframe src="report.html" width="375" height="900"></iframe>
<p id="found">nothing</p><script>
onload = () => { found.textContent = [...document.querySelectorAll('iframe')].map(frame => {
    let page = frame.contentDocument, root = page.documentElement, images = [...page.images], style = getComputedStyle(page.body)
    return [root.scrollWidth - root.clientWidth, images.filter(image => image.naturalWidth > 300).length, style.backgroundColor, style.color].join(' ')
}).join('|') }</script>"""


@pytest.mark.parametrize('scheme, colours', [('light', 'rgb(255, 255, 255) rgb(29, 29, 31)'), ('dark', 'rgb(23, 24, 26) rgb(230, 230, 230)')])
def test_in_a_browser(report, tmp_path, scheme, colours):
    "On a wide and a narrow screen, which a frame can be and a window cannot: nothing overflows, and all images are there"
    browser = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not browser: pytest.skip('needs Chromium')
    shutil.copy(report, tmp_path)
    (tmp_path/'frames.html').write_text(look)
    done = subprocess.run([browser, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--allow-file-access-from-files',
                           f'--user-data-dir={tmp_path}/profile', f'--blink-settings=preferredColorScheme={int(scheme == "light")}',
                           '--dump-dom', '--virtual-time-budget=5000', (tmp_path/'frames.html').as_uri()],
                          capture_output=True, text=True, timeout=120)
    found = re.search('<p id="found">(.*?)</p>', done.stdout)
    assert found, done.stderr
    assert found[1].split('|') == [f'0 9 {colours}']*2
