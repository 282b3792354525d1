"""Write into fastmix/all.py the imports of the methods: a line for each notebook in nbs/methods that exports a module.

They stand below the comment `mark`, in the order of the site. All other lines of the file are written by hand.
"""
import re
import sys

from nbdev.process import NBProcessor

from docs import sections
from pages import config, exports_to

mark = '# The methods: `make prep` writes a line for each notebook under nbs/methods that exports a module\n'


def methods():
    "The modules of the methods, in the order of the site"
    inside = [notebook for section in sections().values() for notebook in section if notebook.parent.name == 'methods']
    return filter(None, (exports_to(NBProcessor(notebook).nb) for notebook in inside))


if __name__ == '__main__':
    file, package = config.lib_path/'all.py', config.lib_path.name
    lines = ''.join(f'from {package}.{name} import *\n' for name in methods())
    text, found = re.subn(rf'({re.escape(mark)})(from {package}\.methods\..*\n)*', rf'\1{lines}', file.read_text())
    if not found: sys.exit(f'{file}: the line that the methods stand below is missing:\n{mark}')
    file.write_text(text)
