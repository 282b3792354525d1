"""Fail where a generated file is not what `make prep` writes.

All of them are made anew in a copy of the working tree, which itself stays as it is.
"""
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prep import regenerate

root = Path(__file__).resolve().parent.parent


def working_tree():
    "The tracked files, and the untracked ones that git does not ignore"
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
                           cwd=root, check=True, capture_output=True, text=True).stdout.split('\0')
    return {Path(name) for name in names if (root/name).is_file()}


def copy_tree(folder):
    "Copy the working tree to `folder`; the files, as `working_tree` has them"
    files = working_tree()
    for file in files:
        (folder/file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/file, folder/file)
    return files


def main():
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        files = copy_tree(copy)
        regenerate(copy)
        made = {file.relative_to(copy) for file in copy.rglob('*') if file.is_file()}
        problems = ([f'{file}: nothing writes it any more, delete it' for file in files - made] +
                    [f'{file}: is missing' for file in made - files] +
                    [f'{file}: is not what `make prep` writes' for file in files & made
                     if (root/file).read_bytes() != (copy/file).read_bytes()])
    if problems:
        sys.exit('\n'.join(sorted(problems)) + '\n\nRun `make prep` and look at `git diff`. Where a module was edited '
                 'by hand, bring the change into its notebook with `nbdev-update` first.')


if __name__ == '__main__': main()
