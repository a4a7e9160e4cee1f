# `make demo` and `make test` set everything up themselves: they need python3 (3.10 to 3.13) with venv, and make.
# A second run installs nothing unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# On Linux, pip's usual index has torch with gigabytes of CUDA. To take the CPU build instead, point pip at PyTorch's own
# index (PIP_EXTRA_INDEX_URL, or PIP_FIND_LINKS for a folder of wheels): pip's settings are respected.

# Options of pytest: two workers, each keeping to one file at a time and to one thread (tests/conftest.py); the summary
# says what was skipped and why.
PYTEST_ARGS ?= -q -rs -n 2 --dist loadfile

RUNTIME := $(VENV)/.installed-runtime
TEST := $(VENV)/.installed-test
PROMETHEUS := $(VENV)/bin/prometheus
PINS := pyproject.toml constraints.txt

.PHONY: help demo test lint format unit protos bench compiled train-nested clean

help:
	@echo "make demo          serve the shipped model, send a mixed load, print and plot what each request got"
	@echo "make test          lint, types, import contract and every test"
	@echo "make lint          ruff, mypy and import-linter alone"
	@echo "make format        let ruff fix and format what it can"
	@echo "make protos        generate serving/pb from proto/"
	@echo "make bench         the tables of benchmarks/"
	@echo "make compiled      build/compiled: an installation with a compiled planner; needs a C compiler"
	@echo "make train-nested  train the shipped nested-lm from scratch; ARGS='...' adds options"
	@echo "make clean         remove $(VENV), builds and caches"

demo: $(RUNTIME)
	$(VENV)/bin/stepwell demo $(ARGS)

test: $(TEST) $(PROMETHEUS) lint unit

unit: $(TEST) $(PROMETHEUS)
	$(PY) -m pytest $(PYTEST_ARGS)

lint: $(TEST)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(TEST)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# protoc names the modules after the path the files appear to have: they are generated into a folder of its own, under
# that path, and copied. The test of the stubs gives another PB and, as it needs no installing, an empty TEST.
PB ?= serving/pb
PROTO_BUILD ?= build/protos
PROTO_PATH := stepwell/serving/pb
protos: $(TEST)
	rm -rf $(PROTO_BUILD) && mkdir -p $(PROTO_BUILD) $(PB)
	$(PY) -m grpc_tools.protoc -I$(PROTO_PATH)=proto --python_out=$(PROTO_BUILD) --pyi_out=$(PROTO_BUILD) \
	    $(addprefix $(PROTO_PATH)/,$(notdir $(wildcard proto/*.proto)))
	$(PY) -m grpc_tools.protoc -I$(PROTO_PATH)=proto --grpc_python_out=$(PROTO_BUILD) \
	    $(addprefix $(PROTO_PATH)/,$(notdir $(shell grep -l '^service ' proto/*.proto)))
	cp $(PROTO_BUILD)/$(PROTO_PATH)/* $(PB)/

# Every table but the comparison of trainings, which takes hours: docs/nested_training.md.
TABLES := $(filter-out %/nested_vs_truncated.py,$(shell grep -l __main__ benchmarks/*.py))
bench: $(TEST)
	@set -e; for table in $(TABLES); do echo "== $$table"; $(PY) $$table $(ARGS); done

# Beside the tree, which stays in Python: PYTHONPATH=build/compiled $(VENV)/bin/stepwell serve ...
COMPILED := build/compiled
compiled: $(TEST)
	@echo "Compiling the planner (two minutes) ..."
	rm -rf build/lib* build/temp* build/bdist* $(COMPILED)
	STEPWELL_COMPILE=1 $(PY) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation \
	    --target $(COMPILED) .

train-nested: $(RUNTIME)
	$(VENV)/bin/stepwell train nested $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A half-made one is removed, so that the next run starts afresh.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Stepwell needs Python 3.10 to 3.13:" \
	         "install one and say which, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "make: $(PYTHON) has no venv: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# One resolving install each; the test environment contains the runtime one.
define install
	@echo "Installing (the first time takes a minute or more: torch is large) ..."
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '$(1)'
endef

$(RUNTIME): $(PINS) | $(PY)
	$(call install,.)
	@touch $(RUNTIME)

$(TEST): $(PINS) | $(PY)
	$(call install,.[test])
	@touch $(RUNTIME) $(TEST)

# From the machine or, on Debian and its kin, from the distribution's package. Without it two tests are skipped.
$(PROMETHEUS): | $(PY)
	@$(PY) tests/serving/prometheus/install.py
