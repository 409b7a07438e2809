PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long check bench bench-network bench-paillier fuzz docs

demo: .venv/.test
	$(BIN)/vfl compare --html comparison.html

test: .venv/.test
	$(BIN)/python -m pytest

# All of them: more kills, more bad networks, a soak. It takes hours.
test-long: .venv/.test
	$(BIN)/python -m pytest -m "long or not long"

check: .venv/.test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict protocols horizontal vfl split tests examples

bench: .venv/.test
	$(BIN)/python -m tests.bench

bench-network: .venv/.test
	$(BIN)/python -m tests.bench network jobs

bench-paillier: .venv/.test
	$(BIN)/python -m tests.bench paillier

fuzz: .venv/.fuzz
	$(BIN)/python -m tests.fuzz --seconds 60

docs: .venv/.docs
	$(BIN)/mkdocs build --strict

# One stamp per extra: .venv/.test, .venv/.fuzz and .venv/.docs.
.venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: set PYTHON to a newer one")'
	$(PYTHON) -m venv .venv
