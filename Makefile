# What a checkout is worked with. `make demo` and `make test` need nothing but Python 3.11 or newer, make, and a
# package registry; both begin with `make install`'s virtual environment and do nothing again that is done already.

PYTHON ?=
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
ARGS ?=
# Test processes: most tests wait for servers, so there is room for one more than two cores would have.
WORKERS ?= 3

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## Show what there is
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The first of these that is 3.11 or newer, PYTHON first; and it must be able to make an environment with pip in it.
$(BIN)/python:
	@set -e; found=; seen=; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3.14 python3 python); do \
	  command -v "$$candidate" >/dev/null 2>&1 || continue; \
	  version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  seen="$$seen $$candidate ($$version)"; \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || continue; \
	  "$$candidate" -c 'import venv, ensurepip' 2>/dev/null || { novenv="$$candidate"; continue; }; \
	  found=$$candidate; break; \
	done; \
	if [ -z "$$found" ]; then \
	  if [ -n "$$novenv" ]; then \
	    echo "make: $$novenv cannot make virtual environments: install its venv module (Debian: apt install $$(basename $$novenv)-venv)" >&2; \
	  else \
	    echo "make: Python 3.11 or newer is needed, and there is$${seen:- none}: install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  fi; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$found"; \
	"$$found" -m venv --clear $(VENV)

# Two stamps: the demo needs no tools of development. The one of development is newer than both, and stands for both.
$(VENV)/.installed: pyproject.toml hatch_build.py constraints.txt | $(BIN)/python
	@echo "installing (once; the next time this takes no time)"
	@if [ ! -e $(VENV)/.installed-dev ] || [ -n "$$(find pyproject.toml hatch_build.py constraints.txt -newer $(VENV)/.installed-dev)" ]; then \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . ; \
	fi
	@touch $@

$(VENV)/.installed-dev: pyproject.toml hatch_build.py constraints.txt | $(BIN)/python
	@echo "installing, with what tests need (once; the next time this takes no time)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed

.PHONY: install
install: $(VENV)/.installed-dev ## Make .venv and install everything, tools of development too

.PHONY: demo
demo: $(VENV)/.installed ## Start a mesh, write and publish an article into out/demo, stop everything
	@$(BIN)/pantheon demo --out $(OUT)

.PHONY: test
test: install ## Run all tests, on servers that they start themselves (ARGS="-k name" for some)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Apart from `make test`: it builds the images and needs an engine that runs them.
.PHONY: containers-test
containers-test: install ## Build the images, run meshes of containers, kill some (needs Docker)
	@reason=$$($(BIN)/python -c 'from tests.containers.engine import why_no_engine; print(why_no_engine())'); \
	if [ -n "$$reason" ]; then \
	  echo "make: NOT RUN: no container engine with compose and buildx responds ($$reason)"; \
	else \
	  $(BIN)/python -m pytest -m containers tests/containers $(ARGS); \
	fi

.PHONY: lint
lint: install ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy protocol pantheon orchestrator_agent testkit agents migrations tests examples benchmarks docker hatch_build.py
	@$(BIN)/lint-imports --no-logo --no-cache

.PHONY: bench
bench: install ## Measure speed beside the bare loop (ARGS="--quick", "--peers", "--growth")
	@mkdir -p out
	@$(BIN)/python -m benchmarks --json out/bench.json --chart out/bench.svg $(ARGS)

.PHONY: wheel
wheel: install ## Build dist/*.whl
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## Remove what was made, .venv and out too; refused while a mesh runs here
	@for lock in .pantheon/lock $(OUT)/.mesh/lock; do \
	  if [ -s "$$lock" ] && kill -0 "$$(cat "$$lock")" 2>/dev/null; then \
	    echo "make: a mesh runs on $$(dirname "$$lock") (pid $$(cat "$$lock")): stop it first" >&2; exit 1; \
	  fi; \
	done
	rm -rf $(VENV) out dist build .pantheon .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
