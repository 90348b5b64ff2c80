# Each target makes .venv, installs what it needs and runs one job. README.md has the plain lines.
# --no-compile: Python compiles the few modules that are used as it meets them; pip would take 40 s to compile all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINES := --line-length 120

.PHONY: demo test lint docs bench

demo: $(VENV)/demo.installed
	$(BIN)/python -m examples.leukemia run

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/test.installed
	$(BIN)/ruff format --check $(LINES) .
	$(BIN)/ruff check $(LINES) .
	$(BIN)/mypy

docs: $(VENV)/docs.installed
	$(BIN)/sphinx-build -W -q docs docs/_build

bench: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.token_profile
	$(BIN)/python -m benchmarks.lora
	$(BIN)/python -m benchmarks.quantized
	$(BIN)/python -m benchmarks.retrieval
	$(BIN)/python -m benchmarks.training

$(VENV)/%.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile -c constraints.txt -e ".[$*]"
	touch $@
