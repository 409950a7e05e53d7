# Two commands from a bare machine: `make demo` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-slow lint clean

demo: $(READY)
	$(BIN)/curate demo

test: lint
	$(BIN)/pytest -q -m "not slow"

# Minutes, not seconds: CIFAR-10 and other full-size checks.
test-slow: $(READY)
	$(BIN)/pytest -q -m slow -s

lint: $(READY)
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .
	$(BIN)/mypy

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	@touch $(READY)

clean:
	rm -rf .venv curate-demo
