# Every target does its own set-up: it needs Python >= 3.10, make and a package index, nothing else.
PYTHON ?= python3
ENGINES := core prefect prefect-oldest airflow airflow-oldest bench
UV := .venv/boot/bin/uv

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo airflow test lint test-core test-prefect test-prefect-oldest test-airflow test-airflow-oldest soak bench lock clean

# The engines report usage to their makers unless told not to; a test run is nobody's usage.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export AIRFLOW__USAGE_DATA_COLLECTION__ENABLED := False
# uv works with the Python it is given and fetches no other.
export UV_PYTHON_DOWNLOADS := never
# Inside an activated environment uv and pip would otherwise write into that one.
unexport VIRTUAL_ENV

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-20s %s\n", $$1, $$2}'

demo: .venv/prefect/.stamp  ## a real Prefect flow, metered: trains a few models and shows what each cost
	.venv/prefect/bin/python examples/prefect/compare_models.py

airflow: .venv/airflow/.stamp  ## a whole Airflow on this machine, with three example DAGs, metered
	.venv/airflow/bin/python examples/airflow/cluster.py

test: lint test-core test-prefect test-airflow test-airflow-oldest  ## lint, types and the tests of every environment

lint: .venv/core/.stamp .venv/prefect/.stamp  ## ruff and mypy
	.venv/core/bin/ruff check .
	.venv/core/bin/ruff format --check .
	.venv/core/bin/mypy --exclude '^tao_flows/prefect/'
	.venv/prefect/bin/mypy tao_flows/prefect prefect_blocks

# --numprocesses: side by side, as many as there are cores. Those that measure the machine, or use all of it, are alone.
test-core: .venv/core/.stamp  ## tests that need no engine
	.venv/core/bin/python -m pytest -m 'not alone' --numprocesses auto
	.venv/core/bin/python -m pytest -m alone

# Servers, workers and browsers share two cores with each other, and some tests wait for seconds at most. What fails so is
# said, and must then pass with the machine to itself.
again = || $(1) -m pytest --last-failed --last-failed-no-failures none

test-prefect: .venv/prefect/.stamp  ## tests against a real Prefect server
	.venv/prefect/bin/python -m pytest -m 'not alone' --numprocesses auto tests/prefect_engine tests/typing \
		$(call again,.venv/prefect/bin/python) -m 'not alone' tests/prefect_engine tests/typing
	.venv/prefect/bin/python -m pytest -m alone tests/prefect_engine \
		$(call again,.venv/prefect/bin/python) -m alone tests/prefect_engine

test-prefect-oldest: .venv/prefect-oldest/.stamp  ## those that need no browser, on the oldest Prefect that is supported
	.venv/prefect-oldest/bin/python -m pytest -m 'not chromium and not alone' --numprocesses auto tests/prefect_engine \
		$(call again,.venv/prefect-oldest/bin/python) -m 'not chromium and not alone' tests/prefect_engine
	.venv/prefect-oldest/bin/python -m pytest -m alone tests/prefect_engine

test-airflow: .venv/airflow/.stamp  ## tests against a real Airflow
	.venv/airflow/bin/python -m pytest -m 'not cluster' --numprocesses auto tests/airflow_engine \
		$(call again,.venv/airflow/bin/python) -m 'not cluster' tests/airflow_engine
	.venv/airflow/bin/python -m pytest -m cluster tests/airflow_engine \
		$(call again,.venv/airflow/bin/python) -m cluster tests/airflow_engine

test-airflow-oldest: .venv/airflow-oldest/.stamp  ## those that need no cluster, on the oldest Airflow that is supported
	@if .venv/airflow-oldest/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then \
		.venv/airflow-oldest/bin/python -m pytest -m 'not cluster and not chromium' --numprocesses auto tests/airflow_engine \
			$(call again,.venv/airflow-oldest/bin/python) -m 'not cluster and not chromium' tests/airflow_engine; \
	else echo 'passed over: Airflow 3.0 does not run on Python 3.13'; fi

soak: .venv/prefect/.stamp  ## an hour of Prefect while what it stands on is killed: TAO_FLOWS_SOAK_S=3600
	TAO_FLOWS_SOAK_S=$${TAO_FLOWS_SOAK_S:-3600} .venv/prefect/bin/python -m pytest -s tests/prefect_engine/test_soak.py

bench: .venv/bench/.stamp  ## every benchmark, beside its peers
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; .venv/bench/bin/python "$$script"; done

lock: $(UV)  ## pin every environment anew in constraints/
	$(call compile,core,agent governance ingest nvml postgres pyrapl reports simulate)
	$(call compile,prefect,governance prefect nvml)
	$(call compile,prefect-oldest,governance prefect)
	$(call compile,airflow,airflow governance postgres)
	$(call compile,airflow-oldest,governance)
	$(call compile,bench,nvml postgres pyrapl simulate)

clean:  ## remove the environments and everything built
	rm -rf .venv dist build demo-output test-output .bench .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One file serves every supported Python: the markers in it say which pin is for which.
compile = $(UV) pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.10 --no-header \
	--no-annotate --group $(1) $(foreach extra,$(2),--extra $(extra)) --output-file constraints/$(1).txt

# uv is only a faster pip: where it cannot be had, or cannot reach the index that pip is set up for, pip does the work.
.venv/boot/.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'tao-flows needs Python >= 3.10: name one with make PYTHON=/path/to/python3' >&2; exit 1; }
	@mkdir -p .venv/boot
	@{ $(PYTHON) -m venv .venv/boot && .venv/boot/bin/python -m pip install --quiet uv; } \
		|| $(PYTHON) -m pip install --quiet --target .venv/boot uv \
		|| echo 'no uv here: installing with pip, which is slower' >&2
	@touch $@

$(UV): .venv/boot/.stamp

$(ENGINES:%=.venv/%/.stamp): .venv/%/.stamp: constraints/%.txt pyproject.toml | .venv/boot/.stamp
	@echo 'setting up .venv/$*'
	@rm -rf .venv/$*
	@python="$$($(PYTHON) -c 'import sys; print(sys.executable)')"; \
	if [ -x $(UV) ] && $(UV) venv --quiet --python "$$python" .venv/$* \
		&& $(UV) pip install --quiet --python .venv/$*/bin/python -r $< -e .; then :; \
	else "$$python" -m venv --clear .venv/$* && .venv/$*/bin/python -m pip install --quiet -r $< -e .; fi
	@touch $@
