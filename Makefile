# Every target creates the virtual environment that it needs, so that only Python 3.10 or newer must be installed.
#   make test PYTHON=python3.12        uses another interpreter
#   make test VENV=/tmp/venv           puts the virtual environment into another folder
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPHINXOPTS ?= -W --keep-going

.DEFAULT_GOAL := help
.PHONY: help demo test venv install dmcontrol lint format type imports docs commit-checks clean

help:
	@echo "make demo           train MBPO on a MuJoCo task and compare it with SAC"
	@echo "make test           run all tests except those marked 'expensive'"
	@echo "make install        create $(VENV) with the package only (make venv: with the tools for tests and docs as well)"
	@echo "make dmcontrol      create $(VENV)-dmcontrol for the tasks of the DeepMind Control Suite"
	@echo "make commit-checks  format the code, then check lint, types and imports"
	@echo "make docs           build the documentation into docs/_build/html; warnings are errors"
	@echo "make clean          remove everything that was built, including $(VENV)"

# venv creates pip last, so a virtual environment without pip is incomplete and is created again
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# The files .installed and .installed-dev mark a finished installation; make repeats it when a prerequisite changes
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install -c constraints.txt -e '.[tests,docs]'
	touch $(VENV)/.installed $@

# dm_control does not run with the tested version of MuJoCo, so it gets a virtual environment of its own
$(VENV)-dmcontrol/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-dmcontrol
	grep -v '^mujoco' constraints.txt > $(VENV)-dmcontrol/constraints.txt
	$(VENV)-dmcontrol/bin/python -m pip install -c $(VENV)-dmcontrol/constraints.txt -e '.[dmcontrol]'
	touch $@

dmcontrol: $(VENV)-dmcontrol/.installed

install: $(VENV)/.installed

venv: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# Two processes, with one PyTorch thread each
test: export OMP_NUM_THREADS = 1
test: export MKL_NUM_THREADS = 1
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not expensive" -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

type: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -b html $(SPHINXOPTS) docs docs/_build/html

# One after the other, even with `make -j`, because the checks must see the formatted files
commit-checks:
	$(MAKE) format
	$(MAKE) lint
	$(MAKE) type
	$(MAKE) imports

clean:
	rm -rf $(VENV) $(VENV)-dmcontrol build dist *.egg-info docs/_build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find sb3_mbrl tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
