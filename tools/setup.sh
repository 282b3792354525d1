#!/usr/bin/env bash
# Makes the virtual environment "$1" with this project's requirements, or updates it where pyproject.toml has changed.
# The extra "$2" of pyproject.toml is installed too; without it `dev`.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH
venv=$1
extra=${2:-dev}
stamp=$venv/.fastmix-$extra-$(cksum < pyproject.toml | cut -d ' ' -f 1)
[ -e "$stamp" ] && exit 0

mkdir -p "$(dirname "$venv")"
if command -v flock > /dev/null; then  # two clones may share the environment
    exec 9> "$venv.lock"
    flock 9
    [ -e "$stamp" ] && exit 0
fi

# The mark is set only in a folder made here: an environment that was there before is never removed.
[ -e "$venv/.unfinished" ] && rm -rf "$venv"
if [ ! -e "$venv" ]; then
    for python in ${PYTHON:-python3 python python3.13 python3.12 python3.11} none; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break
    done
    [ "$python" != none ] || { echo "fastmix needs Python 3.11 or newer; name one with PYTHON=..." >&2; exit 1; }
    mkdir "$venv"
    touch "$venv/.unfinished"
    "$python" -m venv "$venv"
fi

echo "Installing into $venv (the first time some minutes and 6 GB, most of it PyTorch)"
rm -f "$venv"/.fastmix-*
# The benchmark's environment is for one run: to compile all that is in it takes longer than to compile what is imported.
"$venv/bin/python" -m pip install --disable-pip-version-check $([ "$extra" = bench ] && echo --no-compile) -e ".[$extra]"
rm -f "$venv/.unfinished"
touch "$stamp"
