# Every target sets itself up: it makes .venv when it is missing or the dependencies changed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DIR    ?= outputs/colored_digits
ROUNDS ?= 30
# WILDS reads its images itself; the others are decoded once.
CACHE  := $(if $(filter camelyon17 fmow,$(DATASET)),,dataset.cache=outputs/cache)
TEST   ?= $(if $(filter pacs,$(DATASET)),sketch)

.DEFAULT_GOAL := help
.PHONY: help install run test test-slow check format golden bench gpu gpu-kit results table docs

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## make .venv with the exact versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "constraints.txt needs Python 3.11 or newer; pass PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): a few minutes, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY)  ## a gamma sweep of Fishr with its ERM baseline on embedded data, its table and figure; or on images: make run DATASET=vlcs ROOT=DIR TEST=SUN09 (WORDS: more words for fishr-exp)
ifeq ($(origin DATASET),command line)
	$(if $(ROOT),,$(error add ROOT=DIR, the folder that holds the domains of DATASET=$(DATASET)))
	$(if $(TEST),,$(error add TEST=DOMAIN, the domain of DATASET=$(DATASET) to leave out))
	$(BIN)/fishr-data check $(DATASET) "$(ROOT)" $(filter dataset.%,$(WORDS)) || test $$? = 1
	$(BIN)/fishr-exp --multirun experiment=images_quickstart output_dir=outputs/$(DATASET)_quickstart \
	    dataset=$(DATASET) 'dataset.root="$(ROOT)"' 'test_domains=["$(TEST)"]' $(CACHE) $(WORDS)
	$(BIN)/fishr-table outputs/$(DATASET)_quickstart
else
	$(BIN)/fishr-exp --multirun experiment=colored_digits_fishr
	$(BIN)/fishr-table outputs/colored_digits
endif

test: $(READY)  ## all tests that need no long run, server or GPU
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(READY)  ## the long ones too: servers, slow references, GPU where there is one
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m ''

check: $(READY)  ## ruff (lint and format), types, and the import layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_rooms.py

format: $(READY)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(READY)  ## rewrite the golden files; say why in the commit
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest tests/unit/reports

bench: $(READY)  ## time and memory of a step, ERM beside Fishr, half precision, MLflow's cost and a sweep's: writes docs/benchmarks.md; three quarters of an hour on a quiet machine
	$(BIN)/python scripts/bench_step.py --rounds $(ROUNDS) --markdown docs/benchmarks.md
	$(BIN)/python scripts/bench_precision.py --markdown docs/benchmarks.md
	$(BIN)/python scripts/bench_growth.py --figure docs/growth --json docs/growth.json --markdown docs/benchmarks.md
	$(BIN)/python scripts/bench_tracking.py --markdown docs/benchmarks.md
	$(BIN)/python scripts/bench_sweep.py --markdown docs/benchmarks.md

# Needs no .venv: the Python that has PyTorch for the GPU is taken as it is.
gpu:  ## all that needs a GPU, in 25 minutes: tests, steps, data, Table 2, PACS; KIT=DIR (of make gpu-kit) or WHEELS=DIR MNIST=DIR PACS=DIR; OUT, PARTS, MINUTES, STEPS (of PACS); CUT=1 tries it on the CPU
	$(PYTHON) scripts/measure_gpu.py --out "$(or $(OUT),outputs/gpu)" $(if $(KIT),--kit "$(KIT)") \
	    $(if $(WHEELS),--wheels "$(WHEELS)") $(if $(MNIST),--mnist "$(MNIST)") $(if $(PACS),--pacs "$(PACS)") \
	    $(if $(PARTS),--parts $(PARTS)) $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(STEPS),--pacs-steps $(STEPS)) $(if $(CUT),--cut)

gpu-kit: $(READY)  ## what a GPU machine without a network lacks: wheels and data, into KIT=DIR; MNIST=DIR, PACS=DIR
	$(BIN)/python scripts/gpu_kit.py "$(or $(KIT),outputs/gpu_kit)" \
	    $(if $(MNIST),--mnist "$(MNIST)") $(if $(PACS),--pacs "$(PACS)") $(WORDS)

docs: $(READY)  ## the manual, into outputs/site; fails on a warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "outputs/site/index.html"

results: $(READY)  ## the figures and tables of docs/results, from the records beside them
	$(BIN)/python scripts/redraw_results.py

table: $(READY)  ## the table of the runs under DIR (outputs/colored_digits)
	$(BIN)/fishr-table $(DIR)
