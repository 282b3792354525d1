"""The site of `make docs`: complete, without dead links, and readable in a real browser, light and dark, wide and narrow."""
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
sys.path.append(str(root/'tools'))
needs_builder = pytest.mark.skipif(not find_spec('zensical'), reason="needs the site's builder: pip install -e '.[dev]'")


class Page(HTMLParser):
    "What the tests read off a page"
    def __init__(self, file):
        super().__init__()
        self.file, self.ids, self.links, self.sources, self.images = file, {}, [], [], []
        self.feed(file.read_text())
        self.text = ' '.join(file.read_text().split())

    def handle_starttag(self, tag, attributes):
        o = dict(attributes)
        if 'id' in o: self.ids[o['id']] = o.get('class') or ''
        if tag == 'a' and 'name' in o: self.ids.setdefault(o['name'], '')
        if tag == 'a' and 'href' in o: self.links.append((o['href'], o.get('class') or ''))
        if tag == 'link' and o.get('rel') != 'canonical': self.sources.append(o['href'])
        if 'src' in o: self.sources.append(o['src'])
        if tag == 'img': self.images.append(o)


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The site as `make docs` builds it where there is no data"
    folder = tmp_path_factory.mktemp('site')/'site'
    env = {name: value for name, value in os.environ.items() if name != 'FASTMIX_DATA'}
    made = subprocess.run([sys.executable, 'tools/docs.py', folder], cwd=root, env=env | {'PYTHONPATH': str(root)},
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    assert 'Warning' not in made.stdout + made.stderr
    return folder


@pytest.fixture(scope='session')
def pages(site): return {file.relative_to(site).as_posix(): Page(file) for file in sorted(site.rglob('*.html')) if file.name != '404.html'}


def index(): return import_module('fastmix._modidx').d['syms']


def entries():
    "For each module of the package, its notebook's page and its public names, methods with a docstring included"
    for name, symbols in index().items():
        module, page = import_module(name), next(iter(symbols.values()))[0].partition('#')[0]
        methods = [o.removeprefix(f'{name}.') for o in symbols]
        yield module, page, module.__all__ + [o for o in methods if '.' in o and documented(module, o)]


def documented(module, method):
    "Has `method` a docstring, and is its class public, or another module's?"
    owner = method.partition('.')[0]
    public = owner in module.__all__ or resolve(module, owner).__module__ != module.__name__
    return public and '.__' not in method and resolve(module, method).__doc__


def resolve(module, name):
    for part in name.split('.'): module = getattr(module, part)
    return module


@needs_builder
class TestPages:
    def test_there_is_one_for_each_notebook(self, pages):
        from pages import config, nbpath2html, notebooks
        missing = {nbpath2html(o.relative_to(config.nbs_path)).as_posix() for o in notebooks()} - set(pages)
        assert not missing and {'changelog.html', 'contributing.html'} <= set(pages)

    def test_every_public_name_has_an_entry(self, pages):
        found = [(page, name) for _, page, names in entries() for name in names]
        missing = [o for o in found if 'symbol' not in pages[o[0]].ids.get(o[1].lower(), '')]
        assert len(found) > 60 and not missing

    def test_entries_lead_to_the_line_in_the_source(self, site, pages):
        from pages import config
        wrong = []
        for module, page, names in entries():
            file = Path(module.__file__).relative_to(root).as_posix()
            at = os.path.relpath(f'source/{file}.html', Path(page).parent)
            links = [link.partition('#') for link, kind in pages[page].links if 'source' in kind.split()]
            lines = {name: Path(module.__file__).read_text().splitlines()[int(re.search(r'\d+$', anchor)[0]) - 1]
                     for name, (path, _, anchor) in zip(self.order(pages[page], names), links)}
            assert {path for path, _, _ in links} <= {f'{config.git_url}/blob/{config.branch}/{file}' if config.git_url else at}
            wrong += [(name, line) for name, line in lines.items() if name.rpartition('.')[2] not in line and '@' not in line]
            assert len(lines) == len(names), page
        assert not wrong

    def test_a_page_of_the_reference_begins_with_its_names(self, pages):
        "Behind what is shown first, and before every section: one first that was just used"
        begun = {}
        for _, page, names in entries():
            if not names: continue
            headings = re.findall(r'<h(\d)[^>]*? id="([^"]+)"', pages[page].file.read_text())
            begin = headings.index(('2', 'reference'))
            assert headings[1:begin] == ([('2', 'the-picture'), ('2', 'in-use')] if page.startswith('methods/') else []), page
            entry_ids = [name for level, name in headings[begin + 1:] if pages[page].ids[name] == 'symbol']
            assert [name for _, name in headings[begin + 1:begin + 1 + len(entry_ids)]] == entry_ids, page
            opening = pages[page].text.partition('id="reference"')[0].partition('<article')[2]
            code = ' '.join(re.findall('<code.*?</code>', opening, re.S))
            words = re.findall(r'\w+', re.sub('<[^>]+>', '', code).lower())
            if used := [name for name in entry_ids if name.rpartition('.')[2] in words]: begun[page] = used[0] == entry_ids[0]
        assert not [page for page, is_first in begun.items() if not is_first] and len(begun) > 20

    def test_types_are_names(self, pages):
        shown = {page: re.findall(r'&lt;(?:built-in|class|function)[^&]*&gt;', pages[page].text) for _, page, _ in entries()}
        assert not {page: types for page, types in shown.items() if types}
        assert '<code>callable</code>' in pages['compare/run.html'].text

    def test_the_home_page_has_a_title_of_its_own(self, pages):
        titles = {name: re.search('<title>(.*?)</title>', page.text)[1] for name, page in pages.items()}
        assert 'MixUp' in titles['index.html'] and titles['index.html'].endswith(' - fastmix')
        assert not [name for name, title in titles.items() if title == 'fastmix - fastmix']

    def order(self, page, names):
        "The names in the order of the page"
        known = {name.lower(): name for name in names}
        return [known[o] for o, kind in page.ids.items() if 'symbol' in kind]

    def test_entries_say_what_the_docments_say(self, pages):
        from html import escape
        missing = []
        for module, page, names in entries():
            for name in names:
                symbol = resolve(module, name)
                if not callable(symbol): continue
                about = {o: meaning for o, meaning in docments(symbol).items() if meaning}
                plain = [meaning for meaning in about.values() if not set(meaning) & set('`*_<\'"^')]
                missing += [(name, meaning) for meaning in plain if escape(' '.join(meaning.split()), quote=False) not in pages[page].text]
        assert not missing

    def test_links_and_pictures_lead_somewhere(self, site, pages):
        dead = []
        for name, page in pages.items():
            for link in [link for link, _ in page.links] + page.sources:
                url = urlsplit(link)
                if url.scheme or url.netloc: continue
                file = (page.file.parent/unquote(url.path)).resolve() if url.path else page.file
                file = file/'index.html' if file.is_dir() else file
                target = pages.get(file.relative_to(site).as_posix()) if file.is_relative_to(site) else None
                if not file.is_file() or (url.fragment and target and unquote(url.fragment) not in target.ids): dead.append((name, link))
        assert sum(len(page.links) for page in pages.values()) > 500 and not dead

    def test_names_of_fastai_link_to_its_documentation(self, pages):
        assert 'https://docs.fast.ai/learner.html#learner' in dict(pages['mixer.html'].links)

    def test_nothing_is_fetched_from_elsewhere(self, site, pages):
        remote = {source for page in pages.values() for source in page.sources if urlsplit(source).netloc}
        styles = [file.name for file in site.rglob('*.css') if 'url(http' in file.read_text() or '@import' in file.read_text()]
        assert not remote and not styles

    def test_every_picture_has_an_alternative_text(self, pages):
        pictures = [(name, o) for name, page in pages.items() for o in page.images if 'images/' in o['src']]
        assert len(pictures) > 8 and not [(name, o['src']) for name, o in pictures if not o.get('alt')]

    def test_navigation_follows_the_settings(self, pages):
        import docs
        titles = [docs.title_and_summary(notebook)[0].replace('`', '') for inside in docs.sections().values() for notebook in inside]
        shown = [pages['index.html'].text.find(f'{title} </') for title in titles]
        assert -1 not in shown and shown == sorted(shown)

    def test_each_page_is_there_as_markdown_too(self, site):
        text = (site/'methods/cutmix.html.md').read_text()
        assert '# CutMix' in text and '](../mix.html#paste)' in text and '.md#' not in text

    def test_llms_txt_is_there(self, site): assert (site/'llms.txt').read_text() == (root/'nbs/llms.txt').read_text()


@needs_builder
class TestTheBuilder:
    def test_names_are_in_the_order_of_their_use(self):
        from pages import by_use
        names = ['helper', 'Result', 'run', 'Result.plot', 'Learner.look', 'Result.save', 'Other']
        assert by_use(names, 'result = run(3)\nlearn.look()\nResult.load()') == ['run', 'Learner.look', 'Result', 'Result.plot', 'Result.save', 'helper', 'Other']
        assert by_use(names, '') == ['helper', 'Result', 'Result.plot', 'Result.save', 'run', 'Learner.look', 'Other']

    def test_the_opening_ends_at_the_first_section(self):
        from fastcore.nbio import mk_cell
        from pages import code_in, split_at_section
        texts = '# Title\n\n```\n## no heading\n```\n`this`', 'that()', 'Before.\n\n## Section\n\nAfter `it`.'
        nb = SimpleNamespace(cells=[mk_cell(text, kind) for text, kind in zip(texts, ('markdown', 'code', 'markdown'))])
        for i, cell in enumerate(nb.cells): cell.idx_, cell.directives_ = i, {}
        assert split_at_section(nb) == 3 and [cell.source for cell in nb.cells[2:]] == ['Before.\n\n', '## Section\n\nAfter `it`.']
        for cell in nb.cells: cell.directives_ = {}
        assert re.findall(r'[a-z]+', code_in(nb.cells[:3])) == ['no', 'heading', 'that', 'this']

    def test_plots_of_a_figure_are_counted(self):
        from pages import least_width, panels
        def output(text): return SimpleNamespace(data={'text/plain': text})

        found = [panels(output(text)) for text in ('<Figure size 840x300 with 2 Axes>', '<Figure size 540x540 with 12 Axes>', '<Figure size 6x3 with 1 Axes>', '3')]
        assert found == [2, 12, 1, 1]
        def png(width): return b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR' + width.to_bytes(4) + bytes(4)

        assert [least_width(png(width)) for width in (300, 840, 1300)] == [300, 640, 975] and least_width(png(1300), 650) == 640

    def test_tables_are_for_reading(self):
        import pandas as pd
        from pages import table
        def rows(frame): return [re.split(r' \| ', row.strip('| ')) for row in table(frame._repr_html_()).splitlines()]

        columns = pd.MultiIndex.from_product([['strict', 'ours'], [3, 5]], names=['found', 'seeds'])
        found = rows(pd.DataFrame([[1, 2, 3, '–']], pd.Index(['all'], name='size'), columns))
        assert found == [['size / seeds / found', 'strict, 3', 'strict, 5', 'ours, 3', 'ours, 5'], ['---'] + ['---:']*4, ['all', '1', '2', '3', '–']]
        index = pd.MultiIndex.from_tuples([('short', 'none'), ('short', 'MixUp'), ('long', 'none')], names=[None, 'arm'])
        found = table(pd.DataFrame({'gain': ['', '+1.0 [-2.0, +3.0]', '1 ± 2']}, index)._repr_html_()).splitlines()
        gap = '\N{NO-BREAK SPACE}'
        assert found[2:] == ['| short | none |  |', f'|  | MixUp | +1.0 [-2.0,{gap}+3.0] |', f'| long | none | 1{gap}±{gap}2 |']
        assert rows(pd.DataFrame({'arm': ['none', 'MixUp'], 'seeds': [3, 3]}))[2:] == [['none', '3'], ['MixUp', '3']]
        assert rows(pd.DataFrame({'loss': [.5, .4]}))[2:] == [['0', '0.5'], ['1', '0.4']]

    def test_a_property_is_not_shown_as_a_call(self, pages):
        assert 'Mix.lam' in pages['mix.html'].text and not re.search(r'Mix</span>.{0,60}>lam</span>.{0,60}\(\)', pages['mix.html'].text)

    def test_links_keep_their_texts(self):
        from pages import Lookup, root
        lookup = Lookup(root/'nbs/methods/remix.ipynb')
        assert lookup.link_line('try `MixUp` [with `compare`](run.ipynb)') == f"try [`MixUp`]({lookup.doc('MixUp')}) [with `compare`](run.ipynb)"

    def test_indented_python_gets_a_fence(self):
        from pages import fenced
        assert fenced('Use:\n\n    x = 3\n\n    y = 4\n\nThen.') == 'Use:\n\n```python\nx = 3\n\ny = 4\n```\n\nThen.'
        for other in ('Use:\n\n    pip install it\n', '- Use:\n\n    x = 3\n', '```\n\n    x = 3\n```', 'Use\n    x = 3'): assert fenced(other) == other

    def test_exported_code_is_folded(self, pages):
        from fastcore.nbio import mk_cell
        from pages import folded
        assert folded(mk_cell('#| export\nimport os\n__all__ = []')) == ''
        text = folded(mk_cell('#| export\n@patch\ndef f(self:Mixer): pass\nx = 3'))
        assert 'Defined here: `Mixer.f`, `x`</summary>' in text and '@patch\ndef f' in text and 'export' not in text
        assert pages['mixer.html'].text.count('<summary>Defined here') > 30 and '#|' not in pages['mixer.html'].text

    def test_long_lines_know_their_indentation(self):
        from docs import indented
        line = '<span id="__span-0-1"><a id="x"></a>{}</span>\n'
        code = '    <span class="n">' + 'x'*90 + '</span>'
        assert indented(line.format(code)) == line.format(code).replace('0-1">', '0-1" style="--in: 4ch">')
        for other in '    x', 'x'*90: assert indented(line.format(other)) == line.format(other)

    def test_a_failure_leaves_the_old_site(self, tmp_path, monkeypatch):
        import docs
        site = tmp_path/'site'
        site.mkdir()
        (site/'old.html').touch()

        def build(work):
            (work/'half').touch()
            raise ValueError('no')

        monkeypatch.setattr(docs, 'build', build)
        with pytest.raises(ValueError): docs.main(site)
        assert [o.relative_to(tmp_path).as_posix() for o in sorted(tmp_path.rglob('*'))] == ['site', 'site/old.html']

    def test_a_new_site_takes_the_place_of_the_old(self, tmp_path, monkeypatch, capsys):
        import docs
        site = tmp_path/'site'
        site.mkdir()
        (site/'old.html').touch()

        def build(work):
            (work/'site').mkdir()
            (work/'site/new.html').touch()
            return work/'site'

        monkeypatch.setattr(docs, 'build', build)
        docs.main(site)
        assert [o.relative_to(tmp_path).as_posix() for o in sorted(tmp_path.rglob('*'))] == ['site', 'site/new.html']

    def test_a_dead_link_is_an_error(self, tmp_path):
        from pages import relink
        page = tmp_path/'page.md'
        (tmp_path/'there.md').touch()
        def same(file, anchor): return file, anchor

        good = '[a](there.md#x) [d](https://e.f)\n```\n[g](h)\n```\n'
        assert relink(good, tmp_path, page, same) == good
        with pytest.raises(FileNotFoundError, match='gone.md'): relink('[a](gone.md)', tmp_path, page, same)

    def test_a_notebook_in_no_section_is_an_error(self, monkeypatch):
        import docs
        monkeypatch.setitem(docs.settings.d, 'site_sections', 'Reference .')
        with pytest.raises(ValueError, match='tasks.ipynb'): docs.sections()

    def test_with_a_repository_source_links_lead_there(self, tmp_path, monkeypatch):
        import docs
        addresses = docs.Addresses(tmp_path)
        assert addresses(root/'fastmix/mix.py', 'L3') == (tmp_path/'source/fastmix/mix.py.md', '__codelineno-0-3')
        config = SimpleNamespace(git_url='https://example.com/fastmix', branch='main', nbs_path=docs.config.nbs_path)
        monkeypatch.setattr(docs, 'config', config)
        assert addresses(root/'fastmix/mix.py', 'L3') == ('https://example.com/fastmix/blob/main/fastmix/mix.py', 'L3')
        assert addresses(root/'nbs/00_mix.ipynb', 'mix') == (tmp_path/'mix.md', 'mix')

    def test_notebooks_are_run_in_a_copy(self, tmp_path):
        import docs
        before = (root/'nbs/index.ipynb').read_bytes()
        found = docs.run(['index', 'tutorials/none_of_that_name'], tmp_path)
        assert found == {root/'nbs/index.ipynb': tmp_path/'nbs/index.ipynb'}
        cells = json.loads((tmp_path/'nbs/index.ipynb').read_text())['cells']
        assert any('image/png' in output.get('data', {}) for cell in cells for output in cell.get('outputs', []))
        assert (root/'nbs/index.ipynb').read_bytes() == before


@pytest.fixture(scope='session')
def browser():
    selenium = pytest.importorskip('selenium.webdriver', reason='needs selenium')
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if not program or not driver: pytest.skip('needs Chromium and its driver: apt-get install chromium chromium-driver')
    options = selenium.ChromeOptions()
    options.binary_location = program
    for option in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'): options.add_argument(option)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield browser
    browser.quit()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='session')
def address(site):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()


def window(browser, width, dark=False):
    "A window of that width, of a reader who prefers light or dark"
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600))
    scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[scheme]))


contrasts = """
document.head.append(Object.assign(document.createElement('style'), {textContent: '* { transition: none !important }'}))
const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true})
const seen = {}
function rgba(color) {  // of any notation
  if (!(color in seen)) {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1)
    const d = canvas.getImageData(0, 0, 1, 1).data
    seen[color] = [d[0], d[1], d[2], d[3]/255]
  }
  return seen[color]
}
const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3] + b[i]*(1 - a[3])).concat(1)
const grounds = new Map()
function ground(element) {
  if (!element) return [255, 255, 255, 1]
  if (!grounds.has(element)) grounds.set(element, over(rgba(getComputedStyle(element).backgroundColor), ground(element.parentElement)))
  return grounds.get(element)
}
const light = c => [0, 1, 2].map(i => c[i]/255).map(v => v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
  .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0)
const poor = new Map()
let count = 0
const walker = document.createTreeWalker(document.querySelector('.md-main'), NodeFilter.SHOW_TEXT)
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement
  if (!text) continue
  const style = getComputedStyle(element)
  if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true}) || element.closest('.headerlink, script, style, .md-code__nav')) continue
  const back = ground(element), front = over(rgba(style.color), back)
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x)
  const ratio = (a + .05)/(b + .05)
  count++
  if (ratio < 4.5) poor.set(`${element.tagName}.${element.className} ${style.color} on ${back.map(Math.round)}: ${ratio.toFixed(2)}`, text.slice(0, 40))
}
return [count, [...poor]]
"""

cut_off = """
return [...document.querySelectorAll('.md-typeset pre > code')].filter(o => o.scrollWidth > o.clientWidth + 1).map(o => o.textContent.slice(0, 60))
"""

first_name = "const o = document.querySelector('.symbol'); return o && o.getBoundingClientRect().top + scrollY"

# On a phone: what is wider than its box, and cannot be scrolled there, or reaches over the edge; and figures that are too small
out_of_sight = """
const scrolls = o => o.scrollWidth <= o.clientWidth + 1 || /auto|scroll/.test(getComputedStyle(o).overflowX)
const code = [...document.querySelectorAll('.md-typeset pre > code')]
return code.filter(o => !scrolls(o) || o.getBoundingClientRect().right > innerWidth).map(o => o.textContent.slice(0, 60))
"""
figures = """
return [...document.querySelectorAll('img.panels')].map(o => [
  o.src, o.getBoundingClientRect().width/(o.getAttribute('width') || o.naturalWidth), o.getBoundingClientRect().width,
  o.parentElement.scrollWidth <= o.parentElement.clientWidth + 1 || getComputedStyle(o.parentElement).overflowX == 'auto'])
"""

faults = """
const broken = [...document.images].filter(o => !o.complete || !o.naturalWidth).map(o => o.src)
const remote = performance.getEntriesByType('resource').map(o => o.name).filter(o => !o.startsWith(location.origin))
return [...broken, ...remote]
"""


@pytest.fixture(scope='session')
def seen(browser, address, pages):
    """What the browser finds on each page: opened in a wide window, light, then dark, then as wide as a phone

    Pages of source files are all made alike: we open some of them.
    """
    from selenium.webdriver.support.ui import WebDriverWait
    wait = WebDriverWait(browser, 20, poll_frequency=.02)
    browser.get_log('browser')
    found = {}
    sources = [name for name in pages if name.startswith('source/')]
    for name in sorted({*pages} - {*sources} | {*sources[::6]}):
        window(browser, 1400)
        browser.get(address + name)
        one = found[name] = SimpleNamespace(light=browser.execute_script(contrasts), faults=browser.execute_script(faults))
        window(browser, 1400, dark=True)
        wait.until(lambda _: browser.execute_script('return document.body.dataset.mdColorScheme') == 'slate', name)
        one.dark = browser.execute_script(contrasts)
        window(browser, 1300)
        one.cut_off, one.first_name = browser.execute_script(cut_off), browser.execute_script(first_name)
        window(browser, 375)
        one.out_of_sight, one.figures = browser.execute_script(out_of_sight), browser.execute_script(figures)
        one.width = browser.execute_script('return [innerWidth, document.scrollingElement.scrollWidth]')
        one.faults += [o['message'] for o in browser.get_log('browser') if o['level'] in ('SEVERE', 'WARNING')]
    return found


@needs_builder
class TestInABrowser:
    def test_pages_open_without_a_fault(self, seen): assert {name: o.faults for name, o in seen.items() if o.faults} == {}

    def test_everything_can_be_read_when_light(self, seen):
        assert sum(o.light[0] for o in seen.values()) > 10_000
        assert {name: o.light[1] for name, o in seen.items() if o.light[1]} == {}

    def test_everything_can_be_read_when_dark(self, seen):
        assert sum(o.dark[0] for o in seen.values()) > 10_000
        assert {name: o.dark[1] for name, o in seen.items() if o.dark[1]} == {}

    def test_what_cannot_be_read_is_noticed(self, browser, address):
        window(browser, 1400)
        browser.get(address + 'index.html')
        browser.execute_script("document.querySelector('.md-typeset p').style.color = '#888'")
        assert browser.execute_script(contrasts)[1]

    def test_nothing_overflows_on_a_phone(self, seen):
        assert {name: o.width for name, o in seen.items() if o.width != [375, 375]} == {}

    def test_code_is_never_cut_off(self, seen): assert {name: o.cut_off for name, o in seen.items() if o.cut_off} == {}

    def test_code_that_is_cut_off_is_noticed(self, browser, address):
        window(browser, 1300)
        browser.get(address + 'compare/run.html')
        browser.execute_script("for (const o of document.querySelectorAll('pre > code')) o.style.whiteSpace = 'pre'")
        assert browser.execute_script(cut_off)

    def test_copied_code_is_what_was_written(self, browser, address):
        "Each line is a box of its own, which must not show in the text"
        window(browser, 1300)
        browser.get(address + 'tutorials/keras_mixup.html')
        text = browser.execute_script("""
            const code = [...document.querySelectorAll('pre > code')].find(o => o.textContent.includes('nn.Sequential('))
            getSelection().selectAllChildren(code)
            return [getSelection().toString(), code.textContent]""")
        assert text[0].strip('\n') == text[1].strip('\n') and text[1].count('\n') >= 6

    def test_a_page_of_the_reference_begins_with_what_people_come_for(self, seen):
        "The first name stands on the first two screens"
        tops = {page: seen[page].first_name for _, page, names in entries() if names}
        assert {page: top for page, top in tops.items() if top > 1800} == {}

    def test_code_scrolls_in_its_own_box_on_a_phone(self, seen): assert {name: o.out_of_sight for name, o in seen.items() if o.out_of_sight} == {}

    def test_figures_of_several_plots_can_be_read_on_a_phone(self, seen):
        found = [figure for o in seen.values() for figure in o.figures]
        assert len(found) > 20 and not [figure for figure in found if not figure[3]]
        assert not [figure for figure in found if figure[1] < .74 and figure[2] < 639]

    def test_wide_tables_and_code_scroll_in_their_own_box(self, browser, address):
        window(browser, 375)
        for page in ('tutorials/rows.html', 'mixer.html'):
            browser.get(address + page)
            wide, stuck = browser.execute_script("""
                const scrolls = o => o.matches('.md-content') ? false : /auto|scroll/.test(getComputedStyle(o).overflowX) || scrolls(o.parentElement)
                const wide = [...document.querySelectorAll('.md-typeset table, .md-typeset pre > code')].filter(o => o.scrollWidth > 375)
                return [wide.length, wide.filter(o => !scrolls(o)).map(o => o.textContent.slice(0, 60))]""")
            assert wide and not stuck

    @pytest.mark.parametrize('opened', ['served', 'from the folder'])
    def test_search_finds_cutmix(self, browser, address, site, opened):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.support.ui import WebDriverWait
        window(browser, 1400)
        browser.get((address if opened == 'served' else site.as_uri() + '/') + 'index.html')
        search = "const box = [...document.querySelectorAll('*')].find(o => o.shadowRoot)?.shadowRoot; return "
        wait = WebDriverWait(browser, 20)
        wait.until(lambda _: browser.execute_script('return document.readyState == "complete"'))
        ActionChains(browser).send_keys('/').perform()
        wait.until(lambda _: browser.execute_script(search + 'box?.activeElement?.matches("input")'))
        ActionChains(browser).send_keys('CutMix').perform()
        wait.until(lambda _: browser.execute_script(search + '[...box.querySelectorAll("a")].some(o => o.href.includes("methods/cutmix.html?h=CutMix"))'))
        assert browser.execute_script(search + 'box.querySelector("input").value') == 'CutMix'
