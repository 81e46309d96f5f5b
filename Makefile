# make demo    distil the demo's student and write runs/demo/report.html
# make test    run the tests
# make check   lint, check the format and the types
# make generate  have the demo's teacher, behind a server, answer NUM prompts (300); verify the records, and train on them
# make docs    build the pages of docs/ into site/
# make gpu-kit collect the wheels that benchmarks/gpu_suite.py needs on a bare GPU machine, into build/gpu_kit
# make proof   make every run of benchmarks/proof.py that is not done; hours on a CPU, resumed by the same command
# Each makes .venv, installs requirements.txt into it once, and runs; a second run installs nothing. check and docs add their
# own tools to the same .venv.

PYTHON ?= python3
VENV := .venv
# A stamp for each file of requirements, named by its content: a changed file is installed again.
stamp = $(VENV)/$(1)-$(shell cksum < $(2) | cut -d' ' -f1)
STAMP := $(call stamp,installed,requirements.txt)
DEV_STAMP := $(call stamp,dev,requirements-dev.txt)
SERVE_STAMP := $(call stamp,serve,requirements-serve.txt)
DOCS_STAMP := $(call stamp,docs,requirements-docs.txt)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -q -r
BIN := $(abspath $(VENV))/bin
# One rank a GPU; two ranks share the cores where there is none.
RANKS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 || echo --num_accelerators 2)
# DeepSpeed warns of each process that finds no GPU; --quiet leaves the launcher's errors.
TRAIN = PATH="$(BIN):$$PATH" $(if $(RANKS),DS_ACCELERATOR=cpu) deepspeed --quiet $(RANKS) launch/train.py

.PHONY: help demo test check generate docs gpu-kit proof teacher clean
help:
	@echo "make demo      distil the demo's student from its teacher; the report is runs/demo/report.html"
	@echo "make test      run all tests"
	@echo "make check     ruff (lint and format) and pyright on the sources"
	@echo "make generate  NUM=300: a data set from the demo's teacher behind a server, verified and trained on"
	@echo "make docs      build the documentation; it opens at site/index.html"
	@echo "make gpu-kit   the wheels that benchmarks/gpu_suite.py needs on a bare GPU machine, into build/gpu_kit"
	@echo "make proof     the runs behind the claim that distilling with spans pays; resumed by the same command"
	@echo "make teacher   train the demo's teacher again (configs/demo_teacher/)"
	@echo "make clean     remove .venv (runs/ is yours and stays)"

# The same student on the records' own words alone, for as many steps, beside it in the report.
CROSS_ENTROPY = loss.weights.kd=0 loss.weights.truth=1 loss.w_tool=0 loss.w_args=0 loss.w_integr=0 evaluation.baselines=false
demo: $(STAMP)
	$(TRAIN) --config configs/demo.yaml --set run.name=demo_cross_entropy $(foreach one,$(CROSS_ENTROPY),--set $(one))
	$(TRAIN) --config configs/demo.yaml --set evaluation.compare_with.cross_entropy=runs/demo_cross_entropy

# Two processes where there is no GPU to share, each with whole files, whose fixtures are made once.
test: $(STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest $(if $(RANKS),-n 2 --dist loadfile)

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" $(BIN)/pyright

NUM ?= 300
generate: $(SERVE_STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python tools/generate_demo.py --num $(NUM)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

gpu-kit: $(STAMP)
	$(BIN)/python tools/gpu_kit.py

proof: $(STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python benchmarks/proof.py

teacher: $(STAMP)
	$(BIN)/python -m kd.sources.demo.corpus --tokenizer runs/demo_tokenizer
	$(TRAIN) --config configs/demo_teacher.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_2.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_3.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_4.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_5.yaml --fresh
	rm -rf configs/demo_teacher && cp -r runs/demo_teacher_5/student configs/demo_teacher

$(STAMP): requirements.txt
	@missing=""; \
	for tool in $(PYTHON) git gcc g++; do command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	if command -v $(PYTHON) >/dev/null 2>&1; then \
	  $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' || missing="$$missing Python>=3.10(PYTHON=...)"; \
	  $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	  $(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' || missing="$$missing Python-headers(python3-dev)"; \
	fi; \
	if [ -n "$$missing" ]; then echo "missing:$$missing; install them first, nothing was changed" >&2; exit 1; fi
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $<
	touch $@

$(DEV_STAMP): requirements-dev.txt $(STAMP)
	$(PIP_INSTALL) $<
	touch $@

$(SERVE_STAMP): requirements-serve.txt $(STAMP)
	$(PIP_INSTALL) $<
	touch $@

$(DOCS_STAMP): requirements-docs.txt $(STAMP)
	$(PIP_INSTALL) $<
	touch $@

clean:
	rm -rf $(VENV)
