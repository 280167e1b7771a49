# Every target does its own set-up and says what it is doing. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
STAMP := $(VENV)/.spanchain-installed
# Any CPython from 3.11 on; PYTHON=/path/to/python3 chooses another.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3; do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& { command -v "$$candidate"; break; }; done)
ARGS ?=
# Bytecode is kept, also where the environment says otherwise: else every process compiles thousands of modules anew.
unexport PYTHONDONTWRITEBYTECODE

say = @printf '\033[1m==> %s\033[0m\n' "$(1)"

.PHONY: help install train-extra components wanted-components demo test check format bench evaluate soak lock docs picture clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) \
		| while IFS='|' read -r target what; do printf '  make %-11s %s\n' "$$target" "$$what"; done

install: $(STAMP) ## .venv with the locked dependencies and the `spanchain` command, kernels compiled

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed (Debian: apt-get install python3 python3-venv)"; exit 1; }
	$(call say,creating $(VENV) with $(PYTHON))
	@$(PYTHON) -m venv $(VENV) || { echo "python's venv module is needed (Debian: apt-get install python3-venv)"; exit 1; }
	$(call say,installing the locked dependencies: about 900 MB on disk)
	@sed -n '/^uv==/,/[^\]$$/p' requirements.lock > $(VENV)/uv.lock
	@$(PIP) --require-hashes --no-deps -r $(VENV)/uv.lock
	@$(VENV)/bin/uv pip install --quiet --python $(PY) --require-hashes --no-deps -r requirements.lock \
		|| { echo "uv cannot reach an index here; pip does it, more slowly"; \
		$(PIP) --require-hashes --no-deps -r requirements.lock; }
	$(call say,installing the spanchain command)
	@$(PIP) --no-deps --no-build-isolation --editable .
	$(call say,compiling the kernels into the cache)
	@$(PY) -m collector_processor.warmup
	@touch $@

TRAINABLE := $(VENV)/.spanchain-train-installed
train-extra: $(TRAINABLE) ## what `spanchain train` needs: PyTorch, about 5 GB on disk

$(TRAINABLE): requirements-train.lock $(STAMP)
	$(call say,installing PyTorch for the tests of training: about 5 GB on disk)
	@$(VENV)/bin/uv pip install --quiet --python $(PY) --require-hashes --no-deps -r requirements-train.lock \
		|| $(PIP) --require-hashes --no-deps -r requirements-train.lock
	@touch $@

components: ## the real Collector, telemetrygen, Prometheus, Alertmanager and PostgreSQL that `make test` runs
	$(call say,looking for the real components that the end-to-end tests run)
	@python=$(PY); test -x $$python || python=$(PYTHON); $$python tests/e2e/components.py

demo: install ## a payment platform with faults, and spanchain naming each (Ctrl-C ends it)
	$(call say,starting the demo)
	@$(VENV)/bin/spanchain demo $(ARGS)

# Outside CI a machine without the components still runs all other tests; those that need them say how to get them.
wanted-components:
	@$(MAKE) components || test -z "$${CI:-}"

# ARGS="-n 2" runs them on two cores; tests/conftest.py says which run one after the other even then.
# Outside CI nobody waits for 5 GB: without `make train-extra` the tests of training skip and say so.
test: ## all tests, with the real components
	@$(MAKE) -j2 install wanted-components
	@test -z "$${CI:-}" || $(MAKE) train-extra
	$(call say,running all tests)
	@$(PY) -m pytest --durations=15 $(ARGS)

check: install ## format, lint, types, fast tests: less than a minute
	$(call say,format)
	@$(VENV)/bin/ruff format --check --quiet . || { echo "make format puts it right"; exit 1; }
	$(call say,lint)
	@$(VENV)/bin/ruff check --quiet .
	$(call say,types)
	@$(VENV)/bin/mypy
	$(call say,fast tests)
	@$(PY) -m pytest -q -n 4 --hypothesis-profile=quick -m "not slow and not e2e and not data" $(ARGS)

format: install ## formats and fixes what can be fixed without thinking
	@$(VENV)/bin/ruff check --quiet --fix-only .
	@$(VENV)/bin/ruff format .

bench: install ## speed and memory, each beside what it is compared with
	@$(MAKE) components
	$(call say,installing what is compared with)
	@$(PIP) --require-hashes --no-deps -r requirements-bench.lock
	$(call say,measuring; nothing else should run on this machine)
	@$(PY) -m tests.benchmarks $(ARGS)

evaluate: install ## detection quality on the labelled recordings, and on systems made up at random
	$(call say,replaying the labelled recordings)
	@$(PY) -m collector_processor.evaluation $(ARGS)
	$(call say,making up systems)
	@$(PY) -m collector_processor.evaluation.generalise --layout blocks
	@$(PY) -m collector_processor.evaluation.generalise --layout hours

soak: install ## the long forms of the fuzz, kill and leak tests: some hours
	@$(MAKE) components
	$(call say,running the long tests)
	@SPANCHAIN_SOAK=1 $(PY) -m pytest -m soak -rA --show-capture=stdout $(ARGS)

LOCKING := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock" --upgrade

lock: ## rewrites requirements*.lock from pyproject.toml: hashes, no index addresses
	$(call say,resolving)
	@test -x $(VENV)/bin/uv || { $(PYTHON) -m venv $(VENV) && $(PY) -m pip install --quiet uv; }
	@$(LOCKING) --group dev pyproject.toml -o requirements.lock
	@$(LOCKING) --group bench -o requirements-bench.lock
	@$(LOCKING) --extra train -c requirements.lock pyproject.toml -o requirements-train.lock

docs: install ## rewrites the generated parts of docs/, configs/ and dashboards/
	$(call say,writing the generated parts of docs/ configs/ and dashboards/)
	@$(PY) -m collector_processor.config_reference > docs/configuration.md
	@$(PY) -m exporters.prometheus.metrics > docs/metrics.md
	@$(PY) -m dashboards.build
	@$(PY) -m collector_processor.demo settings > configs/demo.yaml

picture: install ## runs the demo for two minutes and keeps its screen as docs/demo.svg
	$(call say,running the demo for its picture)
	@$(PY) -m collector_processor.demo picture docs/demo.svg

clean: ## removes .venv, caches and what runs left behind
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist spanchain-data
