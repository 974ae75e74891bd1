# `make demo` and `make test` set up everything they need on a machine with Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-all check lint types bench web clean install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "edgekit needs Python >= 3.10")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the main job, offline, in a few minutes
	$(BIN)/edgekit demo -o demo --overwrite

# Two workers with a thread each: two threads of one small net mostly wait for each other. Files in the order of conftest.
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS) -m "not long"

test-all: $(STAMP)  ## with those that take several minutes each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(WORKERS)

check: lint types test

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not see the editable install's import hook: give mypy a tree of links that looks like the package.
types: $(STAMP)
	rm -rf build/types && mkdir -p build/types/edgekit
	for f in edgekit/*; do ln -s ../../../$$f build/types/edgekit/; done
	for d in models compress export bench; do ln -s ../../../$$d build/types/edgekit/; done
	$(BIN)/mypy build/types/edgekit

bench: $(STAMP)  ## against the exporters of torch, ONNX Runtime and LiteRT as they come
	$(BIN)/python -m edgekit.bench.against_naive -o bench-results.md --overwrite

# npm's lock file pins the bytes; nothing of these packages is run here, they are only copied.
web: $(STAMP)  ## the runtimes that `edgekit bench --device web` serves to a browser
	mkdir -p build/web && cp bench/devices/web/package.json bench/devices/web/package-lock.json build/web/
	npm ci --prefix build/web --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/python -m edgekit.bench.devices.web.assets build/web/node_modules

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
