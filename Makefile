# One door: every command does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GOLDEN ?= ../shared/golden

.PHONY: demo test check parity format clean
.DEFAULT_GOAL := test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "boxwise needs Python 3.11 or newer; call: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## pretrain, fine-tune twice, compare: demo/report.html
	$(BIN)/boxwise demo --out demo --overwrite

test: $(VENV)/.installed  ## the whole suite on CPU, on up to four cores
	$(BIN)/python -m pytest -m "not gpu" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

parity: $(VENV)/.installed  ## values of the official implementations: make parity GOLDEN=DIR
	BOXWISE_GOLDEN=$(abspath $(GOLDEN)) $(BIN)/python -m pytest tests/parity

check: $(VENV)/.installed  ## lint, types, floors
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: $(VENV)/.installed
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

clean:
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache
