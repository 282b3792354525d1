"""Notebooks as Markdown pages: what README.md and the site are made with."""
import ast
import base64
import os
import re
from functools import cache
from html import escape
from importlib import import_module
from inspect import Parameter, isclass, isroutine
from operator import attrgetter
from pathlib import Path
from runpy import run_path
from textwrap import dedent

from fastcore.ansi import strip_ansi
from fastcore.docments import MarkdownRenderer, docments, empty
from fastcore.nbio import mk_cell, read_nb
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbglob, patch_name
from nbdev.frontmatter import FrontmatterProc
from nbdev.maker import read_var
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs, insert_warning

root = Path(__file__).resolve().parent.parent
config = get_config(root)
index = run_path(config.lib_path/'_modidx.py')['d']['syms']
defining = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
exporting = {'export', 'exports', 'exporti'}


def notebooks(): return nbglob(config.nbs_path, as_path=True).sorted()


def names_defined(node):
    "The names by which the index knows what a statement of a module defines: functions, classes, patched methods, values"
    if isinstance(node, defining):
        names = patch_name(node)
        return names if isinstance(names, list) else [names]
    return [o.id for o in getattr(node, 'targets', []) if isinstance(o, ast.Name)]


@cache
def definitions(module):
    "For each name that the file `module` defines, methods too, the statement"
    found = {}
    for node in ast.parse(module.read_text(encoding='utf-8')).body:
        found |= {name: node for name in names_defined(node)}
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{part.name}': part for part in node.body if isinstance(part, defining)}
    return found


@cache
def public(module):
    "The names in the `__all__` of the file `module`: those of its `exporti` cells are not among them"
    return set(read_var(module.read_text(encoding='utf-8'), '__all__'))


def has_entry(name, module):
    "Public names have an entry, methods where they have a docstring"
    owner, *method = name.split('.')
    if any(part[0] == '_' for part in (owner, *method)): return False
    if owner in definitions(module) and owner not in public(module): return False
    return not method or ast.get_docstring(definitions(module)[name]) is not None


def exports_to(nb):
    "The module that a notebook exports to, `None` where it exports nothing"
    return next((cell.directives_['default_exp'] for cell in nb.cells if 'default_exp' in cell.directives_), None)


def exported(cell): return cell.cell_type == 'code' and not exporting.isdisjoint(cell.directives_)


def heading(name, level, module, folder):
    "The heading of a public name, with an anchor that stays, and a link to its line in `module` as seen from `folder`"
    shown, line = name.replace('_', r'\_'), definitions(module)[name].lineno
    return (f'{"#"*level} <code>{shown}</code> {{ #{name.lower()} .symbol }}\n\n'
            f'[source]({os.path.relpath(module, folder)}#L{line}){{ .source }}')


class Name(str):
    "A text that shows itself without quotes"
    __repr__ = str.__str__


def shown(value):
    "A default as it reads: a function by its name, what a data class makes anew as three dots"
    if type(value).__name__ == '_HAS_DEFAULT_FACTORY_CLASS': return Name('...')
    return Name(value.__name__) if value is not empty and (isclass(value) or isroutine(value)) else value


def type_name(annotation):
    if annotation in (empty, type(None)): return ''
    if isroutine(annotation): return annotation.__name__  # `callable`
    if isinstance(annotation, type) and not hasattr(annotation, '__origin__'):
        return ('nn.' if annotation.__module__.startswith('torch.nn.') else '') + annotation.__name__
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', annotation if isinstance(annotation, str) else str(annotation))


def signature(name, sig):
    "The call, on one line or one line per parameter; the types stand in the table"
    parts, kinds = [], [p.kind for p in sig.parameters.values()]
    for p in sig.parameters.values():
        if p.name == 'self': continue
        if p.kind == Parameter.KEYWORD_ONLY and '*' not in parts and Parameter.VAR_POSITIONAL not in kinds: parts.append('*')
        parts.append(str(p.replace(annotation=empty, default=shown(p.default))))
    line = f'{name}({", ".join(parts)})'
    if len(line) > 80: line = f'{name}(\n' + ''.join(f'    {part},\n' for part in parts) + ')'
    return f'```python\n{line}\n```'


def parameter_table(sym):
    "What each parameter means, its type and default, and what is returned; nothing where nothing is said"
    about = docments(sym, full=True, args_kwargs=True)
    about.pop('self', None)
    returned = about.pop('return', None)
    rows = [(f'<code>{name}</code>', type_name(o.anno), '' if o.default is empty else repr(shown(o.default)), o.docment or '')
            for name, o in about.items()]
    if not isclass(sym) and returned and (returned.docment or type_name(returned.anno)):
        rows.append(('returns', type_name(returned.anno), '', returned.docment or ''))
    if not any(row[3] for row in rows): rows = [row for row in rows if row[0] == 'returns']
    if not rows: return ''

    def cell(text): return ' '.join(text.split()).replace('|', r'\|')

    rows = [(name, ' or '.join(f'`{part}`' for part in type.split(' | ') if part), default and f'<code>{cell(default)}</code>',
             cell(meaning)) for name, type, default, meaning in rows]
    if [row[0] for row in rows] == ['returns']: return 'Returns ' + ': '.join(part for part in (rows[0][1], rows[0][3]) if part)
    columns = zip(('argument', 'type', 'default', 'meaning'), ['---']*4, *rows)
    told = [column for column in columns if any(column[2:])]
    return '\n'.join(f'| {" | ".join(row)} |' for row in zip(*told))


def entry(sym, name, level, **place):
    "The entry of a class or function: signature, docstring, arguments; of a class its methods that have a docstring, too"
    renderer = MarkdownRenderer(sym, name=name)
    called = renderer.sig and not isinstance(sym, property)
    parts = [heading(name, level, **place), signature(name, renderer.sig) if called else '', renderer.docs]
    if isclass(sym):
        bases = [f'`{base.__name__}`' for base in sym.__bases__ if base is not object]
        if bases: parts.append(f'Extends {" and ".join(bases)}.')
    arguments = parameter_table(renderer.sym)
    parts.append(arguments.replace('Returns ', 'Type: ', 1) if isinstance(sym, property) else arguments)
    if isclass(sym):
        written = [f'{name}.{node.name}' for node in definitions(place['module'])[name].body if isinstance(node, defining)]
        parts += [entry(getattr(sym, part.rpartition('.')[2]), part, level + 1, **place) for part in written
                  if has_entry(part, place['module'])]
    return '\n\n'.join(part for part in parts if part)


def split_at_section(nb, title=''):
    "The index of the first cell of a notebook that begins with a section, or that one; a cell with text before it is split"
    for cell in nb.cells:
        found = cell.cell_type == 'markdown' and re.search(rf'^## {title}', re.sub(r'^```.*?^```$', lambda o: '.'*len(o[0]), cell.source, flags=re.M | re.S), re.M)
        if not found: continue
        before, cell.source = cell.source[:found.start()], cell.source[found.start():]
        if before.strip(): nb.cells.insert(cell.idx_, mk_cell(before, 'markdown'))
        return cell.idx_ + bool(before.strip())
    return len(nb.cells)


def code_in(cells):
    "The code that cells show to a reader, and then what their prose says in backticks"
    kept = [cell for cell in cells if not exported(cell) and 'hide' not in cell.directives_ or cell.cell_type == 'markdown']
    code = [re.findall(r'^```.*?^```$|^ {4}\S.*?$', cell.source, re.M | re.S) if cell.cell_type == 'markdown' else [cell.source]
            for cell in kept]
    spans = [re.findall('`[^`\n]+`', cell.source) for cell in kept if cell.cell_type == 'markdown']
    return re.sub(r'^#\|.*$', '', '\n'.join(part for parts in code + spans for part in parts), flags=re.M)


def by_use(names, code):
    "`names` in the order in which `code` uses them, a class with all its methods; the others follow as they come"
    words, groups = re.findall(r'\w+', code), {}
    for name in names:
        owner, _, method = name.partition('.')
        groups.setdefault(owner if owner in names or not method else method, []).append(name)
    place = {group: words.index(group) if group in words else len(words) for group in groups}
    return [name for group in sorted(groups, key=place.get) for name in groups[group]]


def folded(cell):
    "The code of an exported cell, folded under the names that it defines; nothing of one that only imports"
    code = re.sub(r'^#\|.*\n*', '', cell.source, flags=re.M).strip()
    statements = [o for o in ast.parse(code).body if not isinstance(o, (ast.Import, ast.ImportFrom))]
    names = [name for o in statements for name in names_defined(o) if name != '__all__']
    if not names: return ''
    return (f'<details class="defined" markdown="1" data-search-exclude>\n<summary markdown="span">Defined here: {", ".join(f"`{name}`" for name in names)}</summary>\n\n'
            f'```python\n{code}\n```\n\n</details>')


class add_entries(Processor):
    """An entry for every public name, values included

    They stand before the first section of a page, on that of a method before its code, in the order in which what is above
    them uses the names. Where names are defined, a line leads to their entries, and unfolds the code.
    """
    def begin(self):
        to = exports_to(self.nb)
        if not to: return
        self.module, self.file = import_module(f'{config.lib_path.name}.{to}'), config.lib_path/f'{to.replace(".", "/")}.py'
        found = [(cell, self.entries(cell)) for cell in self.nb.cells if exported(cell)]
        section = split_at_section(self.nb, 'The code$' if to.startswith('methods.') else '')
        entries = {name: text for _, texts in found for name, text in texts.items()}
        first = self.nb.cells[section] if section < len(self.nb.cells) else None
        opening = self.nb.cells[:section]
        for cell, _ in reversed(found):
            if cell not in opening and (text := folded(cell)): self.insert(self.nb.cells.index(cell) + 1, [text])
        place = self.nb.cells.index(first) if first else len(self.nb.cells)
        names = by_use(entries, code_in(opening))
        if names: self.insert(place, ['## Reference', *(entries[name] for name in names)])

    def insert(self, place, texts): self.nb.cells[place:place] = [mk_cell(text, 'markdown') for text in texts]

    def entries(self, cell):
        "The entries of the names that a cell defines"
        return {name: self.text(cell, node, name) for node in ast.parse(cell.source).body for name in names_defined(node)
                if has_entry(name, self.file)}

    def text(self, cell, node, name):
        place = dict(module=self.file, folder=self.nb.path_.parent)
        if isinstance(node, defining): return entry(attrgetter(name)(self.module), name, 3, **place)
        return f'{heading(name, 3, **place)}\n\n```python\n{ast.get_source_segment(cell.source, node)}\n```'


class PageFilter(FilterDefaults):
    "nbdev's processors, without those that write for Quarto or link to a hosted site; and with our entries"
    def base_procs(self):
        others = FrontmatterProc, add_show_docs, exec_show_docs, insert_warning, add_links
        return [add_entries, *(proc for proc in super().base_procs() if proc not in others)]


class Lookup(NbdevLookup):
    """Link names in backticks: this package's to their notebooks as seen from that of `notebook`, others to their own docs

    A short name is linked where it can mean one thing only: names that `fastmix.all` lacks in their own notebook, and of
    fastai those that one module defines.
    """
    def __init__(self, notebook, anchors=True):
        super().__init__()
        files = {nbpath2html(nb.relative_to(config.nbs_path)).as_posix(): nb for nb in notebooks()}
        public = (config.lib_path/'all.py').read_text()
        self.own = {}
        for module, symbols in index.items():
            for name, (address, file) in symbols.items():
                page, _, anchor = address.partition('#')
                short, link = name.removeprefix(f'{module}.'), os.path.relpath(files[page], notebook.parent)
                if anchors: link += f'#{anchor}'
                self.own[name] = link if has_entry(short, root/file) else None
                if files[page] == notebook or f'from {module} import *' in public: self.own[short] = self.own[name]
                else: self.own.setdefault(short, None)
        self.fastai = self.entries['fastai']['syms']

    def doc(self, name):
        if name in self.own: return self.own[name]
        if sum(f'{module}.{name}' in symbols for module, symbols in self.fastai.items()) < 2: return super().doc(name)

    def link_line(self, line):
        "Names in a line, but for those in the text of a link"
        parts = re.split(r'(\[(?:`[^`]*`|[^]`])*\]\()', line)
        parts[::2] = [re.sub(r'`([^`\s]+?)(?:\(\))?`', self._link_sym, part) for part in parts[::2]]
        return ''.join(parts)


def fenced(markdown):
    "Markdown whose indented code, as in a module's docstring, stands in a fence that says it is Python, where it is"
    blocks = re.split(r'(^```.*?^```$)', markdown, flags=re.M | re.S)

    def fence(match):
        code = dedent(match[2]).strip('\n')
        try: ast.parse(code)
        except SyntaxError: return match[0]
        return f'{match[1]}```python\n{code}\n```\n'

    blocks[::2] = [re.sub(r'((?:\A|^(?![ \t]*(?:[-*+]|\d+\.) ).*\n)\n)((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)', fence, text, flags=re.M)
                   for text in blocks[::2]]
    return ''.join(blocks)


def relink(markdown, source, page, target):
    "Make relative links, written as seen from the folder `source`, right for `page`: `target(file, anchor)` says where to"
    def change(match):
        before, link = match.groups()
        if re.match(r'[a-z]+:|[#/]', link): return match[0]
        path, _, anchor = link.partition('#')
        file = (source/path).resolve()
        if not file.exists(): raise FileNotFoundError(f'{page.name}: a link leads to {link}, which does not exist')
        file, anchor = target(file, anchor)
        link = os.path.relpath(file, page.parent) if isinstance(file, Path) else file
        return before + link + (anchor and f'#{anchor}')
    parts = re.split(r'(^```.*?^```$)', markdown, flags=re.M | re.S)
    parts[::2] = [re.sub(r'(\]\(|src="|href=")([^)"\s]+)', change, part) for part in parts[::2]]
    return ''.join(parts)


def grid(part):
    """The cells of a part of a DataFrame's HTML, row by row

    A head over several columns stands over each of them. What spans several rows stands in the first one.
    """
    rows, below = [], {}  # Column: in how many more rows a cell from above reaches into it
    for row in re.findall(r'<tr.*?</tr>', part, re.S):
        found, texts = iter(re.findall(r'<t[hd]([^>]*)>(.*?)</t[hd]>', row, re.S)), []
        while True:
            if below.get(len(texts)):
                below[len(texts)] -= 1
                texts.append('')
                continue
            attributes, text = next(found, (None, ''))
            if attributes is None: break
            across, down = (int(o[1]) if (o := re.search(rf'{span}="(\d+)"', attributes)) else 1 for span in ('colspan', 'rowspan'))
            if down > 1: below[len(texts)] = down - 1
            texts += [' '.join(text.split()).replace('|', r'\|')]*across
        rows.append(texts)
    return rows


def unbroken(text, narrow=False):
    "A number stays in one line with its error, unless there is no room, and an interval with itself"
    text = text.replace(' ±', '\N{NO-BREAK SPACE}±')
    if not narrow: text = text.replace('± ', '±\N{NO-BREAK SPACE}')
    return re.sub(r'\[[-+.\d]+, [-+.\d]+\]', lambda o: o[0].replace(' ', '\N{NO-BREAK SPACE}'), text)


def table(html):
    """A DataFrame's HTML as a Markdown table; any other HTML without its style

    The numbers of the rows are left out where a column of texts tells them apart.
    """
    html = re.sub(r'<style.*?</style>\s*', '', html, flags=re.S)
    if 'class="dataframe"' not in html: return html
    head, _, body = html.partition('</thead>')
    head, body = grid(head), grid(body)
    first, *others = ([text for text in column if text] for column in zip(*head))
    names = [' / '.join(reversed(first)), *(', '.join(column) for column in others)]  # A named index has a row of its own
    columns = list(zip(*body))
    numeric = [any(map(str.strip, column)) and all(re.fullmatch(r'([-+.\d]+(e[-+]?\d+)?( ?(%|ms|µs))?|NaN|–|)', cell) for cell in column)
               for column in columns]
    counted = not names[0] and list(columns[0]) == [str(i) for i in range(len(body))] and not all(numeric[1:2])
    rows = [names, ['---:' if right else '---' for right in numeric], *([unbroken(cell, len(row) - counted > 8) for cell in row] for row in body)]
    return '\n'.join(f'| {" | ".join(row[counted:])} |' for row in rows)


def printed(text):
    "What a cell printed, in a fence that is longer than any inside"
    text = strip_ansi(text).strip('\n')
    fence = '`'*max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{fence}text\n{text}\n{fence}'


def panels(output):
    "How many plots the figure of an output has"
    found = re.search(r'<Figure size \S+ with (\d+) Axes>', ''.join(output.data.get('text/plain', '')))
    return int(found[1]) if found else 1


def least_width(png, width=None):
    "How wide, in pixels, a PNG of several plots has to be shown for their texts to be read; `width` is what it has on a page"
    width = width or int.from_bytes(png[16:20])
    return round(max(min(width, 640), .75*width))


def write_page(notebook, page, images, target, saved=None, anchors=True):
    """Write `notebook` as the Markdown file `page` and its stored pictures into `images`

    Links lead to `target(file, anchor)`. The outputs are those of `saved`, where that is given: a copy that was run.
    """
    nb, lookup = read_nb(saved or notebook), Lookup(notebook, anchors)
    nb.path_ = notebook
    PageFilter()(nb)
    pictures = {}
    blocks = [f'<!-- Made from {os.path.relpath(notebook, root)}: edit that. -->']

    def prose(markdown): return relink(lookup.linkify(fenced(markdown)), notebook.parent, page, target)

    def picture(cell, output, mime, options):
        name = f'{notebook.stem}-{cell.id}-{len(pictures)}.{mime.removeprefix("image/")}'
        pictures[name] = base64.b64decode(output.data[mime])
        width = output.metadata.get(mime, {}).get('width')
        size = f' width="{width}"' if width else ''
        if anchors and panels(output) > 1: size += f' class="panels" style="--least: {least_width(pictures[name], width)}px"'
        alt = escape(options.get('fig-alt', '').strip('"'))
        return f'<img src="{os.path.relpath(images/name, page.parent)}" alt="{alt}"{size}>'

    def render(cell, output, options):
        if output.output_type == 'error': return printed(f'{output.ename}: {output.evalue}')
        if output.output_type == 'stream': return printed(''.join(output.text))
        data = {mime: ''.join(text) for mime, text in output.data.items()}
        for mime in ('image/png', 'image/jpeg'):
            if mime in data: return picture(cell, output, mime, options)
        if 'text/markdown' in data: return prose(data['text/markdown'])
        return table(data['text/html']) if 'text/html' in data else printed(data['text/plain'])

    for cell in nb.cells:
        options = dict(re.findall(r'^#\| *([\w-]+): *(.*)$', cell.source, re.M))
        if cell.cell_type == 'markdown': blocks.append(prose(re.sub(r'^#\|.*\n*', '', cell.source, flags=re.M)))
        if cell.cell_type != 'code' or options.get('include') == 'false': continue
        language = cell.metadata.get('language', 'python')
        code = re.sub(rf'^(#\||%%{language}).*\n?', '', cell.source, flags=re.M).strip()
        if code and options.get('echo') != 'false': blocks.append(f'```{language}\n{code}\n```')
        if options.get('output') != 'false': blocks += [render(cell, output, options) for output in cell.outputs]

    images.mkdir(parents=True, exist_ok=True)
    for file in images.glob(f'{notebook.stem}-*'):
        if file.name not in pictures: file.unlink()
    for name, content in pictures.items(): (images/name).write_bytes(content)
    page.write_text('\n\n'.join(block.strip('\n') for block in blocks) + '\n', encoding='utf-8')
