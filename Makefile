# Each target does everything from a fresh clone: environment, installation, run. `make` alone lists them.
#   make test ARGS="-k text"          ARGS goes to what the target runs
#   make demo PYTHON=/path/to/python  names the Python that .venv is made from

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format parity proof clean

VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARITY_INSTALLED := $(PARITY)/.installed
# In variables, as a comma would part the arguments of $(call).
NEEDS = -e '.[data,plots,eval,dev]'
PARITY_NEEDS = -e '.[convert,eval,dev]' 'torch>=2.13,<2.14' 'transformers>=5.23,<6'

# The first of these that runs and is 3.11 to 3.13. A name on the path may be a shim that does not run, so each is tried.
CANDIDATES = $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
FOUND = $(shell for python in $(CANDIDATES); do \
  "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$python" && break; done)
VERSION = $(shell $(or $(PYTHON),python3) --version 2>/dev/null | sed 's/Python //')
REFUSED = Python is $(or $(VERSION),missing), expected 3.11, 3.12 or 3.13. \
  Install one, or name it: make PYTHON=/path/to/python3.11

# $(call environment,FOLDER): a virtual environment, by uv if it is there, else by Python itself.
environment = if command -v uv >/dev/null; then uv venv --quiet --allow-existing --python "$(FOUND)" $(1); \
  else "$(FOUND)" -m venv $(1); fi
# $(call install,FOLDER,WHAT): byte-compiled in any case, as TensorFlow takes 9 s to import when it is not.
install = if command -v uv >/dev/null; then uv pip install --python $(1)/bin/python --compile-bytecode $(2); \
  else $(1)/bin/python -m pip install --disable-pip-version-check $(2); fi
# For .venv, pip first fetches uv: only uv leaves out the full tensorflow that tensorflow-text asks for beside
# tensorflow-cpu. Where it cannot be had pip goes on alone: 0.6 GB more, and TensorFlow says that it finds no GPU.
fetch_uv = command -v uv >/dev/null || $(1)/bin/python -m pip install --quiet --disable-pip-version-check uv || true

help:
	@echo "make demo             train a small model on drawn scenes and show what it learned (runs/quickstart)"
	@echo "make test             all tests"
	@echo "make lint             ruff, mypy, import directions"
	@echo "make format           let ruff format the code"
	@echo "make proof NAME=...   a long proof, resumable; writes docs/proof/NAME.json"
	@echo "make parity           comparisons with other implementations, in an environment of their own"
	@echo "make venv             only the environment, in $(VENV)"
	@echo "make clean            remove environments, caches and runs"

venv: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml
	$(if $(FOUND),,$(error $(REFUSED)))
	@$(call environment,$(VENV))
	@$(call fetch_uv,$(VENV))
	@PATH="$(abspath $(VENV))/bin:$$PATH"; $(call install,$(VENV),$(NEEDS))
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python -m experiments.quickstart $(ARGS)

test: $(INSTALLED)
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir .cache/import_linter

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proof: $(INSTALLED)
	$(if $(NAME),,$(error NAME is empty, expected a proof: $(basename $(notdir $(wildcard experiments/proofs/[a-z]*.py))). Run make proof NAME=...))
	@$(BIN)/python -m experiments.proofs.$(NAME) $(ARGS)

parity: $(PARITY_INSTALLED)
	@HF_HUB_OFFLINE=1 $(PARITY)/bin/python -m pytest -o norecursedirs= tests/parity $(ARGS)

$(PARITY_INSTALLED): setup.py pyproject.toml
	$(if $(FOUND),,$(error $(REFUSED)))
	@$(call environment,$(PARITY))
	@$(call install,$(PARITY),$(PARITY_NEEDS))
	@touch $@

clean:
	@rm -rf $(VENV) $(PARITY) .cache runs
