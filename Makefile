PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-tables test-long check bench bench-network bench-paillier bench-psi bench-vertical fuzz docs

demo: .venv/.test
	$(BIN)/vfl compare --html comparison.html

test: .venv/.test
	$(BIN)/python -m pytest

# Those that want a real table, in a folder shared/data here or above.
test-tables: .venv/.test
	$(BIN)/python -m pytest -m tables

# More kills, more bad networks, a soak, of every program: an hour or two. What is found goes to FIGURES, line by
# line; a run that was interrupted goes on where that file ends, if it is named again. Much of it waits, so that
# WORKERS=4 suits two cores.
WORKERS = auto
FIGURES = .figures/$(shell date -u +%Y%m%dT%H%M%S).jsonl
test-long: .venv/.test
	VFL_FIGURES=$(FIGURES) $(BIN)/python -m pytest -n $(WORKERS) -m long

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

# On the table of credit cards, in a folder shared/data here or above.
bench-vertical: .venv/.test
	$(BIN)/python -m tests.bench linear boosting

# Beside peers, each in an environment of its own; one that cannot be installed here is left out.
bench-psi: .venv/.test .peers/spu .peers/openmined
	$(BIN)/python -m tests.bench psi

.peers/spu: PACKAGES := spu==0.9.5 pandas
.peers/openmined: PACKAGES := openmined.psi==2.0.6
.peers/%:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet $(PACKAGES) || rm -r $@

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
