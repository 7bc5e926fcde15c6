# Every target sets up what it needs in a virtual environment inside the checkout, from pyproject.toml and the pins in
# constraints.txt. Another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := cli plot demo console tensorboard parquet wandb mlflow
comma := ,
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Most of the tests' time is XLA's, compiling programs that hardly ever change: they are kept for a month, for the next run
# of any checkout, apart for each kind of processor.
PROCESSOR := $(shell grep -m1 ^flags /proc/cpuinfo 2>/dev/null | cksum | cut -d' ' -f1)
PROGRAMS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tallax/programs-$(PROCESSOR)

.PHONY: help demo test quick thorough nightly compare peers lint prose wheel dist-check format pages notebook docs bench performance bench-accelerator constraints clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## train a mixture of experts on handwritten digits, or go on with it; FRESH=1 starts again
	@$(BIN)/python examples/digits_moe.py $(if $(FRESH),--fresh) $(ARGS)

demo test thorough nightly compare dist-check: export JAX_COMPILATION_CACHE_DIR = $(PROGRAMS)
demo test thorough nightly compare dist-check: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
# Hundreds of processes import the same modules; containers often ask Python to compile them each time.
demo test thorough nightly compare dist-check: export PYTHONDONTWRITEBYTECODE =

# loadfile: the examples of one docstring or README share their names, and the tests of one file its programs.
# tests/conftest.py puts the longest files first, which xdist would begin last, as they have few tests.
test: $(VENV)/.dev  ## run the tests, but for the longest
	@mkdir -p $(PROGRAMS) && find $(PROGRAMS) -type f -mtime +30 -delete
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

quick: $(VENV)/.dev  ## run the tests that take no more than a moment
	$(BIN)/python -m pytest -m 'not slow and not thorough' $(ARGS)

thorough: $(VENV)/.dev  ## run the tests that take minutes together: more meshes and layouts, a share of the corpus
	$(BIN)/python -m pytest -m 'thorough and not nightly' --numprocesses 2 tests $(ARGS)

nightly: export JAX_DISABLE_MOST_OPTIMIZATIONS = 0
nightly: $(VENV)/.dev  ## run the tests that are too long for each change, and the others with programs as users compile them
	$(BIN)/python -m pytest -m nightly --numprocesses 2 tests $(ARGS)
	$(BIN)/python -m pytest -m 'not nightly' --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

compare: $(VENV)/.bench  ## run the tests beside PyTorch and torchmetrics, which are large
	$(BIN)/python -m pytest tests/test_comparisons.py tests/test_coming_from.py tests/test_torch.py $(ARGS)

peers: $(VENV)/.dev  ## run Flax's own tests with Counter and Buffer, from the sources that FLAX_CHECKOUT names
	$(BIN)/python tests/peers/flax_nnx.py $(ARGS)

lint: $(VENV)/.dev  ## check style, format and types, and that no code is dead
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/vulture
	$(BIN)/tallax lint src examples benchmarks
	$(BIN)/python .ci/prose.py

prose: $(VENV)/bin/python  ## count constructions that read as translated, per 1,000 words; ARGS=--update lowers the limits
	$(BIN)/python .ci/prose.py $(ARGS)

wheel: $(VENV)/.dev  ## install the wheel in place of the checkout; `touch pyproject.toml` undoes it
	rm -rf build/dist
	$(BIN)/python -m build --wheel --outdir build/dist .
	$(PIP) --no-deps --force-reinstall build/dist/*.whl

dist-check: $(VENV)/.dist  ## build wheel and sdist, and run the tests against the wheel, installed outside the checkout
	PYTHON=$(BIN)/python EXTRAS=$(subst $() ,$(comma),$(EXTRAS)) .ci/dist-check

format: $(VENV)/.dev  ## mend style and format where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pages: $(VENV)/.dev  ## write docs/lint from the linter's rules, and docs/learn from the exercises
	$(BIN)/python -m tallax.lint._explain docs/lint
	$(BIN)/python docs/_exercise_pages.py docs/learn

notebook: $(VENV)/.dev  ## run docs/tutorial.md, and write docs/tutorial.ipynb with what it prints
	$(BIN)/python docs/_notebook.py docs/tutorial.md docs/tutorial.ipynb

docs: $(VENV)/.docs  ## write the documentation site to build/site, to be read without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site
	! grep -rEo '<(script|img|link|iframe)[^>]* (src|href)="?https?:[^ >]*' build/site --include='*.html'  # nothing from elsewhere

bench: $(VENV)/.bench  ## measure, side by side; prints a table and writes benchmarks/results/*.json
	$(BIN)/python -m benchmarks $(ARGS)

performance: $(VENV)/.dev  ## write the tables of the pages with figures from the results of `make bench`
	@mkdir -p benchmarks/results
	$(BIN)/python docs/_figure_tables.py benchmarks/results

bench-accelerator:  ## measure on the device that JAX finds, in five minutes; uses PYTHON, with jax and flax, as it is
	$(PYTHON) -m benchmarks.accelerator $(ARGS)

constraints: $(VENV)/.dev  ## resolve the pins again
	$(PIP) uv
	$(BIN)/uv pip compile --universal --python-version 3.11 $(patsubst %,--extra %,$(EXTRAS)) --group dev --group docs --no-emit-index-url --no-header \
	  --no-annotate --quiet --upgrade --output-file constraints.txt pyproject.toml

clean:  ## remove the environments and everything made, compiled programs too
	rm -rf .venv* runs benchmarks/results build dist $(PROGRAMS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tallax needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --disable-pip-version-check install --quiet 'pip>=25.1'

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[cli,demo,tensorboard]'
	@touch $@

# The demo needs a part of it, so its file is touched too, and pip resolves once.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[$(subst $() ,$(comma),$(EXTRAS))]' --group dev
	@touch $(VENV)/.demo $@

$(VENV)/.dist: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --group dist
	@touch $@

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --group docs
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --group torch
	@touch $@
