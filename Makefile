# `make repro` and `make test` are all that a newcomer needs; both install first, and only what has changed.
# make cannot quote a path in its own lists, so every path here is relative to this folder, whatever that is called.
ifeq ($(wildcard requirements.lock),)
$(error make is at work in $(CURDIR), which is not the checkout; use make -C)
endif
ifneq ($(findstring :,$(CURDIR)),)
$(error $(CURDIR): no program is found in a folder with a colon in its name; give the checkout another one)
endif

PYTHON := .venv/bin/python
# Stages call `python`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# One run computes on one thread; cells run side by side. More threads would only fight each other.
export OMP_NUM_THREADS := 1

.PHONY: repro test lint lab docs linkcheck clean

repro: .venv/.installed
	$(PYTHON) -m dvc repro

test: .venv/.installed
	$(PYTHON) -m pytest

lint: .venv/.installed
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

lab: .venv/.installed
	$(PYTHON) -m jupyterlab notebooks

# The site, into build/docs; warnings are errors. Links to other places are looked up by linkcheck alone.
docs: .venv/.docs
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

linkcheck: .venv/.docs
	$(PYTHON) -m sphinx --fail-on-warning --keep-going --quiet --builder linkcheck docs build/linkcheck

.venv/.docs: .venv/.installed requirements-docs.lock
	$(PYTHON) -m pip install --quiet --no-deps --requirement requirements-docs.lock
	touch $@

.venv/.installed: requirements.lock pyproject.toml
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --requirement requirements.lock
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv build docs/notebooks
