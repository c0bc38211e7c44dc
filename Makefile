# Every target is one command a person could type. POSIX sh and GNU make; `make` alone lists the targets.
# Variables to override: PYTHON (what makes the virtual environment), VENV (its folder), PIP_FLAGS (PIP_FLAGS= shows what pip does),
# TEST_PROCESSES.

PYTHON    ?= python3
VENV      ?= .venv
PIP_FLAGS ?= -qq
# A process of tests for each core; `make test TEST_PROCESSES=0` runs them in one, where a debugger can stop them.
TEST_PROCESSES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# The torch that `make lock` pins. Named here, because pip's newest depends on which indexes a machine knows.
LOCK_TORCH ?= 2.13.0

SHELL := /bin/sh
BIN   := $(VENV)/bin
PIP   := -m pip --disable-pip-version-check --no-input
goal  := $(or $(firstword $(MAKECMDGOALS)),setup)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test lint types bench lock clean

help: ## list the targets
	@echo 'make TARGET, where TARGET is one of'
	@sed -n 's/^\([a-z][a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '  %-8s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.installed ## make the virtual environment: longspan, the demo, and the tools for tests and lint

demo: $(VENV)/.demo-installed ## the whole road on real text, on a CPU, in minutes
	$(BIN)/longspan demo

test: $(VENV)/.installed ## run the tests
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

lint: $(VENV)/.installed ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

types: $(VENV)/.installed ## check the types alone
	$(BIN)/pyright

bench: $(VENV)/.installed ## measure against the peers (see docs/performance.md)
	$(BIN)/python -m benchmarks.run_all

clean: ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) .lockvenv build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- the virtual environment -----------------------------------------------------------------------------------------

# Fails with a message unless PYTHON will do.
define check_python
	@"$(PYTHON)" -c 'pass' 2>/dev/null || { \
		echo "longspan: '$(PYTHON)' does not run. Install Python 3.11 or newer, or name one: make $(goal) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "longspan: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), and longspan needs 3.11 or newer. Name one: make $(goal) PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "longspan: '$(PYTHON)' cannot make virtual environments (no venv or no ensurepip). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef

$(VENV)/pyvenv.cfg:
	$(check_python)
	@echo "Making a virtual environment in $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv --clear $(VENV)

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml requirements.lock
	@echo "Installing longspan with its demo and its tools into $(VENV) (the first time: torch is large, and pip says nothing; PIP_FLAGS= shows it)"
	@$(BIN)/python $(PIP) install $(PIP_FLAGS) -e '.[demo,dev]' -c requirements.lock
	@touch $(VENV)/.demo-installed $@

$(VENV)/.demo-installed: $(VENV)/pyvenv.cfg pyproject.toml requirements.lock
	@echo "Installing longspan with its demo into $(VENV) (the first time: torch is large, and pip says nothing; PIP_FLAGS= shows it)"
	@$(BIN)/python $(PIP) install $(PIP_FLAGS) -e '.[demo]' -c requirements.lock
	@touch $@

# --- the pins --------------------------------------------------------------------------------------------------------

# Made from a fresh environment. torch's local version (`+cpu`) is cut off, so that one pin fits every build of it.
lock: ## pin anew every package that setup installs (requirements.lock)
	$(check_python)
	rm -rf .lockvenv
	"$(PYTHON)" -m venv .lockvenv
	.lockvenv/bin/python $(PIP) install $(PIP_FLAGS) -e '.[demo,dev]' torch==$(LOCK_TORCH)
	{ \
		echo '# What `pip install -e .[demo,dev]` gave in a fresh environment: made by `make lock`, not by hand. A constraints file:'; \
		echo '# it pins what is installed and installs nothing. The CUDA libraries that a GPU build of torch asks for by exact'; \
		echo '# version itself are not in it.'; \
		.lockvenv/bin/python $(PIP) freeze --exclude-editable | sed 's/^\([^ ]*==[^+]*\)+.*/\1/'; \
	} > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .lockvenv
