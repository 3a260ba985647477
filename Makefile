# Two commands matter: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
OUT ?= tsprune-run

.PHONY: demo test test-heavy pytest lint clean

demo: $(VENV)/.runtime
	$(VENV)/bin/tsprune specialize --out $(OUT)

# Type checks take one core for a minute or two: they run beside the tests.
test: $(VENV)/.development
	$(MAKE) --no-print-directory --jobs 2 lint pytest

# One worker and one thread for each core; files stay whole, as their tests share what is slow to set up.
pytest: $(VENV)/.development
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadfile

test-heavy: $(VENV)/.development
	$(VENV)/bin/python -m pytest -m heavy

lint: $(VENV)/.development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .mypy_cache .ruff_cache .hypothesis
