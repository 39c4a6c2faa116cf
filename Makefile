# Every command of the repository. Paths are relative on purpose: a checkout may lie in a folder with a space.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
# An activated environment of somebody else must not leak in.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME UV_PROJECT_ENVIRONMENT

BIN := .venv/bin
PYTHON := $(BIN)/python
# Arguments for pytest: make test ARGS="-k journal -x"
ARGS ?=
# How often everything is killed: make faults ROUNDS=50
ROUNDS ?= 50
# Only the benchmarks whose name starts so: make bench ONLY=journal
ONLY ?=

.PHONY: help setup generate format check check-lock check-format check-types check-protos check-deployment \
	check-docs test test-slow test-faults faults demo bench up down clean

help: ## List every target
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv as uv.lock says (needs Python 3.11 or newer; fetches uv when it is missing)
	@bash scripts/setup.sh

generate: setup ## Write anew what is generated: the code of protos/, the blocking face of the SDK
	$(PYTHON) scripts/generate.py
	$(PYTHON) scripts/errors.py
	$(PYTHON) scripts/roles.py
	$(PYTHON) scripts/generate_sync.py

format: setup ## Format and repair what ruff can repair
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: check-lock check-format check-types check-protos check-deployment check-docs ## Everything that needs no server: the six below

check-lock: setup ## See that uv.lock is what the pyproject.toml files ask for
	$(BIN)/uv lock --check --offline

check-format: setup ## Ruff: lint rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types: setup ## Mypy, strict, over all code and all tests
	$(PYTHON) -m mypy

check-protos: setup ## Lint the protos, refuse breaking changes and stale generated code
	$(BIN)/buf lint protos
	$(PYTHON) scripts/check_breaking.py
	$(PYTHON) scripts/generate.py --check
	$(PYTHON) scripts/generate_sync.py --check

check-deployment: setup ## Validate docker-compose.yml and k8s/ without a network
	$(PYTHON) scripts/validate_compose.py
	$(PYTHON) scripts/validate_kubernetes.py

check-docs: setup ## Find dead links between the pages
	$(PYTHON) scripts/errors.py --check
	$(PYTHON) scripts/roles.py --check
	$(PYTHON) scripts/check_docs.py

test: setup ## Run the tests against real servers (ARGS="-k name" for some)
	$(PYTHON) -m pytest -m "not faults and not slow" $(ARGS)

test-faults: setup ## Run the tests that kill, freeze or fill up servers and services
	$(PYTHON) -m pytest -m faults $(ARGS)

test-slow: setup ## Run the tests that wait for what takes long
	$(PYTHON) -m pytest -m "slow and not faults" $(ARGS)

faults: setup ## Kill servers and services at random while a script logs a known series (ROUNDS=50)
	ROUNDS=$(ROUNDS) $(PYTHON) -m pytest tests/faults/test_random_kills.py $(ARGS)

demo: setup ## Run the main job: train, register, deploy, score
	$(PYTHON) scripts/demo.py

bench: setup ## Measure, and write bench-results.json (ONLY=prefix for some)
	$(PYTHON) -m tests.bench --only "$(ONLY)"

up: setup ## Start Stellwerk on this machine, in the background
	$(BIN)/stellwerk up --detach

down: setup ## Stop what `make up` started; the data stays
	$(BIN)/stellwerk down

clean: ## Remove the environment, the tools and all caches; runs' data stays
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bench-results.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
