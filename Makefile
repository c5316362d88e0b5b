# Everything from a fresh clone: `make compare` or `make test`. Needs python3 >= 3.11 with venv and headers, g++.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE := $(shell find indexes -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)

.PHONY: help install compare check test test-all lint format clean

help:
	@echo "make compare    compare ra, hnsw and ivf on the built-in sample"
	@echo "make check      every index against the contract"
	@echo "make test       tests, under 10 minutes on two cores"
	@echo "make test-all   the long tests too"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format the code"

install: $(INSTALLED)

# constraints.txt pins what CI passed with; an unpinned torch would pull gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,gguf,ann,data]'
	touch $(INSTALLED)

compare: $(INSTALLED)
	$(BIN)/ra-bench compare --indexes ra,hnsw,ivf

check: $(INSTALLED)
	$(BIN)/ra-bench check all

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -m ""

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
