# make train [CONFIG=configs/....py] [WORKDIR=runs/...] [ARGS="--config.seed=1 ..."]
# make test
# make test-fast
# make package
# make docs
# All set up .venv first; `make setup` does that alone. PYTHON=... chooses the Python.

CONFIG ?= configs/digits_duet_rot.py
WORKDIR ?=
ARGS ?=
VENV := .venv

# The first Python of at least 3.11 that starts and can make a virtual environment.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && echo "$$python" && break; done)

# The CUDA wheels (3 GB) are of use only with an NVIDIA driver.
ACCELERATOR := $(shell if [ -e /proc/driver/nvidia/version ] || \
	nvidia-smi >/dev/null 2>&1; then echo cuda; else echo cpu; fi)
READY := $(VENV)/.ready-$(ACCELERATOR)
READY_FOR_DOCS := $(VENV)/.ready-docs

.PHONY: setup train test test-fast docs lint format package
.DEFAULT_GOAL := train

setup: $(READY)

$(READY): requirements.txt requirements-test.txt
	@[ -n "$(PYTHON)" ] || { echo "error: no Python >= 3.11 with venv found; install \
	python3 and python3-venv, or name one: make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON) for $(ACCELERATOR), a few minutes ..."
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || \
	$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@if [ $(ACCELERATOR) = cuda ]; then cat requirements.txt; \
	else sed 's/jax\[cuda12\]/jax/' requirements.txt; fi > $(VENV)/requirements.txt
	@$(VENV)/bin/python -m pip install --quiet \
	-r $(VENV)/requirements.txt -r requirements-test.txt
	@rm -f $(VENV)/.ready-*
	@touch $@

train: $(READY)
	@$(VENV)/bin/python main.py --config=$(CONFIG) \
	$(if $(WORKDIR),--workdir=$(WORKDIR)) $(ARGS)

test: $(READY)
	@$(VENV)/bin/python -m pytest $(ARGS)

# Pure functions, contracts over registries, and messages in process.
FAST := $(addprefix config/test_,build.py checks.py config_files.py) figures losses \
	metrics models/test_torch_weights.py runs/test_workdir.py \
	runtime/test_files.py test_layers.py test_style.py training/test_health.py \
	training/test_optim.py end_to_end/test_cli.py

test-fast: $(READY)
	@$(VENV)/bin/python -m pytest $(addprefix tests/,$(FAST)) $(ARGS)

$(READY_FOR_DOCS): $(READY) requirements-docs.txt
	@$(VENV)/bin/python -m pip install --quiet -r requirements-docs.txt
	@touch $@

# The site, in build/site. It needs no network, neither to be built nor to be read.
docs: $(READY_FOR_DOCS)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet --strict
	@echo "the documentation is build/site/index.html"

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

# Builds the wheel, installs it alone, and trains and measures where nothing else is.
PACKAGE := build/package
package: $(READY)
	@rm -rf $(PACKAGE) && mkdir -p $(PACKAGE)/empty
	@$(VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(PACKAGE) .
	@$(VENV)/bin/python -m venv $(PACKAGE)/venv
	@$(PACKAGE)/venv/bin/python -m pip install --quiet $(PACKAGE)/*.whl
	@cd $(PACKAGE)/empty && ../venv/bin/duet-jax --version && ../venv/bin/duet-jax \
	--config=smoke --mode=train,linear_probe,knn,equivariance,generation,report

format: $(READY)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .
