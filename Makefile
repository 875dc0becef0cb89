# make quickstart   the whole way on a tiny model, on real text     make test   its proofs
# make atlas   the neurons of 138 languages of another tiny model, as a folder that can be published
# make test-cluster   two hosts through pdsh and through Slurm, on this machine (root; installs Debian's packages)
# Each makes .venv first if that is not there or out of date (RECIPE=… make quickstart runs another recipe).

SHELL := /bin/bash
PYTHON ?= python3
RECIPE ?= recipes/quickstart.yaml
ATLAS ?= recipes/atlas.yaml
VENV := $(CURDIR)/.venv
STAMP := $(VENV)/.installed
# What the environment was made from; a finished set-up writes it into the stamp, as its last act.
STATE = $$(cat requirements.lock pyproject.toml | cksum) $(VENV)
PIP := "$(VENV)/bin/python" -m pip --disable-pip-version-check
IN_VENV := PATH="$(VENV)/bin:$$PATH"

.PHONY: install set-up check-tools quickstart atlas test test-long test-cluster lint bench

install:
	@if [ "$$(cat "$(STAMP)" 2>/dev/null)" != "$(STATE)" ]; then $(MAKE) --no-print-directory set-up; fi

set-up: check-tools
	@rm -f "$(STAMP)"
	@{ grep -qsF "$(VENV)/bin" "$(VENV)/bin/pip" && $(PIP) --version >/dev/null 2>&1; } \
		|| { echo "Making .venv"; $(PYTHON) -m venv --clear "$(VENV)"; }
	@echo "Installing what requirements.lock names (minutes the first time)"
	@$(PIP) install --quiet "$$(grep '^torch==' requirements.lock)"
	@$(PIP) install --quiet -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@echo "$(STATE)" > "$(STAMP).tmp" && mv "$(STAMP).tmp" "$(STAMP)"

check-tools:
	@missing=; \
	for tool in gcc git; do command -v $$tool >/dev/null || missing="$$missing, $$tool"; done; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		missing="$$missing, Python 3.11 or newer as $(PYTHON) (or say PYTHON=…)"; \
	elif ! $(PYTHON) -c 'import venv, ensurepip' >/dev/null 2>&1; then \
		missing="$$missing, the venv module of $(PYTHON) (Debian, Ubuntu: python3-venv)"; \
	fi; \
	if [ -n "$$missing" ]; then echo "error: missing: $${missing#, }; install it and run make again" >&2; exit 2; fi

quickstart: install
	@$(IN_VENV) launch/quickstart.sh $(RECIPE)

atlas: install
	@$(IN_VENV) lape-ds pretrain $(ATLAS)
	@$(IN_VENV) lape-ds atlas $(ATLAS)

test: install
	@$(IN_VENV) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: install
	@$(IN_VENV) HF_HUB_OFFLINE=1 python -m pytest -q -m long

# As root; fails, and says why, where that cannot be.
test-cluster: install
	@$(IN_VENV) HF_HUB_OFFLINE=1 python -m pytest -q -m cluster tests/cluster

lint: install
	@$(IN_VENV) ruff check .
	@$(IN_VENV) ruff format --check .
	@$(IN_VENV) pyright
	@$(IN_VENV) lint-imports

# On an idle machine: the records in benchmarks/ and the tables beside them.
bench: install
	@$(IN_VENV) lape-ds bench train --shape cpu-100m --out benchmarks/train-cpu-100m.json
	@$(IN_VENV) lape-ds bench train --shape cpu-100m --neurons mt --out benchmarks/train-cpu-100m-mt.json
	@$(IN_VENV) lape-ds bench train --shape llama-3.1-8b --neurons mt --out benchmarks/train-llama-3.1-8b-mt.json
	@$(IN_VENV) lape-ds bench train --shape mistral-nemo-12b --neurons mt --out benchmarks/train-mistral-nemo-12b-mt.json
	@$(IN_VENV) lape-ds bench identify --out benchmarks/identify.json
	@$(IN_VENV) lape-ds bench select --out benchmarks/select.json
	@$(IN_VENV) lape-ds bench pack --out benchmarks/packs.json
