# Needs Python 3.11 or newer with venv, and make. Everything else installs itself into .venv.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up demo test long faults outside soak check audit bench install lock clean

# The Python that .venv is made with, for example: make up PYTHON=python3.13
PYTHON ?= python3

BIN := .venv/bin
# Stamps, each as old as the last installation from its lock, so that what is installed already costs no time.
# `make up` needs only the first.
RUNTIME := .venv/.runtime
DEV := .venv/.dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK := $(BIN)/uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes \
	--no-config --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet
PIP_AUDIT := 2.10.1
# With this variable set, each process that tests start would compile the program and the tests for itself.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
# tests/conftest.py says how many processes that is.
PARALLEL := --numprocesses auto

help: ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

# -- Running. `exec`, so that Ctrl-C and SIGTERM reach the program and no shell in between.

up: $(RUNTIME) ## run it here: PostgreSQL, API, views, expiry; Ctrl-C stops everything
	@exec $(BIN)/sparkledger up

demo: $(RUNTIME) ## against a running `make up`: the guide's story, with what each step recorded
	@exec $(BIN)/sparkledger demo

# -- Proving. ARGS goes to pytest, for example: make test ARGS="-k window"

# No folder is named here: pytest adds those that ARGS names to it, and falls back on `testpaths` where ARGS names none.
TESTS := $(PYTEST) --ignore tests/faults --ignore tests/bench --ignore tests/outside $(PARALLEL)

test: $(DEV) ## all tests but the long ones, in minutes (LONG=1: with them); a file that ARGS names runs as a whole
	@$(TESTS) $(if $(LONG),,--tier test) $(ARGS)

long: $(DEV) ## the long tests: every page in browsers, Kafka, walks of the whole API, programs that start and stop
	@$(TESTS) --tier long $(ARGS)

# One at a time: they kill processes, fill disks and wait for minutes.
faults: $(DEV) ## one at a time: real kills, 60-second readers, full disks
	@$(PYTEST) --override-ini testpaths=tests/faults --timeout 900 $(ARGS)

# Never in continuous integration. It draws what it saw into .bench/soak.svg.
soak: $(DEV) ## half an hour of everything at once (DURATION=5: minutes): do memory, connections, files and lags stay flat?
	@exec $(BIN)/python -m tests.soak --minutes $(or $(DURATION),30)

# It downloads their modules, once.
outside: $(DEV) ## others' programs check our signed logs and messages, and the consumer in Go; needs Go, npm and their registries
	@$(PYTEST) --override-ini testpaths=tests/outside --timeout 900 $(ARGS)

check: $(DEV) ## format, lint, types, import rules, unused dependencies, generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .
	$(BIN)/python -m tests.generated --check

# Strict, for else it calls clean what it could not look up. Not part of check: it asks a service on the internet, whose answer changes without a change of ours.
audit: $(DEV) ## known vulnerabilities in what the locks name, by pip-audit; needs the internet
	@for lock in requirements.lock requirements-dev.lock; do \
		$(BIN)/uv tool run --from pip-audit==$(PIP_AUDIT) pip-audit --requirement $$lock --require-hashes --disable-pip \
			--strict --progress-spinner off --timeout 30 || { \
			echo "$$lock is not audited, or not clean: the lines above say which. Offline nothing can be audited." >&2; \
			exit 1; }; \
	done

bench: $(DEV) ## every benchmark, in minutes (FULL=1: with 10M events)
	@exec $(BIN)/sparkledger bench $(if $(FULL),--full)

# -- docker-compose

# Made once and never overwritten: the database in the volume keeps the passwords it was first given.
.env: ## passwords for docker-compose, generated once
	@umask 077 && $(PYTHON) -c '\
	from base64 import b64encode; from secrets import token_bytes, token_hex; \
	names = "POSTGRES SPARKLEDGER_OWNER SPARKLEDGER_API SPARKLEDGER_WORKER".split(); \
	print(*(f"{name}_PASSWORD={token_hex(24)}" for name in names), sep="\n"); \
	print("SPARKLEDGER_MASTER_KEY=" + b64encode(token_bytes(32)).decode()); \
	print("SPARKLEDGER_ADMIN_KEY=" + token_hex(24))' > $@.new && mv $@.new $@
	@echo "Wrote .env (mode 0600). Keep a copy of SPARKLEDGER_MASTER_KEY: without it no secret can be unsealed."

# -- The virtual environment.

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not one; name another: make PYTHON=python3.13" >&2; exit 1; }
	@echo "Making .venv (once)."
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv; exit 1; }

$(RUNTIME): requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing what the program needs into .venv."
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	@echo "Installing what tests and checks need into .venv."
	@$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@

install: $(DEV) ## only the virtual environment, with what tests and checks need

lock: $(DEV) ## write both locks from pyproject.toml (UPGRADE=1: with the newest versions)
	@$(LOCK) $(if $(UPGRADE),--upgrade) --output-file requirements.lock
	@$(LOCK) $(if $(UPGRADE),--upgrade) --extra dev --constraint requirements.lock --output-file requirements-dev.lock

clean: ## remove what make can make again; the data in .sparkledger and the passwords in .env stay
	@rm -rf .venv .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
