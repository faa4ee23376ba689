# Each target makes .venv when it is missing, brings it up to date when pyproject.toml has changed,
# and reuses it otherwise. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
# The newest Python found, for `make test-newest`.
NEWEST ?= $(shell for v in 3.13 3.12; do \
  for p in python$$v $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$v.*/bin/python; do \
    if $$p -c 'import ensurepip' >/dev/null 2>&1; then echo $$p; exit; fi; done; done)
NEWEST_VENV ?= .venv-newest

BIN = $(VENV)/bin
# Compilation keeps one core busy: two workers on two cores finish in little more than half the time.
PARALLEL = -n auto --dist loadfile
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-newest print-newest site serve lint format bench picture new clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(VENV)/.demos  ## set up, run every demo, write mlnotes-out/index.html
	$(BIN)/mlnotes tour

test: $(VENV)/.test  ## set up, run all tests, the site's included
	$(BIN)/python -m pytest $(PARALLEL)

# Compiled as JAX's own tests are: quickly. `make test` runs programs as users do, optimised.
test-newest: $(NEWEST_VENV)/.newest  ## the tests without the site, on the newest Python, JAX and Flax
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(NEWEST_VENV)/bin/python -m pytest $(PARALLEL) -m "not site"

print-newest:
	@echo $(NEWEST)

site: $(VENV)/.docs  ## build the documentation into site/
	$(BIN)/python -m mlnotes_site build

serve: $(VENV)/.docs  ## build the documentation, serve it, and rebuild on change
	$(BIN)/python -m mlnotes_site serve

lint: $(VENV)/.lint  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(VENV)/.lint  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.bench  ## time ours against the peers: make bench CASE=optimization/critical_points
	$(BIN)/python -m benchmarks $(CASE)

picture: $(VENV)/.demos  ## draw the picture of README.md again
	$(BIN)/python tools/readme_picture.py

new:  ## start a concept: make new CONCEPT=chapter/concept
	$(PYTHON) tools/new_concept.py $(CONCEPT)

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(NEWEST_VENV) .cache site site-zensical mlnotes-out dist
	rm -rf .pytest_cache .ruff_cache .hypothesis docs/assets/katex docs/assets/notebooks

# --- environments. A mark such as .venv/.test says that its extras are installed.

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.%: $(VENV)/bin/python pyproject.toml mlnotes_jax/__init__.py
	@echo "Installing what '$*' needs into $(VENV) ..."
	$(BIN)/python $(PIP_INSTALL) --editable '.[$(EXTRAS_$*)]'
	@touch $@

EXTRAS_demos = demos
EXTRAS_test = test,docs
EXTRAS_docs = docs
EXTRAS_lint = lint,docs,test
EXTRAS_bench = bench

$(NEWEST_VENV)/.newest: pyproject.toml
	@test -n "$(NEWEST)" || { echo "No Python 3.12 or 3.13 was found: make test-newest NEWEST=/path"; exit 1; }
	$(NEWEST) -m venv --clear $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python $(PIP_INSTALL) --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@
