# make demo    distil the demo's student and write runs/demo/report.html
# make test    run the tests
# Each makes .venv, installs requirements.txt into it once, and runs; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed-$(shell cksum < requirements.txt | cut -d' ' -f1)
BIN := $(abspath $(VENV))/bin
# One rank a GPU; two ranks share the cores where there is none.
RANKS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 || echo --num_accelerators 2)
TRAIN = PATH="$(BIN):$$PATH" deepspeed $(RANKS) launch/train.py

.PHONY: help demo test teacher clean
help:
	@echo "make demo      distil the demo's student from its teacher; the report is runs/demo/report.html"
	@echo "make test      run all tests"
	@echo "make teacher   train the demo's teacher again (configs/demo_teacher/)"
	@echo "make clean     remove .venv (runs/ is yours and stays)"

demo: $(STAMP)
	$(TRAIN) --config configs/demo.yaml

test: $(STAMP)
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest

teacher: $(STAMP)
	$(BIN)/python -m kd.sources.demo.corpus --tokenizer runs/demo_tokenizer
	$(TRAIN) --config configs/demo_teacher.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_2.yaml --fresh
	$(TRAIN) --config configs/demo_teacher_3.yaml --fresh
	rm -rf configs/demo_teacher && cp -r runs/demo_teacher_3/student configs/demo_teacher

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
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV)
