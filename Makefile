# make        install into .venv, and say what comes next
# make demo   install, and train four attempts on the built-in sample
# make shell  install, and open a shell in which python and tensorboard are those of .venv
# make test   install the test extras as well and run the whole suite
# make fast   the same without what takes more than a few seconds
# make lint   ruff, mypy and the import rules
# make docs   the pages of docs/ as docs/build/index.html, with every key and every Python name
# make notebooks  execute the notebooks on the sample and save their outputs; ARGS=FILE: one of them
# make bench  the benchmarks; their tables go into benchmarks/README.md
# make clean  remove .venv; outputs/ stays
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
# PyTorch's own index, which has it for the CPU alone; TORCH_INDEX= takes the registry's in any case
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# a process per core, with one thread each: two with two threads each take longer than one after the other
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
UV := $(shell command -v uv 2>/dev/null)
PIP := $(BIN)/python -m pip install --disable-pip-version-check
NEXT = @printf '%s\n' 'installed. Next:' \
	'  make demo                                      four attempts on the built-in sample' \
	'  make shell                                     a shell for the commands of the README' \
	'  $(BIN)/python -m mvtec_lab task=doctor      what this machine has and lacks' \
	'  $(BIN)/python -m mvtec_lab --help           every command and key'

# Install the package with the extras of $(1). uv, where there is one, knows in 2 seconds what to install, pip in 40; it
# reads none of pip's own settings, as a mirror, so that pip has a try as well.
define install
	@echo 'installing into .venv: one to four minutes, 3 GB (6 GB with CUDA); nothing outside of it is changed'
	@index=$$($(BIN)/python .ci/torch_index '$(TORCH_INDEX)' constraints.txt) && \
	more=$${index:+--extra-index-url $$index} && \
	set -x && \
	{ $(if $(UV),$(UV) pip install --python $(BIN)/python $$more --index-strategy unsafe-best-match -c constraints.txt -e '.$(1)' ||) \
	$(PIP) $$more -c constraints.txt -e '.$(1)'; }
endef

.PHONY: install demo shell test fast lint docs notebooks bench clean

install: .venv/installed
	$(NEXT)

demo: .venv/installed
	$(BIN)/python -m mvtec_lab -m attempt=finetune,augment,earlystop,cosine $(ARGS)

# bash reads its own settings first, which may set PATH
shell: .venv/installed
	@echo 'a shell of .venv: exit leaves it'
	@echo '[ -f ~/.bashrc ] && . ~/.bashrc; . "$(CURDIR)/$(BIN)/activate"' >.venv/bashrc
	@case "$$SHELL" in \
	*bash) "$$SHELL" --rcfile .venv/bashrc -i ;; \
	*) VIRTUAL_ENV="$(CURDIR)/.venv" PATH="$(CURDIR)/$(BIN):$$PATH" "$${SHELL:-sh}" -i ;; \
	esac

test: .venv/installed-test
	$(TESTS) -m "" $(ARGS)

fast: .venv/installed-test
	$(TESTS) $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: .venv/installed-docs
	$(BIN)/sphinx-build -q -W --keep-going docs docs/build
	@echo docs/build/index.html

notebooks: .venv/installed-test
	$(BIN)/python notebooks/execute.py $(ARGS)

bench: .venv/installed
	$(BIN)/python -m benchmarks $(ARGS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(call install,)
	@touch $@

.venv/installed-test: .venv/installed
	$(call install,[test])
	@touch $@

.venv/installed-docs: .venv/installed
	$(call install,[docs])
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache docs/build docs/generated
