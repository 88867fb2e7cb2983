# `make demo`, `make test` and `make docs` set up .venv on first use; nothing has to be installed but Python 3.11 or newer.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test docs lint types clean

# Two steps, so that pip never considers a torch newer than the pinned one; with the stamp a changed pyproject.toml reinstalls.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c $(CONSTRAINTS) torch
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e ".[dev]"
	$(BIN)/pip install -q -c $(CONSTRAINTS) --no-deps moondream  # its HTTP client, for the server's tests; no engine
	touch $@

demo: .venv/.installed
	$(BIN)/python recipes/demo.py

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

# Every warning is an error: dead links and unresolved references. Needs no network.
docs: .venv/.installed
	$(BIN)/zensical build --strict

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed
	$(BIN)/mypy

clean:
	rm -rf .venv .cache runs build dist site *.egg-info
