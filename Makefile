# Everything from a fresh clone: `make compare` or `make test`. Needs python3 >= 3.11 with venv and headers, g++.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
NATIVE := $(shell find indexes -name '*.cpp' -o -name '*.hpp' -o -name CMakeLists.txt)

.PHONY: help install compare check test test-all asv asv-smoke lint format clean

help:
	@echo "make install    make .venv and install into it; what the others begin with"
	@echo "make compare    compare ra, hnsw and ivf on the built-in sample"
	@echo "make check      every index against the contract"
	@echo "make test       tests, under 10 minutes on two cores"
	@echo "make test-all   the long tests too"
	@echo "make asv        measure this commit with asv in an environment of its own, write .asv/html"
	@echo "make asv-smoke  every asv benchmark once, here; fails where nothing was measured"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format the code"
	@echo "make clean      remove .venv, builds and caches"

install: $(INSTALLED)

# constraints.txt pins what CI passed with; an unpinned torch would pull gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,gguf,ann,report,data]'
	touch $(INSTALLED)

compare: $(INSTALLED)
	$(BIN)/ra-bench compare --indexes ra,hnsw,ivf

check: $(INSTALLED)
	$(BIN)/ra-bench check all

test: $(INSTALLED)
	$(BIN)/python -m pytest -q

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -q -m ""

asv: $(INSTALLED)
	$(BIN)/python -m asv machine --yes
	$(BIN)/python -m asv run --show-stderr 'HEAD^!'
	$(BIN)/python -m asv publish
	@echo "look at it with: $(BIN)/python -m asv preview"

asv-smoke: $(INSTALLED)
	$(BIN)/python -m ra_bench.asv_suite.smoke

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
