PYTHON ?= python3
BIN := .venv/bin

# What touches each dependency: messages, tables, ids, Paillier, kernels, parts, the command, and every estimator
# between processes.
FAST := tests/test_versions.py tests/test_transcripts.py tests/test_reveals.py tests/protocols/wire \
    tests/protocols/test_parts.py tests/protocols/data/test_sources.py tests/protocols/psi/test_ids.py \
    tests/protocols/psi/test_unbalanced.py tests/protocols/policy/test_history.py \
    tests/protocols/hazmat/test_phe.py tests/protocols/hazmat/test_lanes.py tests/protocols/network/test_identity.py \
    tests/protocols/cli/test_ledger.py tests/protocols/service/test_config.py tests/protocols/compare/test_baselines.py

.PHONY: demo test test-oldest test-tables test-long check bench bench-network bench-paillier bench-psi bench-vertical fuzz docs protobuf

demo: .venv/.test
	$(BIN)/vfl compare --html comparison.html

test: .venv/.test
	$(BIN)/python -m pytest

# With the oldest versions that pyproject.toml admits; their own warnings are no errors of ours.
test-oldest: .oldest/.done
	.oldest/bin/python -m pytest -W default -n auto $(FAST)

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

# The compiler of the oldest protobuf that is supported, since no newer protobuf refuses what it writes.
protobuf:
	$(PYTHON) -m venv .protobuf
	.protobuf/bin/pip install --quiet grpcio-tools==1.72.1
	.protobuf/bin/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. \
	    protocols/network/parties.proto

.oldest/.done: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv --clear .oldest
	.oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[sql]' \
	    hypothesis pytest pytest-xdist xgboost-cpu
	@touch $@

# One stamp per extra: .venv/.test, .venv/.fuzz and .venv/.docs.
.venv/.%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}: set PYTHON to a newer one")'
	$(PYTHON) -m venv .venv
