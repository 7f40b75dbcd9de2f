PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SPEC ?= specs/mixed_sft.json

.PHONY: bench gpu run test slow oracle smoke numerics check format clean coverage site faults lock

run: $(VENV)/.installed ## train and measure the default spec
	$(BIN)/harness run $(SPEC)

test: $(VENV)/.installed ## the default tests
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

coverage: $(VENV)/.installed ## the default tests, with the share of lines and branches that they run
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu" --cov --cov-report=term

slow: $(VENV)/.installed ## the tests that take longer, with the real small model; PART=2/5 for a fifth of their files
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu" --part $(or $(PART),1/1)

oracle: $(VENV)/.installed ## the comparisons with independent implementations; none may be skipped
	.ci/oracle

smoke: ## the wheel without torch, with every supported interpreter of this machine
	.ci/smoke

numerics: $(VENV)/.installed ## the tests of numbers with another instruction set
	.ci/numerics

check: $(VENV)/.installed ## format, lint, types, imports, schema
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/check

bench: $(VENV)/.installed ## measure speed and memory side by side with rivals, and write docs/performance.md
	$(BIN)/python benchmarks/run_all.py $(ARGS)

site: $(VENV)/.installed ## the site of the documents, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu: ## measure one CUDA card within 8 minutes, with the packages of $PYTHON; installs nothing. ARGS=--dry-run without a card
	PYTHONPATH="$(CURDIR):$(CURDIR)/plugins:$$PYTHONPATH" $(PYTHON) benchmarks/gpu.py $(ARGS)

faults: $(VENV)/.installed ## break runs, inputs, disks and trackers; ROUND=long for the long round
	$(BIN)/python tests/faults $(or $(ROUND),short) $(ARGS)

LOCK = uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header

lock: ## write the lock files of the release workflow, with hashes; needs uv
	$(LOCK) pyproject.toml --extra s3 -c constraints.txt -o requirements/harness.lock
	$(LOCK) requirements/build.in -o requirements/build.lock
	$(LOCK) requirements/audit.in -o requirements/audit.lock

format: $(VENV)/.installed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .oracle

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "harness needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
