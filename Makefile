# On a fresh machine with Python 3.10+, `make demo` and `make test` do everything.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint docs matrix matrix-quick clean

help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

install: $(VENV)/.native  ## everything for development, in .venv

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("ragrad_ext needs Python 3.10 or newer, found %d.%d: make PYTHON=python3.12 install" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	RAGRAD_NATIVE=off $(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

# The compiled part, in place. Machine code for the oldest GPUs alone, and PTX for all newer ones:
# nvcc takes a quarter of the time that it takes for a wheel.
$(VENV)/.native: $(VENV)/.installed setup.py CMakeLists.txt $(wildcard csrc/*)
	PATH="$(CURDIR)/$(BIN):$$PATH" RAGRAD_CUDA_ARCHITECTURES="$${RAGRAD_CUDA_ARCHITECTURES-80}" \
	    $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: install     ## train with and without RaGrad on generated scenes (minutes), write a report
	$(BIN)/python -m ragrad_ext demo --out runs/demo

test: install lint  ## lint, types and every test
	$(BIN)/python -m pytest

check: install lint  ## lint, types and the fast tests
	$(BIN)/python -m pytest -m 'not slow'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(filter-out %.cmake,$(wildcard csrc/*))
	$(BIN)/yamllint --strict .github .pre-commit-config.yaml .yamllint.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: install     ## write the tables, plots and signatures of the pages again
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m tests.lib.api_page

matrix: install   ## one wheel beside every torch that is promised (an hour, 20 GB)
	$(BIN)/python -m tests.lib.matrix

matrix-quick: install  ## the same beside the oldest torch, the cheap part (minutes, 7 GB)
	$(BIN)/python -m tests.lib.matrix --quick

clean:            ## remove what was built and trained here
	rm -rf $(VENV) build dist runs *.egg-info ragrad_ext/*.so .pytest_cache .mypy_cache .ruff_cache
