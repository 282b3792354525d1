# Every target makes its own virtual environment first: in .venv, or in VENV=folder.
VENV ?= .venv
DEMO := results/demo
# Names of experiments to train, all by default, and their options.
EXPERIMENTS ?=
# Options of the benchmark, e.g. BENCH='--page nbs/experiments/results/speed.csv' to measure anew for its page.
BENCH ?=

# The code of this clone is what runs, also where several clones share one VENV.
export PYTHONPATH := $(CURDIR)
export PATH := $(abspath $(VENV))/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env demo test prep readme rows docs measures bench experiments

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

env: ## make the virtual environment, anew only when pyproject.toml changed
	@tools/setup.sh "$(abspath $(VENV))"

demo: env ## see what mixing repairs: handwritten digits with wrong labels, with and without MixUp and CutMix
	@fastmix --out $(DEMO) --force

test: env ## run all tests
	@tools/test.sh

prep: env ## clean the notebooks, export the modules, write fastmix/all.py and README.md
	@python tools/prep.py

readme: env ## write README.md from its notebook
	@python tools/readme.py

rows: env ## run every row on fastmix and on fastai's own callbacks, and write the page that compares them
	@python tools/rows_page.py

docs: env ## build the documentation site in _site/
	@MPLBACKEND=agg PYTHONWARNINGS=ignore::FutureWarning python tools/docs.py

measures: env ## print measures of the notebooks' text: how long cells are, how much of the code is shown
	@python tools/measures.py

bench: ## measure the speed of mixing beside other libraries, which get an environment of their own
	@tools/setup.sh "$(abspath $(VENV))-bench" bench
	@"$(abspath $(VENV))-bench/bin/python" -m bench $(BENCH)

experiments: env ## train the reference experiments, for hours, on the data that FASTMIX_DATA names
	@PYTHONWARNINGS=ignore::FutureWarning python experiments/run.py $(EXPERIMENTS)
