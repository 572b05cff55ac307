# `make demo` and `make test` set up .venv themselves; nothing but packages is fetched.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/installed
	$(BIN)/bartleby demo

test: .venv/installed
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: demo test test-slow lint
