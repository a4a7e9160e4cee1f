# `make demo` and `make test` set everything up themselves: they need python3 (3.10 to 3.13) with venv, and make.
# A second run installs nothing unless pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# Where pip also looks for torch on Linux, where PyPI's own wheel brings gigabytes of CUDA. Used if it answers.
# For a GPU: `make TORCH_INDEX= ...`.
TORCH_INDEX ?= $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)

# Options of pytest: two workers, each keeping to one file at a time and to one thread (tests/conftest.py).
PYTEST_ARGS ?= -q -n 2 --dist loadfile

RUNTIME := $(VENV)/.installed-runtime
TEST := $(VENV)/.installed-test
PINS := pyproject.toml constraints.txt

.PHONY: help demo test lint format unit protos bench train-nested clean

help:
	@echo "make demo          serve the shipped model, send a mixed load, print and plot what each request got"
	@echo "make test          lint, types, import contract and every test"
	@echo "make lint          ruff, mypy and import-linter alone"
	@echo "make format        let ruff fix and format what it can"
	@echo "make protos        generate serving/pb from proto/"
	@echo "make bench         the tables of benchmarks/"
	@echo "make train-nested  train the shipped nested-lm from scratch; ARGS='...' adds options"
	@echo "make clean         remove $(VENV), builds and caches"

demo: $(RUNTIME)
	$(VENV)/bin/stepwell demo $(ARGS)

test: lint unit

unit: $(TEST)
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
TABLES := $(filter-out %/common.py %/nested_vs_truncated.py,$(wildcard benchmarks/*.py))
bench: $(TEST)
	@set -e; for table in $(TABLES); do echo "== $$table"; $(PY) $$table $(ARGS); done

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
	@index="$(TORCH_INDEX)"; \
	if [ -n "$$index" ] && ! $(PY) -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' \
	        "$$index/torch/" 2>/dev/null; then \
	    echo "$$index does not answer: torch comes from your usual package index"; index=; \
	fi; \
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt \
	    $${index:+--extra-index-url $$index} -e '$(1)'
endef

$(RUNTIME): $(PINS) | $(PY)
	$(call install,.)
	@touch $(RUNTIME)

$(TEST): $(PINS) | $(PY)
	$(call install,.[test])
	@touch $(RUNTIME) $(TEST)
