"""Build the documentation site from the notebooks, into the folder that settings.ini names.

Where FASTMIX_DATA is set, the notebooks under `site_run` are run first, in a copy of the working tree: their pictures
of that data are on the site, and nowhere else.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from html import unescape
from pathlib import Path

from fastcore.ansi import strip_ansi
from fastcore.nbio import read_nb
from fastcore.utils import Config
from nbdev.config import nbpath2html
from pygments.lexers import find_lexer_class_for_filename

from fresh import copy_tree
from pages import config, notebooks, relink, root, write_page

here = Path(__file__).resolve().parent
bin = Path(sys.executable).parent
settings = Config.find('settings.ini', root)
texts = 'CHANGELOG.md', 'CONTRIBUTING.md'  # of the root of the repository, pages as they are


def title_and_summary(notebook):
    "A notebook's title, and the sentence under it"
    text = next(cell.source for cell in read_nb(notebook).cells if cell.cell_type == 'markdown')
    found = re.match(r'# (.+?)\n+> (.+?)(\n|$)', text)
    if not found: raise ValueError(f"{notebook}: the first cell must be '# title', an empty line, '> summary in one line'")
    return found[1], found[2]


def sections():
    "The notebooks by section, in the order that settings.ini gives; those that it does not name follow by their file's name"
    left, found = set(notebooks()) - {config.nbs_path/'index.ipynb'}, {}
    for line in settings.site_sections.strip().splitlines():
        title, folder, *order = line.split()
        inside = [notebook for notebook in left if notebook.parent == config.nbs_path/folder]
        found[title] = sorted(inside, key=lambda o: (order.index(o.stem) if o.stem in order else len(order), o.stem))
        left -= set(inside)
    if left: raise ValueError(f'settings.ini: no section of the site takes {", ".join(sorted(map(str, left)))}')
    return {title: inside for title, inside in found.items() if inside}


def run(names, folder):
    "Run the notebooks `names` in a copy of the working tree, as far as they exist; the copy of each"
    found = {(config.nbs_path/f'{name}.ipynb'): folder/f'nbs/{name}.ipynb' for name in names}
    found = {notebook: copy for notebook, copy in found.items() if notebook.exists()}
    if found: copy_tree(folder)
    for copy in found.values():
        subprocess.run([bin/'nbdev-test', '--save', '--n-workers', '1', '--do-print', copy], cwd=folder, check=True,
                       env=os.environ | {'PYTHONPATH': str(folder), 'MPLBACKEND': 'agg'})
    return found


class Addresses:
    "Where in the folder `docs` the page of each file is; other files of the repository get one when a link leads to them"
    def __init__(self, docs):
        self.docs, self.sources = docs, {}
        self.pages = {notebook: docs/nbpath2html(notebook.relative_to(config.nbs_path)).with_suffix('.md') for notebook in notebooks()}
        self.texts = {root/name: docs/name.lower() for name in texts}
        self.fixed = self.pages | self.texts | {root/'README.md': docs/'index.md'}

    def __call__(self, file, anchor):
        if file in self.fixed: return self.fixed[file], anchor
        name = file.relative_to(root).as_posix()
        if config.git_url: return f'{config.git_url}/blob/{config.branch}/{name}', anchor
        self.sources[file] = self.docs/'source'/f'{name}.md'
        return self.sources[file], re.sub(r'^L(\d+)$', r'__codelineno-0-\1', anchor)


def source_page(file):
    "A file as a page with numbered lines, which the search passes over"
    lexer = find_lexer_class_for_filename(file.name)
    return (f'---\nsearch:\n  exclude: true\nhide: [toc, navigation]\n---\n# {file.relative_to(root)}\n\n'
            f'``````{{ .{lexer.aliases[0] if lexer else "text"} linenums="1" }}\n{file.read_text()}\n``````\n')


def write_pages(docs, runs):
    "Every page of the site as Markdown in the folder `docs`; its navigation"
    addresses = Addresses(docs)
    for notebook, page in addresses.pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        try: write_page(notebook, page, page.parent/'images', addresses, runs.get(notebook))
        except Exception as error:
            error.add_note(f'in {notebook}')
            raise
        title, summary = (json.dumps(text.replace('`', '')) for text in title_and_summary(notebook))
        if notebook.stem == 'index': title = summary  # Behind it stands the site's name, as on every page
        page.write_text(f'---\ntitle: {title}\ndescription: {summary}\n---\n{page.read_text()}')
    for file, page in addresses.texts.items(): page.write_text(relink(file.read_text(), root, page, addresses))
    for file, page in addresses.sources.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(source_page(file))

    def entry(notebook): return {title_and_summary(notebook)[0].replace('`', ''): str(addresses.pages[notebook].relative_to(docs))}

    return [{'Home': 'index.md'}, *({title: [entry(o) for o in inside]} for title, inside in sections().items()),
            {'Project': [{name.removesuffix('.md').capitalize(): name.lower()} for name in texts]}]


def build(work):
    "Build the site in the folder `work`; where it is then"
    docs = work/'docs'
    shutil.copytree(here/'site/assets', docs/'assets')
    shutil.copy2(config.nbs_path/'llms.txt', docs)
    runs = run(settings.site_run.split(), work/'tree') if 'FASTMIX_DATA' in os.environ else {}
    facts = {'nav': write_pages(docs, runs), 'site_description': config.description}
    if config.doc_host: facts['site_url'] = config.doc_host + config.doc_baseurl
    lines = [f'{name}: {json.dumps(value, ensure_ascii=False)}' for name, value in facts.items()]
    (work/'mkdocs.yml').write_text((here/'site/mkdocs.yml').read_text() + '\n'.join(lines) + '\n')
    made = subprocess.run([bin/'zensical', 'build', '--strict'], cwd=work, text=True, capture_output=True,
                          env=os.environ | {'NO_COLOR': '1'})
    if made.returncode or 'warning' in (made.stdout + made.stderr).lower():
        sys.exit(strip_ansi(f'{made.stdout}{made.stderr}\nThe site was not built.'))
    add_markdown(docs, work/'site')
    for page in (work/'site').rglob('*.html'): page.write_text(indented(page.read_text()))
    return work/'site'


def indented(page):
    "A page's HTML in which each long line of code knows its indentation: what goes on below stands further in than that"
    def mark(line):
        text = unescape(re.sub('<[^>]+>', '', line[2]))
        indent = len(text) - len(text.lstrip(' '))
        style = f' style="--in: {indent}ch"' if indent and len(text) > 80 else ''
        return f'{line[1]}{style}>{line[2]}'

    return re.sub(r'(<span id="__span-\d+-\d+")>(<a [^\n]*)', mark, page)


def add_markdown(docs, site):
    "Beside page.html the Markdown it is made from, page.html.md: where nbdev's docstrings and llms.txt point, once there is an address"
    for page in docs.rglob('*.md'):
        if page.is_relative_to(docs/'source'): continue
        text = re.sub(r'(\]\((?![a-z]+:)[^)#\s]*\.)md\b', r'\1html', page.read_text())
        (site/page.relative_to(docs)).with_suffix('.html.md').write_text(text)


def main(folder):
    "Build the site beside `folder`, and put it in its place only when it is complete"
    with tempfile.TemporaryDirectory(prefix='.site-', dir=folder.parent) as work:
        site = build(Path(work))
        if folder.exists(): folder.rename(site.with_name('old'))
        site.rename(folder)
    print(f'The site is in {os.path.relpath(folder)}/: open {os.path.relpath(folder/"index.html")}')


if __name__ == '__main__':
    warnings.filterwarnings('error', category=UserWarning, module='nbdev|fastcore')
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else settings.path('site_folder'))
