# `make demo` and `make test` work on a fresh clone: they make .venv first. Needs Python 3.11 to 3.13.
PYTHON ?= $(shell for v in 3.12 3.11 3.13; do python$$v --version >/dev/null 2>&1 && { echo python$$v; break; }; done || echo python3)
BIN := .venv/bin

.PHONY: demo test check benchmark clean

demo: .venv/.demo
	$(BIN)/python -m pwoa_plugin.demo --out demo-report

test: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "pwoa-plugin needs Python 3.11 to 3.13, make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.demo: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

.venv/.test: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	touch $@

clean:
	rm -rf .venv demo-report dist build
