# make help            what can be made
# Everything lives in .venv and var/; nothing else is touched.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

$(READY): pyproject.toml $(wildcard requirements/*.txt)
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found. Set PYTHON=/path/to/python." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (once; about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt -c requirements/dev.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet -r requirements/dev.txt
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps -e .
	@touch $(READY)

setup: $(READY)  ## make the virtual environment

demo: $(READY)  ## attack, train, defend: the main job end to end (KEEP=1 leaves the service up)
	@$(BIN)/bdlab demo $(if $(KEEP),--keep)

up: $(READY)  ## start the service (API, relay, workers, broker) on this machine
	@$(BIN)/bdlab up

test: $(READY)  ## run all tests
	@$(BIN)/python -m pytest

check: $(READY)  ## lint, types and architecture
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## rewrite the code in the house style
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY)  ## run the benchmarks
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

lock: $(READY)  ## pin the requirements anew
	@cd requirements && for set in api "api worker" "api worker dev"; do \
	  name=$$(echo $$set | awk '{print $$NF}'); \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url $(if $(UPGRADE),--upgrade) \
	    -o $$name.txt $$(for s in $$set; do echo $$s.in; done) || exit 1; done

clean:  ## remove the environment and everything the service wrote
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache

help:  ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup demo up test check format bench lock clean help
