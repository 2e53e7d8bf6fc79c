PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
.PHONY: setup demo test check bench slow docs wheel from-wheel clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev --editable .
	touch $@

demo: setup  ## SFT and Booster in the sandbox, attacked; then the report
	$(BIN)/inoculate run quickstart --store runs/demo --workers $(WORKERS)
	$(BIN)/inoculate report runs/demo

test: setup  ## everything but the slow recipes
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: setup  ## the slow end-to-end tests
	$(BIN)/python -m pytest -m slow

check: setup  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: setup  ## ratios, measured in one process
	$(BIN)/python benchmarks/booster_step.py
	$(BIN)/python benchmarks/security_vector.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/few_shot.py --workers 2
	$(BIN)/python benchmarks/mlac_step.py
	$(BIN)/python benchmarks/mlac_step.py --memory
	$(BIN)/python benchmarks/scaling.py

docs: setup  ## the site, into site/; reads nothing from the network
	$(BIN)/python docs/_tools/gallery.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: setup  ## the package, checked for what it holds and run from where it is unpacked
	$(BIN)/python -m pip wheel . --no-deps --quiet --disable-pip-version-check --wheel-dir dist
	$(BIN)/python -m pytest tests/test_wheel.py

EMPTY := build/from-wheel
from-wheel: wheel  ## the wheel in an empty environment: the demo and the tests from there, with no source beside them
	rm -rf $(EMPTY) && mkdir -p $(EMPTY)
	$(PYTHON) -m venv $(EMPTY)/venv
	$(EMPTY)/venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(EMPTY)/venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev dist/*.whl
	cp -r tests docs benchmarks README.md CONTRIBUTING.md mkdocs.yml pyproject.toml $(EMPTY)
	cd $(EMPTY) && venv/bin/inoculate run quickstart --store runs/demo --workers $(WORKERS) && venv/bin/inoculate report runs/demo
	cd $(EMPTY) && venv/bin/python -m pytest -n 2 -m "not slow" --ignore tests/test_wheel.py

clean:
	rm -rf $(VENV) runs build dist site
