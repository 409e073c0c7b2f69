# Every target works from a bare clone with only Python >= 3.11 and a C library there.
#   make demo    install the package, stream the shipped flights log into a model, show its weights
#   make test    install what the tests need, run them
#   make check   lint, formatting and types, as CI does
#   make sim     simulate a cluster under faults, as many seeds as wanted (SEEDS=, PROCESSES=)
#   make bench   speed beside Vowpal Wabbit on a generated click log (RECORDS=, ROUNDS=)
#   make clean   remove the environment and everything built

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# The first Python that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
DEMO := out/demo
RECORDS ?= 2000000
ROUNDS ?= 5
SEEDS ?= 1000
PROCESSES ?= 2

.PHONY: demo test check sim bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/core
	@rm -rf $(DEMO)
	$(BIN)/streamlearn train streamlearn/data/flights.toml --out $(DEMO)
	$(BIN)/streamlearn inspect $(DEMO)

test: $(VENV)/dev
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/dev $(VENV)/deep
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sim: $(VENV)/dev
	$(BIN)/python -m tests.sim --seeds $(SEEDS) --processes $(PROCESSES)

bench: $(VENV)/bench
	$(BIN)/python benches/bench_ctr.py --records $(RECORDS) --rounds $(ROUNDS)

clean:
	rm -rf $(VENV) build dist out .bench *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an environment is made anew only when what it is made from changes. The package itself is
# installed editable, so code needs no stamp; the build runs in the environment, so setuptools is pinned.
$(VENV)/made: Makefile
	@test -n "$(PYTHON)" || { echo "streamlearn needs Python 3.11 or newer, and found none" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core: pyproject.toml constraints.txt $(VENV)/made
	@echo "installing streamlearn"
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "installing what the tests need"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/deep: $(VENV)/core
	@echo "installing torch, and what it exports to"
	@$(PIP) --no-build-isolation --editable '.[deep,onnx]'
	@touch $@

$(VENV)/bench: $(VENV)/core
	@echo "installing what the benches compare with"
	@$(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@
