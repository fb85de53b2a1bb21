# make run     the dashboard on http://127.0.0.1:8501
# make test    all tests, with a real browser, in two processes of one thread each: more threads than cores mostly wait for each other. What fails runs once more
# make bench   speed of the engine, into benchmarks/results, 10 minutes; make frontier: accuracy over generation time, 20 minutes
# make cluster   Ray, for runs on a cluster (docs/cluster.md); the tests of these run where it is installed
# make style   format; make check: lint and types
# make test-exhaustive   the tests that `make test` leaves out, because they do for many networks what it does for one of each kind
# make test-oldest   the fast tests with the lower bounds of requirements.txt, in an environment of their own
# PYTHON creates .venv, once: 3.11 to 3.14. For another one, rm -r .venv first
PYTHON ?= python3
BIN := .venv/bin
SUPPORTED = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python is %d.%d: must be 3.11 or newer (make run PYTHON=python3.11)" % sys.version_info[:2] or 0)'
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: run cluster test test-exhaustive test-oldest bench frontier style check browser compiler

# `python -m`, because .venv/bin lacks the commands of packages that .venv shares with $(PYTHON)
run: .venv/installed
	$(BIN)/python -m streamlit run

cluster: .venv/installed
	$(BIN)/python $(PIP) -r requirements-cluster.txt

test: .venv/installed-dev browser compiler
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --reruns 1 -r fER

test-exhaustive: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m exhaustive

test-oldest: .venv-oldest/installed compiler
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --ignore tests/browser

bench: .venv/installed
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/diversity.py

frontier: .venv/installed
	$(BIN)/python benchmarks/frontier.py

style: .venv/installed-dev
	$(BIN)/python -m ruff format . && $(BIN)/python -m ruff check --fix .

check: .venv/installed-dev
	$(BIN)/python -m ruff format --check . && $(BIN)/python -m ruff check . && $(BIN)/python -m mypy && $(BIN)/python -m bandit -q -r -lll core dashboard streamlit_app.py

# Debian's Chromium if apt is available and may be used, else playwright's own
browser: .venv/installed-dev
	@command -v chromium >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || $(BIN)/python -m playwright install chromium

# without a compiler, the tests of compiled code are skipped
compiler:
	@command -v cc >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq gcc libc6-dev; } || true

.venv/installed: requirements.txt
	$(SUPPORTED)
	$(PYTHON) install.py
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python $(PIP) -r requirements-dev.txt
	@touch $@

.venv-oldest/installed: requirements.txt requirements-dev.txt requirements-oldest.txt requirements-cluster.txt
	$(SUPPORTED)
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python $(PIP) -r requirements-dev.txt -c requirements-oldest.txt
	@touch $@
