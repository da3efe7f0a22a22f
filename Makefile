# `make repro` and `make test` are all that a newcomer needs; both install first, and only what has changed.
VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
# One run computes on one thread; cells run side by side. More threads would only fight each other.
export OMP_NUM_THREADS := 1

.PHONY: repro test lint lab clean

repro: $(VENV)/.installed
	dvc repro

test: $(VENV)/.installed
	pytest

lint: $(VENV)/.installed
	ruff check . && ruff format --check . && mypy

lab: $(VENV)/.installed
	jupyter lab notebooks

$(VENV)/.installed: requirements.lock pyproject.toml
	python3 -m venv $(VENV)
	pip install --quiet --requirement requirements.lock
	pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build
