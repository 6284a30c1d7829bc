# Every target installs what it needs into .venv first. Nothing but Python 3.11-3.13 and make has to be there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
LOCK   := requirements/lock.txt
STAMP  := $(VENV)/.treadle-installed
SEEDS  ?= 1000
FIRST  ?= 0
JOBS   ?= 2
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-seeds test test-fast test-long simulate simulate-gate soak gpu-check lint format types lock clean

help:  ## Print the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv and install treadle with everything into it (reused afterwards)

$(STAMP): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"treadle needs Python 3.11 to 3.13, but $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@test -x $(UV) || { echo "installing uv into $(VENV)"; $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.*'; }
	@echo "installing the packages of $(LOCK) (about 6 GB with torch's CUDA libraries; a minute or two the first time)"
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --require-hashes -r $(LOCK)
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps -e .
	@touch $@

demo: setup  ## Turn the wheel four times on this machine: capture, join, snapshot, train, evaluate, promote
	$(BIN)/treadle demo $(ARGS)

demo-seeds: setup  ## Run the demo over ten seeds and print mean, worst and spread (about 40 minutes)
	$(BIN)/python benchmarks/demo_seeds.py --json benchmarks/results/demo-seeds.json

test: setup  ## Run the tests (under 20 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile --no-loadscope-reorder --durations=10 $(ARGS)

test-fast: setup  ## Run the tests that need no broker (seconds)
	$(BIN)/python -m pytest tests/unit tests/property -q $(ARGS)

test-long: setup  ## Run the longer forms of the fault tests
	$(BIN)/python -m pytest -m long --durations=10 $(ARGS)

simulate: setup  ## Run the join through simulated faults: SEEDS=1000 FIRST=0, JOBS=2; ARGS=--trace with one seed prints its steps
	$(BIN)/python tests/simulation --seeds $(SEEDS) --first $(FIRST) --jobs $(JOBS) $(ARGS)

soak: setup  ## Break a real broker and real workers for MINUTES=30 and check the history; prints its disk need first
	$(BIN)/python tests/soak --minutes $(MINUTES) $(ARGS)

simulate-gate: setup  ## Simulate false promotions, power, false rollbacks and delays of gate and guard
	$(BIN)/python tests/trials $(ARGS)

gpu-check: setup  ## Check a CUDA machine: tokens/s, MFU, waiting for data, sampling, numbers (at most 10 minutes)
	$(BIN)/python benchmarks/gpu_check.py --json benchmarks/results/gpu-check.json $(ARGS)

lint: setup  ## Check style and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## Check types with mypy (strict) and pyright
	$(BIN)/mypy
	$(BIN)/pyright

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## Resolve the dependencies anew into requirements/lock.txt
	$(UV) pip compile pyproject.toml --all-extras --group dev --group clients --group peers --universal --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --no-annotate --python-version 3.11 -o $(LOCK) $(ARGS)

clean:  ## Remove .venv and caches (not TREADLE_HOME)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
