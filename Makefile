# make help            what can be made
# Everything lives in .venv and var/; nothing else is touched.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FRONTEND := app/dashboard/static
# Real data sets for tests: unpacked and imported once from $(SHARED)/data, where there is such a folder.
SHARED ?= ../shared
DATA := $(or $(BDLAB_DATA_DIR),var/data)
UNPACK := $(wildcard $(SHARED)/data/unpack.py)
ARGS ?= -n 3 --dist loadgroup --no-loadscope-reorder $(if $(LONG),,-m "not long")
REAL := $(if $(UNPACK),$(DATA)/cifar10.safetensors $(DATA)/gtsrb.safetensors)

# The service and its tests are many processes: told not to keep compiled sources, each would spend half of its time on
# compiling them anew.
unexport PYTHONDONTWRITEBYTECODE

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

setup: $(READY)  ## create the virtual environment

demo: $(READY)  ## run the demo: attack, train, defend, end to end (KEEP=1 leaves the service running)
	@$(BIN)/bdlab demo $(if $(KEEP),--keep)

up: $(READY)  ## start the service (API, relay, workers, broker) on this machine
	@$(BIN)/bdlab up

test: $(READY) $(REAL)  ## run the tests in three processes (LONG=1: also the slow ones), or those in ARGS in one; tests on real data require make data
	@BDLAB_DATA_DIR="$(abspath $(DATA))" $(BIN)/python -m pytest $(ARGS)

data: $(READY) $(REAL)  ## import CIFAR-10 and GTSRB into var/data, if ../shared/data has them
	@test -n "$(UNPACK)" || { echo "There is no $(SHARED)/data/unpack.py; use: $(BIN)/bdlab data fetch cifar10" >&2; exit 1; }

$(DATA)/%.safetensors: | $(READY)
	@$(BIN)/python $(UNPACK) $(DATA)/unpacked-$* $*
	@BDLAB_DATA_DIR="$(abspath $(DATA))" $(BIN)/bdlab data import $(DATA)/unpacked-$*/$*.npz --as $*
	@rm -r $(DATA)/unpacked-$*

check: $(READY)  ## run the linters, the type checker and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/oxfmt --check $(FRONTEND)
	@$(BIN)/oxlint $(FRONTEND)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/oxfmt $(FRONTEND)
	@$(BIN)/ruff check --fix .

bench: $(READY)  ## run the benchmarks
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

screenshots: $(READY)  ## save a screenshot of every dashboard page in var/screenshots
	@$(BIN)/python -m tests.dashboard.screenshots

figures: $(READY) $(REAL)  ## draw the figures of attacks and defenses for the guides
	@BDLAB_DATA_DIR="$(abspath $(DATA))" $(BIN)/python docs/draw.py $(ARGS)

notebook: $(READY)  ## run the notebook against the service of `make up`, and store it with its outputs
	@$(BIN)/jupyter-execute --inplace examples/notebooks/first-steps.ipynb

lock: $(READY)  ## update the pinned requirements
	@cd requirements && for set in "client server" "client server worker" "client server worker frames mlflow timm dev"; do \
	  name=$$(echo $$set | awk '{print $$NF}'); \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --override not-locked.txt $(if $(UPGRADE),--upgrade) \
	    -o $$name.txt $$(for s in $$set; do echo $$s.in; done) || exit 1; done

clean:  ## remove the environment and everything the service wrote
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup demo up test data check format bench screenshots figures notebook lock clean help
