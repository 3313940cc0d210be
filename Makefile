# Two commands do everything on a machine that has Python 3.11 or newer:
#   make quickstart   install, search, show the front, export its knee, load it back
#   make test         install, lint, type-check, test
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/quickstart
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test lint zoo clean

quickstart: $(VENV)/installed
	$(BIN)/evomerge run quickstart --out $(RUN)
	test -d $(RUN)/export || $(BIN)/evomerge export $(RUN) --pick knee --out $(RUN)/export --rescore

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

zoo: $(VENV)/installed-dev
	$(BIN)/evomerge zoo build --out zoo-build

clean:
	rm -rf $(VENV) runs zoo-build

# torch first and by itself: as a dependency pip would take the newest CUDA build.
$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evomerge needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/torch pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/installed
