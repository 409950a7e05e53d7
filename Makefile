# Two commands from a bare machine: `make demo` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

PEER := .peers/clip-retrieval
POLARS := .peers/polars
LOWEST := .peers/lowest

.PHONY: demo pairs test coverage test-slow test-kills fuzz lowest clients bench gpu gpu-wheels peers lint browser atlas clean

demo: $(READY)
	$(BIN)/curate demo

# Drawn pictures with captions and a small CLIP that knows them, for the recipes datacomp and laion.
pairs: $(READY)
	$(BIN)/python -W ignore benchmarks/pairs.py curated-pairs

# Three workers on two cores, because many tests wait: for locks, for processes, for Ray. Each worker and
# each of its child processes computes with one thread; the results do not depend on it.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist worksteal -m "not slow and not kills"

test: lint browser
	$(PYTEST)

# The same tests, and which lines of the package they ran: 91% at least.
coverage: lint browser
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=91

# Minutes, not seconds: CIFAR-10 and other full-size checks.
test-slow: $(READY) atlas
	$(BIN)/pytest -q -m slow -s

# Killed more than two hundred times, at every commit point and at random moments.
test-kills: $(READY)
	$(BIN)/pytest -q -m kills -s

# The fuzzer of `make test` for a million runs and more.
fuzz: $(READY)
	CURATE_FUZZ_RUNS=1000000 $(BIN)/pytest -q tests/fuzz

# The lower bounds of pyproject.toml: an environment that has these versions in front of those of .venv,
# from which torch and FAISS are taken, and tests of what uses them.
# Old libraries call what new ones that they need have deprecated: such warnings are no errors here.
LOWEST_TESTS := tests/catalog/test_records.py tests/catalog/test_provenance.py tests/formats/test_tar.py \
	tests/storage/test_web.py tests/stages/test_score.py tests/stages/test_select.py tests/stages/test_query.py

lowest: $(LOWEST)/.ready
	OMP_NUM_THREADS=1 PYTHONPATH=. $(LOWEST)/bin/python -m pytest -q -W ignore::DeprecationWarning $(LOWEST_TESTS)

$(LOWEST)/.ready: pyproject.toml $(READY)
	rm -rf $(LOWEST)
	$(BIN)/python -m venv --without-pip $(LOWEST)
	$(BIN)/python -m pip --python $(LOWEST)/bin/python install --quiet --no-deps $$($(BIN)/python benchmarks/lower_bounds.py)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(LOWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_base.pth
	@touch $(LOWEST)/.ready

# Exports, catalogs and Parquet files read by other programs, each in an environment of its own; prints
# the table of docs/clients.md.
clients: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/clients.py

# Every stage beside its limit and a peer, about an hour alone on the machine:
# docs/performance.md and benchmarks/results.json.
bench: $(READY) peers
	$(BIN)/python -W ignore benchmarks/run.py

# Feeding a GPU, eight minutes on one H100; writes gpu.json. Without a GPU at toy size.
gpu: $(READY)
	PYTHONPATH=. $(BIN)/python -W ignore benchmarks/gpu.py gpu.json

# What a machine with torch, timm, onnxruntime and pyarrow lacks for `make gpu`, to be carried there
# (docs/encoders.md): 30 MB, and 35 MB more for scipy where it is not there.
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach tag,2_28 2_27 2_17,--platform manylinux_$(tag)_x86_64) --platform manylinux2014_x86_64
GPU_PACKAGES := braceexpand duckdb ftfy markdown-it-py mdurl open_clip_torch pygments regex rich simplejpeg typer wcwidth xxhash

gpu-wheels: $(READY)
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --implementation cp \
		$(GPU_PLATFORMS) --dest .wheels $(GPU_PACKAGES)
	du -bc .wheels/*.whl | tail -n 1

# What benchmarks compare with, in virtual environments of their own, never among our dependencies.
peers: $(PEER)/.ready $(POLARS)/.ready

$(PEER)/.ready:
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/pip install --quiet clip-retrieval==2.45
	$(PEER)/bin/pip install --quiet 'setuptools<70' # it imports pkg_resources, which newer ones lack
	@touch $(PEER)/.ready

$(POLARS)/.ready:
	$(PYTHON) -m venv $(POLARS)
	$(POLARS)/bin/pip install --quiet polars==2.1.0
	@touch $(POLARS)/.ready

lint: $(READY)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy

# The report is tested in headless Chromium. In a container (as root, with apt-get) the browser is
# installed; elsewhere install one, or that test is skipped.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null \
		|| (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends chromium) >/dev/null 2>&1 \
		|| echo "no browser could be installed: the report's test is skipped"
	@[ -e .peers/axe/node_modules/axe-core ] || ! command -v npm >/dev/null \
		|| npm install --silent --no-save --prefix .peers/axe axe-core >/dev/null 2>&1 \
		|| echo "axe-core could not be installed: the accessibility check is skipped"

# What `curate view` starts, in an environment of its own that takes torch from .venv: its tests are slow ones.
ATLAS := .peers/atlas

atlas: $(READY)
	@[ -e $(ATLAS)/.ready ] || ( \
		$(BIN)/python -m venv $(ATLAS) \
		&& $(ATLAS)/bin/pip install --quiet --no-deps embedding-atlas==0.26 \
		&& $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
			> $$($(ATLAS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_base.pth \
		&& $(ATLAS)/bin/pip install --quiet inquirer litellm umap-learn uvicorn uvloop websockets fastapi platformdirs accelerate \
		&& touch $(ATLAS)/.ready )

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	@touch $(READY)

clean:
	rm -rf .venv .peers curate-demo
