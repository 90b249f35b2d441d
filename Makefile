# make demo   install into .venv and train four attempts on the built-in sample
# make test   install the test extras as well and run the whole suite
# make lint   ruff, mypy and the import rules
# make bench  the benchmarks; their tables go into benchmarks/README.md
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# a process per core, with one thread each: two with two threads each take longer than one after the other
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: demo test fast lint bench clean

demo: .venv/installed
	$(BIN)/python -m mvtec_lab -m attempt=finetune,augment,earlystop,cosine $(ARGS)

test: .venv/installed-test
	$(TESTS) -m "" $(ARGS)

fast: .venv/installed-test
	$(TESTS) $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python -m benchmarks $(ARGS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[test]"
	touch $@

clean: # outputs/ stays: nobody wants to lose what was trained
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
