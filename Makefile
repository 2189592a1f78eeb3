# Two commands do everything on a machine that has Python (3.10 or newer) and make:
#   make demo    install, then learn a pruning policy for a small residual CNN
#   make test    install, then run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The tests come in three tiers, see tests/conftest.py; `make test` runs them all:
#   make test-unit           a few minutes on two cores
#   make test-conformance    all example networks by all methods
#   make test-runs           whole commands, most of them in processes of their own
PYTEST := $(BIN)/python -m pytest --numprocesses auto
ALWAYS_OUT := not slow and not gpu

.PHONY: demo test test-unit test-conformance test-runs lint check clean

# the stamps record what was installed; they age when the list of dependencies changes
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-checks: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/prunegym train --budget macs=0.2 --episodes 150 --out runs/demo --overwrite

test: $(VENV)/installed-checks
	$(PYTEST) -m '$(ALWAYS_OUT)'

test-unit: $(VENV)/installed-checks
	$(PYTEST) -m '$(ALWAYS_OUT) and not conformance and not runs'

test-conformance: $(VENV)/installed-checks
	$(PYTEST) -m '$(ALWAYS_OUT) and conformance'

test-runs: $(VENV)/installed-checks
	$(PYTEST) -m '$(ALWAYS_OUT) and runs'

lint: $(VENV)/installed-checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
