# Every target works in a fresh clone: it makes .venv with what the project needs first. PYTHON=... skips that.
VENV := .venv
PYTHON ?= $(VENV)/bin/python
export OMP_NUM_THREADS ?= 2
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 3000

.PHONY: demo test test-slow lint bench check docs install clean

install: $(if $(filter $(VENV)/bin/python,$(PYTHON)),$(VENV)/installed)

$(VENV)/installed: pyproject.toml
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: install
	rm -rf runs/demo
	$(PYTHON) -m fedbilevel run demo --out runs/demo

# one process per core with one thread each; what takes more than ten seconds or starts Ray, Flower or processes that
# are killed is `slow`; of these what can is `beside`, and runs like all others, and the rest alone
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

test: install
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "not slow" --numprocesses $(WORKERS) --dist worksteal

test-slow: install
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m "slow and beside" --numprocesses $(WORKERS) --dist worksteal
	$(PYTHON) -m pytest -m "slow and not beside"

bench: install
	KINETO_LOG_LEVEL=99 $(PYTHON) -m bench

check: install
	$(PYTHON) -m fedbilevel check

# the site, into build/site: open build/site/index.html
docs: install
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -W ignore -m mkdocs build --strict

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	MYPYPATH=docs/site $(PYTHON) -m mypy docs/site

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
