# Python 3.11 or later and pip are all this needs; everything goes into .venv, at the versions of tests/constraints.txt,
# so that no release of others can turn a clean clone red. `make newest` meets those releases on purpose.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := tests/constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
NEWEST := .venv-newest
BENCHMARKS := $(filter-out __init__ sparse_mamba,$(basename $(notdir $(wildcard tests/benchmarks/*.py))))
DEVICE ?= cpu
# Every process of the suite would compile the tests and the tool anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint slow gpu browser bench newest renew clean

demo: $(VENV)/.installed  ## inspect the trained checkpoints shipped in examples/
	$(BIN)/ssmdiag inspect examples/s4d-digits/step-02000.safetensors examples/lru-digits/step-02000.safetensors

test: $(VENV)/.installed-test lint  ## install and run the whole suite
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: $(VENV)/.installed-test  ## what takes minutes: simulations, fuzzing, large files
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'slow and not gpu'

gpu: $(VENV)/.installed-test  ## what needs a CUDA device; its absence is a failure
	SSMDIAG_REQUIRE_CUDA=1 $(BIN)/python -m pytest -m gpu

browser: $(VENV)/.installed-test  ## every page in a headless Chromium; its absence is a failure
	SSMDIAG_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/reports/test_browser.py -m ""

bench: $(VENV)/.installed-test  ## every benchmark; DEVICE=cuda for a GPU
	@for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name --device $(DEVICE) || exit 1; done

newest:  ## the whole suite on the newest versions that the registry has, which it names
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip hatchling editables
	$(NEWEST)/bin/python -m pip install --quiet -e '.[test]'
	$(NEWEST)/bin/python -m tests.constraints $(NEWEST)/versions.txt
	diff $(CONSTRAINTS) $(NEWEST)/versions.txt || true  # what the suite has been seen at, and what it sees now
	$(NEWEST)/bin/python -m pytest -n auto --dist worksteal

renew:  ## write tests/constraints.txt anew from what the registry has; run `make test` and commit it by itself
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip hatchling editables
	$(NEWEST)/bin/python -m pip install --quiet -e '.[test]'
	$(NEWEST)/bin/python -m tests.constraints $(CONSTRAINTS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("ssmdiag needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# hatchling first: a build in isolation would fetch the newest one.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) pip hatchling editables
	$(INSTALL) torch
	$(INSTALL) --no-build-isolation -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) --no-build-isolation -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWEST) build dist .pytest_cache .mypy_cache .ruff_cache
