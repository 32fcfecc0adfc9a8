# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# a file at a time, in as many processes as there are cores, but not more than four
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-long tutorials bench bench-pipeline bench-disk bench-gpu lint setup oldest clean

demo: setup
	$(BIN)/python -m tutorials.demo

# threads that wait leave the processor to the processes beside them
test test-long: export OMP_WAIT_POLICY ?= passive

test: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# what takes minutes: bundles as a user runs them, notebooks, many more random cases, and power cuts, which need root
test-long: setup
	$(BIN)/python -m pytest -m long tests $(SIDE_BY_SIDE)

# the notebooks from top to bottom; they must print what they show
tutorials: setup
	$(BIN)/python -m pytest -m long tests/test_tutorials.py

# every peer in a process of its own, in turn; results go to benchmarks/results
bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.planned_memory
	$(BIN)/python -m benchmarks.small_windows
	$(BIN)/python -m benchmarks.background
	$(BIN)/python -m benchmarks.workers

# whole bundles beside MONAI's, from file to file; needs 20 GiB of memory
bench-pipeline: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.pipeline

# needs 30 GB in the folder for temporary files
bench-disk: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,lazy]'
	$(BIN)/python -m benchmarks.out_of_core

bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house

# the exactness tests and the notebooks with the oldest MONAI that pyproject.toml accepts; its own limit on torch is out
# of date
oldest: export OMP_WAIT_POLICY ?= passive
oldest: setup $(OLDEST)/.done
	$(OLDEST)/bin/python -m pytest tests/run/test_exactness.py tests/run/test_rounding.py tests/api/test_slices.py tests/plan/test_plan.py
	$(OLDEST)/bin/python -m pytest -m long tests/test_tutorials.py --numprocesses 2 --dist load

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bundle,demo,test]'
	touch $@

$(OLDEST)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bundle,demo,test]'
	$(OLDEST)/bin/python -m pip install --quiet --no-deps 'monai==1.5.0'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) data demo eval build *.egg-info
