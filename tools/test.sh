#!/usr/bin/env bash
# All tests, in the environment that `make test` has put on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
export MPLBACKEND=agg PYTHONWARNINGS=ignore::FutureWarning OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
floor=$(python -c 'from fastcore.utils import Config; print(Config.find("settings.ini").coverage_floor)')

echo "== 1/4 notebooks clean, modules exported, README written"
python tools/fresh.py

echo "== 2/4 ruff"
ruff check

echo "== 3/4 every notebook runs"
nbdev-test --n-workers 2 --do-print

echo "== 4/4 lessons against the modules, and pytest, with coverage"
pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-fail-under="$floor"
