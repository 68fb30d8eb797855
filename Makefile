# Everything a contributor runs. Tools live in .venv, made on first use.
# ARGS is handed on:  make dev ARGS="--port 9092"   make test ARGS="-k offsets"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Side by side: the tests mostly wait. Their Kafka is one.
PROCESSES ?= 8

.DEFAULT_GOAL := help
.PHONY: help package dev test proof lint lock audit docs bench chaos soak variables test-security test-limits compatibility newcomer docs-mistakes test-systemd test-image test-package test-prometheus test-page screenshots install clean

help: ## what can be made (this list)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: $(STAMP) ## a local Apache Kafka, until Ctrl-C
	$(BIN)/gigaoffice-worker dev $(ARGS)

test: $(STAMP) ## every test but the long ones, against a real Kafka
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not (chaos or long) or quick" -n $(PROCESSES) --dist loadscope \
	  --no-loadscope-reorder $(ARGS)

lint: $(STAMP) ## ruff, mypy and the layering
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

LOCK := --quiet --generate-hashes --strip-extras --no-header --no-emit-index-url --no-emit-find-links \
  --no-emit-trusted-host --unsafe-package gigaoffice-worker

lock: $(STAMP) ## what the image and systemd/install.sh install, anew, by hashes: requirements/ (ARGS="--upgrade")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[audit]'
	$(BIN)/pip-compile $(LOCK) --extra http -o requirements/image.txt $(ARGS) pyproject.toml
	$(BIN)/pip-compile $(LOCK) --extra http --extra gigachat -o requirements/image-gigachat.txt $(ARGS) pyproject.toml
	$(BIN)/pip-compile $(LOCK) --only-build-deps --build-deps-for wheel -o requirements/build.txt $(ARGS) pyproject.toml
	sed -i -e '/^# WARNING/,$$d' -e 's/ (pyproject.toml)//' \
	  -e '1i # What is installed, each file by its hash. Written by `make lock`; change pyproject.toml, not this.' \
	  requirements/*.txt

audit: $(STAMP) ## lock and licences, an SBOM (sbom.json), known weaknesses; says what could not be asked about
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[audit]'
	$(BIN)/python -m pytest -q tests/unit/test_supply_chain.py
	$(BIN)/cyclonedx-py requirements requirements/image-gigachat.txt -o sbom.json
	$(BIN)/python requirements/audit.py

package: $(STAMP) ## the release in dist/: wheel, source with manual page and completions, SBOM, sums
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[audit,release]'
	rm -rf build/lib build/bdist.* dist share
	$(BIN)/python -m gigaoffice_worker.cli.manual share
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/cyclonedx-py requirements requirements/image-gigachat.txt -o dist/gigaoffice-worker.cdx.json
	cd dist && sha256sum * > SHA256SUMS

test-package: package ## the release: complete, installs, and its dev runs where there is no repository
	$(BIN)/python -m pytest tests/system/test_package.py $(ARGS)

docs: $(STAMP) ## the documents as a site, build/docs/index.html; a broken link fails it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --conf-dir docs \
	  --doctree-dir build/doctrees $(ARGS) . build/docs
	@echo "build/docs/index.html"

bench: $(STAMP) ## this worker beside its peers, an hour; fills docs/performance.md; ARGS="--quick --only W1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench,dev]'
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(STAMP) ## the long tests: kills brokers and workers, takes minutes; fills the table of docs/reliability.md
	@rm -f .chaos.jsonl
	CHAOS_RESULTS=.chaos.jsonl $(BIN)/python -m pytest -m chaos -n 4 $(ARGS)
	$(BIN)/python -m tests.chaos.rows .chaos.jsonl $(if $(ARGS),,docs/reliability.md)

soak: $(STAMP) ## an hour of mixed faults on three nodes with TLS and SASL; fills its row in docs/reliability.md
	@rm -f .soak.jsonl
	CHAOS_MINUTES=60 CHAOS_RESULTS=.soak.jsonl $(BIN)/python -m pytest -m chaos tests/chaos/test_soak.py $(ARGS)
	$(BIN)/python -m tests.chaos.rows .soak.jsonl docs/reliability.md soak

variables: $(STAMP) ## the documents' table of environment variables anew, from their declarations
	$(BIN)/python -m tests.support.configuration

test-security: $(STAMP) ## TLS, logins, rights and an abused side port, case by case; fills the tables of docs/security.md
	@rm -f .security.jsonl
	TABLES_RESULTS=.security.jsonl $(BIN)/python -m pytest -n 3 --dist loadfile \
	  tests/integration/test_tls_sasl.py tests/integration/test_acls.py tests/integration/test_sideport_abuse.py $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.support.tables .security.jsonl docs/security.md)

test-limits: $(STAMP) ## a provider's limits in real time, half an hour and more; fills the table of docs/limits.md
	@rm -f .limits.jsonl
	TABLES_RESULTS=.limits.jsonl $(BIN)/python -m pytest tests/integration/test_limits_for_real.py $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.support.tables .limits.jsonl docs/limits.md)

compatibility: $(STAMP) ## other Kafkas and other Pythons, hours; fills docs/compatibility.md; ARGS="--kafka 3.9.1 --python ''"
	@rm -f .compatibility.jsonl
	TABLES_RESULTS=.compatibility.jsonl $(BIN)/python -m tests.compatibility.matrix $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.support.tables .compatibility.jsonl docs/compatibility.md)

newcomer: package ## the steps of somebody who installs, runs, breaks and mends it; fills a table of docs/operations.md
	$(BIN)/python -m tests.system.newcomer

docs-mistakes: $(STAMP) ## handlers with every usual mistake, on a real Kafka; fills the table of docs/handlers.md
	@rm -f .mistakes.jsonl
	TABLES_RESULTS=.mistakes.jsonl $(BIN)/python -m pytest tests/integration/test_mistakes.py
	$(BIN)/python -m tests.support.tables .mistakes.jsonl docs/handlers.md

test-systemd: $(STAMP) ## the units under a real systemd in a booted Debian (root, debootstrap, systemd-container)
	$(BIN)/python -m pytest tests/system/test_systemd.py $(ARGS)

test-image: $(STAMP) ## the image, built and run (root, debootstrap, buildah, podman, runc), and the deployment files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[system]'
	$(BIN)/python -m pytest tests/system/test_files.py tests/system/test_image.py tests/system/test_testcontainers.py $(ARGS)

test-prometheus: $(STAMP) ## rules and metrics with a real Prometheus (Debian's prometheus)
	$(BIN)/python -m pytest tests/system/test_prometheus.py $(ARGS)

test-page: $(STAMP) ## the status page in a real browser (Debian's chromium)
	$(BIN)/python -m pytest tests/system/test_page.py $(ARGS)

screenshots: $(STAMP) ## docs/images anew, from a worker with traffic (Debian's chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[system]'
	$(BIN)/python -m tests.system.screenshots

proof: ## all of the above that proves something, one after the other, 90 minutes; a line each (ARGS="lint docs": only those)
	.ci/proof $(ARGS)

install: ## the worker and its systemd units on this machine (root)
	systemd/install.sh

clean: ## removes the virtual environment, caches and build output
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an installation that was cut short is taken up again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,http,test,lint]'
	@touch $@
