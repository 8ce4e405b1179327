# `make demo` and `make test` work on a fresh machine: they make .venv with the exact versions of constraints.txt, from
# whatever Python 3.10–3.12 is found, without compiling anything. Set PYTHON to use another interpreter.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
MADE := $(VENV)/.made
INSTALLED := $(VENV)/.installed
# Files of tests run side by side on all cores, each with one thread; tests of one file may share a trained model.
PYTEST_FLAGS ?= -n auto --dist loadfile
DEMO_FLAGS ?= --overwrite
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint install bench-cpu bench-gpu clean

help:
	@echo "make demo   data, training, evaluation, relaxation and dynamics, in minutes (results in demo/)"
	@echo "make test   all tests"
	@echo "make lint   formatting, types, layers"
	@echo "make bench-cpu  measure time and memory on this machine's processor, in about two hours (docs/benchmarks)"
	@echo "make bench-gpu  the same on its GPU, in less than 8 minutes; PYTHON=python3 runs without .venv"
	@echo "make clean  remove what these made, .venv included"

demo: $(INSTALLED)
	$(BIN)/escaip demo $(DEMO_FLAGS)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

# Unattended; BENCH_FLAGS adds options of `escaip bench all`.
bench-cpu: $(INSTALLED)
	$(BIN)/escaip bench all --device cpu --page docs/benchmarks $(BENCH_FLAGS)

# With PYTHON given, that interpreter runs the source tree as it is: on a machine that has torch and e3nn but no network.
bench-gpu: $(if $(PYTHON),,$(INSTALLED))
	PYTHONPATH="src$${PYTHONPATH:+:$$PYTHONPATH}" $(or $(PYTHON),$(BIN)/python) -m escaip_fairchem.cli.main \
	  bench all --device cuda --time-limit 420 --page docs/benchmarks $(BENCH_FLAGS)

$(MADE):
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  for name in python3.11 python3.12 python3.10 python3 python; do \
	    if "$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	      2>/dev/null; then python="$$name"; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.10, 3.11 or 3.12 with venv was found; install one, or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	@touch $@

# CC=false: an installation that would compile something fails, instead of succeeding where there is a compiler.
$(INSTALLED): pyproject.toml constraints.txt $(MADE)
	CC=false CXX=false $(BIN)/python -m pip install --quiet --prefer-binary -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-* demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache \
	  .coverage .coverage.* src/*.egg-info
