# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests/unit tests/distributed tests/golden
WORKERS ?= 2
SYSTEM_WORKERS ?= 3
DEMO := runs/demo
# 4 ranks where there are cores for them, else 2; images in a step are as many either way
DEMO_RANKS ?= $(shell if [ "$$(OMP_NUM_THREADS= nproc)" -ge 4 ]; then echo 4; else echo 2; fi)
DEMO_BATCH = $(shell echo $$((32 / $(DEMO_RANKS))))
DEMO_TRAIN = $(BIN)/dtrain launch -n $(DEMO_RANKS) experiment=digits overwrite=true batch_size=$(DEMO_BATCH)
DEMO_RUNS := $(DEMO)/alexnet $(DEMO)/squeezenet1_1 $(DEMO)/squeezenet1_1-dgc

# Where it is set, each of the tests' thousand processes would compile dtrain anew: 1 to 3 s of its 5 to 8
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-system horovod triton examples docs check lock audit sbom format clean

help:
	@echo "make demo         train AlexNet and SqueezeNet, and that compressed, with 2 or 4 workers; write a report"
	@echo "make test         unit and distributed tests, under 10 minutes"
	@echo "make test-system  tests that need root, network namespaces or a fresh install"
	@echo "make horovod      build Horovod for backend=horovod (some minutes, once) and install it"
	@echo "make triton       in build/triton, what tests of kernels for GPUs need; no GPU"
	@echo "make examples     install what the examples with accelerate, Lightning, transformers and Ray Train need"
	@echo "make check        formatting, lint, types, layers, shell scripts"
	@echo "make docs         the site of the docs, in build/docs/site; every link in it is checked"
	@echo "make lock         the versions and hashes that images are built of, anew from constraints.txt"
	@echo "make audit        known vulnerabilities of what is pinned (asks PyPI)"
	@echo "make sbom         what images are built of, as CycloneDX JSON in dist/"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# AlexNet runs long enough to count its bytes, 45 steps, after which it is still at chance: 10% of the digits
demo: install
	$(DEMO_TRAIN) num_epochs=16 model=squeezenet1_1 run_dir=$(DEMO)/squeezenet1_1
	$(DEMO_TRAIN) num_epochs=16 model=squeezenet1_1 compressor=dgc compressor.density=0.0015 run_dir=$(DEMO)/squeezenet1_1-dgc
	$(DEMO_TRAIN) num_epochs=1 log_every=5 model=alexnet run_dir=$(DEMO)/alexnet
	$(BIN)/dtrain compare $(DEMO_RUNS)
	$(BIN)/dtrain report $(DEMO_RUNS) --output $(DEMO)/report.html

# Tests that share a start of ranks, or a fixture of their file, stay together: see tests/conftest.py
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) $(TESTS)

# They wait more than they compute, so there are more at once than cores; some wait for the machine to be theirs
test-system: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(SYSTEM_WORKERS) --durations=25 -m 'not alone' tests/system
	OMP_NUM_THREADS=1 $(BIN)/pytest --durations=25 -m alone tests/system

horovod: install
	PYTHON=$(BIN)/python launch/build_horovod.sh

# Its interpreter runs kernels for GPUs on a CPU. In no environment, since torch imports it in every process where it is
TRITON := build/triton
triton: $(TRITON)/installed

$(TRITON)/installed: | install
	rm -rf $(TRITON)
	$(BIN)/pip install --quiet --no-deps --target $(TRITON) triton==3.9.0
	touch $@

# Not as .[examples], which would take dtrain away for a moment, from tests that run meanwhile
EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["examples"], sep="\n")
examples: install
	$(BIN)/python -c '$(EXTRA)' | $(BIN)/pip install --quiet --constraint constraints.txt --requirement /dev/stdin

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck launch/*.sh launch/*.sbatch dtrain/launch/*.sh docker/*.sh .ci/run

# Tools in an environment of their own: what they depend on is no version that dtrain runs with
TOOLS := build/tools
$(TOOLS)/installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet pip-tools pip-audit cyclonedx-bom
	touch $@

TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
lock: $(TOOLS)/installed
	$(TOOLS)/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-annotate --no-emit-index-url \
	  --no-emit-find-links --constraint constraints.txt --extra-index-url $(TORCH_INDEX) --extra train --extra report \
	  --extra pack --extra mpi \
	  --output-file docker/requirements.lock pyproject.toml

audit: $(TOOLS)/installed
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

sbom: $(TOOLS)/installed
	mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-format JSON \
	  --output-file dist/dtrain.cdx.json docker/requirements.lock

# The site has the repository's folders, so that one relative link holds in both
DOCS := build/docs
PAGES := README.md CHANGELOG.md CONTRIBUTING.md LICENSE CITATION.cff docs examples benchmarks/results launch/slurm.sbatch \
  tests/distributed/test_combinations.py tests/system/test_examples.py tests/system/test_wrappers.py \
  tools/dashboard_preview/README.md
$(DOCS)/installed:
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff
	touch $@

docs: $(DOCS)/installed
	rm -rf $(DOCS)/pages
	for page in $(PAGES); do mkdir -p $(DOCS)/pages/$$(dirname $$page); ln -sr $$page $(DOCS)/pages/$$page; done
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "docs in $(DOCS)/site/index.html"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
