# Every target first installs what it needs into .venv, once. `make demo` and `make test` need nothing
# but Python 3.11 or newer with venv, and make. PYTHON, VENV and the variables of pip (PIP_INDEX_URL, ...)
# choose another interpreter, folder or index; `make oldest` takes those of uv (UV_INDEX_URL, ...).
export PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# one thread a worker: two workers with two threads each get in each other's way on two cores
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

# targets install into one environment
.NOTPARALLEL:

.PHONY: demo test slow lint docs dist oldest clean

demo: $(VENV)/.demo
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

slow: $(VENV)/.slow
	$(PYTEST) -m slow --durations=12

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# runs the examples that are pages of it; a warning is an error
docs: $(VENV)/.docs
	$(PYTEST) tests/test_docstrings.py
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# wheel and sdist; the wheel alone, in an empty environment, runs README's first lines
dist: $(VENV)/.dist
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	.ci/install $(VENV)-wheel dist/*.whl
	$(VENV)-wheel/bin/python -I tests/first_minute.py README.md

# the tests with the oldest packages that pyproject.toml admits
oldest: override VENV = .venv-oldest
# (what these deprecate of each other is not ours to mend)
oldest: .venv-oldest/.oldest
	$(PYTEST) -m "not slow" -W default::DeprecationWarning

$(VENV)/.demo: pyproject.toml
	.ci/install $(VENV) --group demo --editable .
	touch $@

$(VENV)/.test $(VENV)/.slow $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: pyproject.toml
	.ci/install $(VENV) --group $* --editable ".[all]"
	touch $@

$(VENV)/.dist: pyproject.toml
	.ci/install $(VENV) --group dist
	touch $@

.venv-oldest/.oldest: pyproject.toml
	.ci/install .venv-oldest uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --group test --editable ".[all]"
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-wheel build dist docs/_build docs/auto_examples docs/generated .pytest_cache .ruff_cache
