# One place for every command. It needs Python 3.10 or newer and make; `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help .venv demo domains test test-slow lint format arrows types docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(BIN)/openjepa  ## install the project and all its extras into .venv

# The command is the last thing that pip writes, so an installation cut short is taken up again.
$(BIN)/openjepa: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "OpenJEPA needs Python 3.10 or newer, $(PYTHON) is %d.%d: make .venv PYTHON=python3.12" % v[:2])'
	@echo "Installing into .venv: a few minutes the first time, PyTorch is large"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[all]'
	@touch $@

demo: .venv  ## render scenes, pretrain, evaluate, write a report: twelve minutes on two cores
	$(BIN)/openjepa pretrain scenes --out runs/demo --max-minutes 7 --stop-on-collapse --resume
	$(BIN)/openjepa evaluate runs/demo --train scenes --test scenes --baselines \
		--protocols knn,linear,count,depth --out runs/demo/evaluation.json
	@echo "The report is in $(CURDIR)/runs/demo/report.html"

domains: MINUTES ?= 5
domains: OUT ?= runs/domains
domains:  ## judge the default on many kinds of images (DATA=FOLDER MINUTES=5 OUT=runs/domains ARGS="--only steel")
	@test -n "$(DATA)" || { echo "make domains DATA=FOLDER: which folder of NAME-train.tar and NAME-test.tar? (docs/domains.md)"; exit 2; }
	@$(MAKE) --no-print-directory .venv
	$(BIN)/python benchmarks/domains.py "$(DATA)" --out "$(OUT)" --minutes $(MINUTES) $(ARGS)

test: .venv  ## run the quick tests (more options: ARGS="-k masks")
	$(BIN)/python -m pytest -m "not slow" --durations=10 $(ARGS)

test-slow: .venv  ## run the slow tests
	$(BIN)/python -m pytest -m slow --durations=10 $(ARGS)

lint: .venv  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv  ## mend style and format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

arrows: .venv  ## check that imports point one way
	$(BIN)/lint-imports

types: .venv  ## check the types
	$(BIN)/mypy

docs: .venv  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove caches and built files (.venv and runs/ stay)
	rm -rf site dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
