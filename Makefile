# Two commands need nothing but Python 3.11+ and make: `make demo` and `make test`.
# The environment is rebuilt only when pyproject.toml or constraints.txt change.
.DEFAULT_GOAL := help
PYTHON ?= python3
V := .venv
BIN := $(V)/bin
# Where an image turns bytecode off, every process would compile torch and mlflow anew; the environment is ours to fill.
export PYTHONDONTWRITEBYTECODE :=
# uv does not read pip's configuration. Where pip has find-links (a local CPU build of torch, say) they are handed on;
# elsewhere uv chooses the torch build that fits the machine.
UV = links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null \
	|| $(BIN)/python -m pip config get :env:.find-links 2>/dev/null || true)}}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$(echo $$links | tr ' ' ',')"; \
	else export UV_TORCH_BACKEND="$${UV_TORCH_BACKEND:-auto}"; fi; $(BIN)/uv pip
INSTALL = $(UV) install --quiet --python $(BIN)/python --constraints constraints.txt

$(V)/.uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mlkit needs Python 3.11 or newer; point PYTHON at one: make PYTHON=python3.12 demo" >&2; exit 1; }
	@echo "setting up $(V) (first run only) ..."
	@$(PYTHON) -m venv $(V) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(V)/.demo: $(V)/.uv pyproject.toml constraints.txt
	@$(INSTALL) --editable '.[demo]' && touch $@

# flagd-core 1 decides by bucketing v2, 2 by v3: the tests ask both, so the older one lies beside the environment.
$(V)/.test: $(V)/.demo
	@$(INSTALL) --editable '.[all]' --group test \
		&& $(UV) install --quiet --python $(BIN)/python --target $(V)/flagd-core-1 openfeature-flagd-core==1.0.0 && touch $@

$(V)/.dev: $(V)/.test
	@$(INSTALL) --group dev && touch $@

$(V)/.docs: $(V)/.test
	@$(INSTALL) --group docs && touch $@

$(V)/.bench: $(V)/.test
	@$(INSTALL) --group benchmarks && touch $@

demo: $(V)/.demo  ## set up if needed, then train, serve, roll out, roll back and trace a real model
	@$(BIN)/python -m mlkit demo

test: $(V)/.test  ## set up if needed, then run the tests
	@$(BIN)/python -m pytest -q

lint: $(V)/.dev  ## style, format and import layers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports

format: $(V)/.dev  ## rewrite the files in the house format
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

types: $(V)/.dev  ## mypy strict, pyright on the public API, completeness of the public types
	@$(BIN)/mypy && $(BIN)/pyright && $(BIN)/python tests/typing/completeness.py

docs: $(V)/.docs  ## build the documentation into site/
	@$(BIN)/zensical build --clean --strict

bench: $(V)/.bench  ## measure every block beside its peers; writes benchmarks/results/
	@$(BIN)/python -m benchmarks --docs

wheel: $(V)/.dev  ## build the wheel and check what is in it
	@$(BIN)/python -m build --installer uv --wheel --outdir dist . >/dev/null \
		&& $(BIN)/twine check --strict dist/*.whl && $(BIN)/check-wheel-contents dist/*.whl

constraints: $(V)/.uv  ## choose new versions for constraints.txt
	@$(UV) compile --quiet --universal --python-version 3.11 --no-header --no-annotate --all-extras \
		--group dev --group docs --group benchmarks pyproject.toml --output-file $(V)/resolved.txt
	@{ sed -n '/^#/p;/^torch==/p' constraints.txt; grep -vE '^(torch=|triton=|nvidia-|cuda-)' $(V)/resolved.txt; } \
		> $(V)/constraints.txt && mv $(V)/constraints.txt constraints.txt

clean:  ## remove the environment and everything that was built
	rm -rf $(V) dist site mlkit-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: demo test lint format types docs bench wheel constraints clean help
