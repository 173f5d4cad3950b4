# The README's commands. Everything runs in .venv, which is made once and follows requirements.lock.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help install demo results test lint docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/installed  ## make .venv with the locked dependencies

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "needs Python 3.11 to 3.13; give one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

demo: install  ## adapt a network to the built-in target scenes
	dvc repro
	@cag summary

results: install  ## several seeds of params.yaml, and the oracle
	cag results

test: install lint  ## lint and tests
	OMP_NUM_THREADS=1 python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install  ## style
	ruff check .
	ruff format --check .

docs: install  ## build the documentation: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

bench: install  ## measure kernels, training step, memory, resuming
	python -m benchmarks.kernels
	python -m benchmarks.training --steps 9
	python -m benchmarks.memory --images 300,3000 --out .scratch/memory.png
	python -m benchmarks.resume --kills 1 --processes 1

clean:  ## remove what the pipeline wrote, but not DVC's cache
	rm -rf .scratch data/index data/prepared data/models data/curves data/features data/rounds data/pseudo_label_evaluation data/watch data/evaluation data/report data/results data/oracle
