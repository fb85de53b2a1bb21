# make run     the dashboard on http://127.0.0.1:8501
# make test    everything, with a real browser, in two processes of one thread: more threads than cores mostly wait for each other
# make bench   speed of the engine, into benchmarks/results, 10 minutes; make frontier: accuracy over generation time, 20 more
# make style   format; make check: lint and types
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test bench frontier style check browser compiler

run: .venv/installed
	$(BIN)/streamlit run

test: .venv/installed-dev browser compiler
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

bench: .venv/installed
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/qat.py
	$(BIN)/python benchmarks/diversity.py

frontier: .venv/installed
	$(BIN)/python benchmarks/frontier.py

style: .venv/installed-dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: .venv/installed-dev
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/bandit -q -r -lll core dashboard streamlit_app.py

# Debian's Chromium where there is apt and the right to use it, else the one that playwright brings
browser: .venv/installed-dev
	@command -v chromium >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || $(BIN)/playwright install chromium

# without one the tests of what it compiles are skipped
compiler:
	@command -v cc >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq gcc libc6-dev; } || true

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python is %d.%d: needed is 3.11 or newer (make run PYTHON=python3.11)" % sys.version_info[:2] or 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
