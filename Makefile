# Everything lives in a virtual environment in this checkout; a second run of a target does not repeat the set-up.
# What is needed: Python >= 3.11 and make. The real servers are built or found by tests/support/lab (see tests/support/lab/README.md).

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bridge/__init__.py)

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-docker test lint unit bench bench-sim chaos pods compat readers patroni consul-random fuzz docs lab-up lab-env lab-down image sbom lock clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make the virtual environment (the targets that need it do it too)

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) --version). Say which: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV): about half a minute"
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
endef

$(STAMP): requirements/dev.txt pyproject.toml
	$(install)

# The demonstration needs a third of it; where all is installed, that is enough.
$(VENV)/.demo: requirements/demo.txt pyproject.toml
	$(install)

READY := $(if $(REAL)$(wildcard $(STAMP)),$(STAMP),$(VENV)/.demo)

demo: $(READY) ## the bridge at work, shown as it happens; REAL=1: on real servers, built first; STAY=1: until Ctrl-C
	@$(BIN)/python -m tests.support.demo $(if $(STAY),--stay) $(if $(REAL),--real)

demo-docker: ## the same with Docker, to play with: docker compose up, after a look at what could be in its way
	@$(PYTHON) demo/preflight.py
	docker compose up --build --detach --wait

test: $(STAMP) ## lint, types and every test for which the servers are at hand; REAL=1: all, with servers built first
	@$(BIN)/python -m tests.suite $(if $(REAL),--real)

lint: $(STAMP) ## style, types and import contracts only
	@$(BIN)/python -m tests.suite --only lint

unit: $(STAMP) ## the tests that need no server
	@$(BIN)/python -m tests.suite --only unit

bench: $(STAMP) ## targets beside what is measured, with its floor: make bench PARTS="propagation sync" (tests/support/bench/out)
	@$(BIN)/python -m tests.support.bench $(PARTS)

bench-sim: $(STAMP) ## the core and the queue with 100,000 services and 1,000,000 instances, without servers
	@$(BIN)/python -m tests.support.bench.simulation

docs: $(STAMP) ## regenerate docs/reference.md and the chart's schema and table from the code
	@$(BIN)/python -m tests.support.docs.reference
	@$(BIN)/python -m tests.support.docs.chart

chaos: $(STAMP) ## faults of all kinds while services change: make chaos SEED=7 MINUTES=10 FAULT="kube-kill consul-kill"
	@$(BIN)/python -m tests.support.chaos --seed '$(SEED)' --minutes '$(or $(MINUTES),5)' $(foreach fault,$(FAULT),--fault '$(fault)')

consul-random: $(STAMP) ## plain and blocking answers of a real Consul side by side: make consul-random SEED=7 MINUTES=10
	@$(BIN)/python -m tests.support.consul_random $(if $(SEED),--seed '$(SEED)') --minutes '$(or $(MINUTES),5)'

pods: $(STAMP) ## the bridge in pods on this machine, with what is slow and rare: make pods ONLY="rotated or lost"
	@PODS_SLOW=1 $(BIN)/python -m pytest -q tests/pods --durations=10 $(if $(ONLY),-k '$(ONLY)')

readers: $(STAMP) ## ingress controllers and external-dns that read what the bridge writes; builds them first (about ten minutes)
	@$(BIN)/python -m tests.support.lab build contour external-dns traefik
	@READERS=1 $(BIN)/python -m pytest -q tests/e2e/test_readers.py --durations=10 $(if $(ONLY),-k '$(ONLY)')

compat: $(STAMP) ## other versions: make compat KUBERNETES="1.27.16" CONSUL="1.15.6", built first, or PYTHONS="python3.14" LOWEST=1
ifdef PYTHONS
	@$(BIN)/python -m tests.support.compat.python $(if $(LOWEST),--lowest) $(PYTHONS)
else
	@$(BIN)/python -m tests.support.compat $(foreach v,$(KUBERNETES),--kubernetes '$(v)') $(foreach v,$(CONSUL),--consul '$(v)')
endif

patroni: $(STAMP) ## fail-overs of a real Patroni, and seconds of wrong traffic: make patroni ROUNDS=3 SCENARIO="switchover cut-off"
	@$(BIN)/python -m tests.support.patroni --rounds '$(or $(ROUNDS),1)' $(SCENARIO)

fuzz: $(STAMP) ## coverage-guided fuzzing of what reads foreign bytes: make fuzz SECONDS=60
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@$(BIN)/python -m tests.unit.hostile.fuzz -max_total_time=$(or $(SECONDS),60) -timeout=10 -rss_limit_mb=1024 -artifact_prefix=.hypothesis/

lab-up: $(STAMP) ## start a real Consul and a real Kubernetes control plane here
	@$(BIN)/python -m tests.support.lab up

lab-env: $(STAMP) ## print what points clients at them: eval "$(make --silent lab-env)"
	@$(BIN)/python -m tests.support.lab env

lab-down: $(STAMP) ## stop them
	@$(BIN)/python -m tests.support.lab down

BASE ?= python:3.12-slim
image: ## build the image that manifests/ names (needs a Docker engine): make image SOURCE=https://example.com/repository
	@$(PYTHON) demo/preflight.py --engine
	@set -eu; base='$(BASE)'; \
	case $$base in *@sha256:*) ;; *) \
	  docker pull --quiet $$base >/dev/null || echo "$$base cannot be pulled: the engine's own copy is taken"; \
	  found=$$(docker image inspect --format '{{range .RepoDigests}}{{.}} {{end}}' $$base); base=$${found%% *}; \
	  test -n "$$base" || { echo "$(BASE) has no digest: it was made here, so the image cannot say what it was built on"; base='$(BASE)'; };; \
	esac; \
	epoch=$$(git log -1 --format=%ct 2>/dev/null || echo 0); \
	echo "building on $$base"; \
	made=$$(mktemp); trap 'rm -f "$$made"' EXIT; \
	docker build --iidfile "$$made" --build-arg BASE="$$base" --build-arg BASE_NAME='$(BASE)' \
	  --build-arg BASE_DIGEST="$$(case $$base in *@*) echo "$${base#*@}";; esac)" --build-arg VERSION=$(VERSION) \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" --build-arg SOURCE_DATE_EPOCH=$$epoch \
	  --build-arg CREATED="$$(date -u -d @$$epoch +%Y-%m-%dT%H:%M:%SZ)" --build-arg SOURCE="$(SOURCE)" .; \
	built=$$(cat "$$made"); tag=consul-endpoints-bridge:$(VERSION); set -o pipefail; \
	docker save "$$built" | $(PYTHON) image/reproducible.py $$epoch $$tag | docker load; \
	test "$$(docker image inspect --format '{{.Id}}' $$tag)" = "$$built" || docker image rm "$$built" >/dev/null 2>&1 || true

sbom: ## write the bill of materials of the image that `make image` built: dist/sbom.cdx.json (CycloneDX)
	@mkdir -p dist
	@docker run --rm --network none --entrypoint python consul-endpoints-bridge:$(VERSION) \
	  -c 'print(open("/opt/bridge/share/doc/consul-endpoints-bridge/sbom.cdx.json").read())' > dist/sbom.cdx.json
	@echo "dist/sbom.cdx.json"

# Only the copy of the Kubernetes client for asyncio uses these; the image ships neither.
NOT_IN_IMAGE := aiohttp aiohttp-retry aiohappyeyeballs aiosignal attrs frozenlist multidict propcache yarl

lock: $(STAMP) ## renew the lock files from pyproject.toml (needs uv)
	@for g in runtime image dev go build sbom demo; do \
	  case $$g in runtime) args="pyproject.toml";; dev) args="pyproject.toml --group dev -c requirements/runtime.txt";; \
	    image) args="pyproject.toml -c requirements/runtime.txt $(patsubst %,--no-emit-package %,$(NOT_IN_IMAGE))";; \
	    go) args="--group go";; build) args="--group build -c requirements/dev.txt";; \
	    demo) args="pyproject.toml --group demo -c requirements/dev.txt";; sbom) args="--group sbom";; esac; \
	  uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --python-version 3.11 -q $$args -o requirements/$$g.txt; \
	done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m tests.support.docs.notice

clean: ## remove what the targets made in this checkout (not the servers' cache)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* tests/support/bench/out .lab
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
