# Two commands a newcomer needs: make demo, make test. Everything is installed into .venv, nothing outside it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-opus test test-slow test-real lint types calibrate bench bench-check bench-gpu readme support reproduce atlas docs docs-serve clean

demo: $(VENV)/.run
	$(BIN)/throughtime demo -o demo.html

demo-opus: $(VENV)/.run
	$(BIN)/throughtime demo opus -o demo-opus.html

test: $(VENV)/.dev lint types
	$(BIN)/pytest -n auto -m "not slow and not network"

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m "slow and not network"

test-real: $(VENV)/.dev
	$(BIN)/pytest -m network

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

calibrate: $(VENV)/.dev
	$(BIN)/python -m calibration

# About 20 minutes; the table in docs/performance.md too.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks --write

# Three minutes of processor time: fails where a ratio is more than 20 % worse than in the stored table.
bench-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks --check

bench-gpu: $(VENV)/.dev
	$(BIN)/python -m benchmarks --device cuda

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

reproduce: $(VENV)/.dev
	$(BIN)/python -m reproduce

# Fetches shipped networks with pip (and music with apt-get) and measures them: about two minutes.
atlas: $(VENV)/.dev
	$(BIN)/python -m examples.atlas

readme: $(VENV)/.dev
	$(BIN)/python scripts/readme.py

support: $(VENV)/.dev
	$(BIN)/python scripts/support_table.py

# The banner that is switched off is its maker's advertisement.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) build dist site demo.html demo-opus.html atlas.html
