"""Print measures of the notebooks' text as a table: a line for each notebook, for all that export, and for all.

Nothing here fails, and no measure has a limit: the table is for the eye of whoever writes.
"""
import ast
import re
from itertools import pairwise
from statistics import median

from nbdev.process import NBProcessor

from pages import config, defining, exported, names_defined, notebooks

imports = ast.Import, ast.ImportFrom
legend = """
exported        cells that are exported, those of nothing but imports aside; their lines in the median and the longest
over 120        the share of exported lines that have more than 120 characters
shown over 95   lines of shown code that have more than 95; shown is what the site has as code, not exported or hidden
shown per line  lines of shown code per exported line
nodes per line  nodes of the syntax tree per exported line that is neither blank nor a comment
bare pairs      exported cells that follow each other, with neither prose nor shown code between them
most defs       definitions at the top level of one exported cell
unused names    public names that no shown code of their notebook uses
you in 1000     "we", "you" and "let's" per 1,000 words of prose"""


def kind(cell):
    "What a cell is to a reader: prose, exported or shown; `None` for one that is hidden, or exports imports alone"
    if cell.cell_type == 'markdown': return 'prose'
    if exported(cell): return None if all(isinstance(o, imports) for o in parsed(cell)) else 'exported'
    options = cell.directives_
    hidden = {'hide', 'default_exp'} & options.keys() or 'false' in (options.get('include'), options.get('echo'))
    return None if hidden or cell.cell_type != 'code' else 'shown'


def parsed(cell): return cell.parsed_() or []


def lines(cells): return [line for cell in cells for line in cell.source.splitlines()]


def names_used(cell):
    "Names and attributes in the code of a cell"
    nodes = [node for statement in parsed(cell) for node in ast.walk(statement)]
    return {getattr(node, 'id', None) or getattr(node, 'attr', None) for node in nodes}


def public_names(cell):
    "What an exported cell defines for others; of a method that is put on a class its own name"
    if 'exporti' in cell.directives_: return []
    names = [name.rpartition('.')[2] for node in parsed(cell) for name in names_defined(node)]
    return [name for name in names if name[0] != '_']


def words(cell):
    "The words of a cell's Markdown, without code"
    return re.findall(r"[\w'’]+", re.sub(r'```.*?```|`[^`\n]*`', '', cell.source, flags=re.S))


def facts(notebook):
    "What the measures are taken from, as lists, so that those of several notebooks can be joined"
    cells = [cell for cell in NBProcessor(notebook).nb.cells if cell.source.strip()]
    kinds = [(what, cell) for cell in cells if (what := kind(cell))]
    prose, code, shown = ([cell for what, cell in kinds if what == wanted] for wanted in ('prose', 'exported', 'shown'))
    used = {name for cell in shown for name in names_used(cell)}
    return dict(
        lengths=[len(cell.source.splitlines()) for cell in code],
        lines=lines(code),
        shown=lines(shown),
        nodes=[node for cell in code for node in ast.walk(ast.parse(cell.source))],
        bare=[(a, b) for (one, a), (two, b) in pairwise(kinds) if one == two == 'exported'],
        defs=[sum(isinstance(node, defining) for node in parsed(cell)) for cell in code],
        unused=[name for cell in code for name in public_names(cell) if name not in used],
        words=[word for cell in prose for word in words(cell)])


def measures(o):
    "The measures by heading, in two rows; `None` where there is nothing to measure"
    def per(part, whole): return part/len(whole) if whole else None

    written = [line for line in o['lines'] if not re.match(r'\s*(#|$)', line)]
    you = [word for word in o['words'] if re.match(r"(we|you)\b|let['’]s\b", word, re.I)]
    return {
        'exported cells': len(o['lengths']),
        'median lines': float(median(o['lengths'])) if o['lengths'] else None,
        'longest lines': max(o['lengths'], default=None),
        '%over 120': per(100*sum(len(line) > 120 for line in o['lines']), o['lines']),
        'shown over95': sum(len(line) > 95 for line in o['shown']),
        'shown perline': per(len(o['shown']), o['lines']),
        'nodes perline': per(len(o['nodes']), written),
        'bare pairs': len(o['bare']),
        'most defs': max(o['defs'], default=None),
        'unused names': len(o['unused']),
        'you in1000': per(1000*len(you), o['words'])}


def joined(several): return {fact: [o for one in several for o in one[fact]] for fact in several[0]}


def row(name, cells): return f'{name:27}' + ''.join(f'{cell:>9}' for cell in cells)


def number(value): return '-' if value is None else f'{value:.1f}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
    found = {str(notebook.relative_to(config.nbs_path).with_suffix('')): facts(notebook) for notebook in notebooks()}
    every = list(found.values())
    found |= {'all that export': joined([one for one in every if one['lines']]), 'all': joined(every)}
    table = {name: measures(one) for name, one in found.items()}
    for heading in zip(*(heading.split() for heading in table['all'])): print(row('', heading))
    for name, values in table.items(): print(row(name, map(number, values.values())))
    print(legend)
