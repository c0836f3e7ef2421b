# make demo   toy videos, a small MViTv2 trained and tested on them, report.html     make test   the tests, in parallel
# make env    only the virtual environment              make test-all   with the slow tests      make faults   only the fault suite
# make lint   ruff and hadolint                          make toys       the longer toy runs, one for each system, and what they must reach
#
# Variables: VENV=path   PYTHON=python3.12   WORKERS=2   TESTS="tests/models"   PINS="torch==2.10.* torchvision==0.25.*"

PYTHON ?= python3
PINS ?=
TESTS ?= tests
WORKERS ?= 2

# The environment is named after what goes into it, so clones with the same dependencies share one and a change of setup.py
# makes a new one. It therefore holds the dependencies only: this clone's code is found through PYTHONPATH, where an
# editable install would tie every clone to the one that came first.
ENV_ID := $(shell (cat setup.py; echo '$(PINS)'; $(PYTHON) --version) 2>&1 | cksum | cut -d ' ' -f 1)
VENV ?= $(HOME)/.cache/videorl/venv-$(ENV_ID)
READY := $(VENV)/ready-$(ENV_ID)
BIN := $(VENV)/bin
RUN := PYTHONPATH="$(CURDIR)" "$(BIN)/python"
# One thread a worker: with more, PyTorch's threads of the workers fight for the same cores
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest

.PHONY: help demo toys test test-all faults lint env venv
.DEFAULT_GOAL := help

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

demo: env
	$(RUN) tools/make_toy.py --out datasets/toy
	$(RUN) tools/run_net.py --cfg configs/toy/mvit.yaml

toys: env
	$(RUN) tools/make_toy.py --out datasets/toy_multi --multi
	$(RUN) tools/run_net.py --cfg configs/toy/multitrain.yaml
	$(RUN) tools/make_toy.py --out datasets/toy_narrated --narrated
	$(RUN) tools/run_net.py --cfg configs/toy/milnce.yaml
	$(RUN) tools/run_net.py --cfg configs/toy/milnce.yaml HOWTO100M.NUM_CANDIDATES 1 OUTPUT_DIR runs/toy_milnce_k1
	$(RUN) tools/make_toy.py --out datasets/toy_small --small --train 1920 --val 198 --test 198
	$(RUN) tools/run_net.py --cfg configs/toy/videomae_pt.yaml
	$(RUN) tools/run_net.py --cfg configs/toy/videomae_ft.yaml
	$(RUN) tools/run_net.py --cfg configs/toy/videomae_ft.yaml TRAIN.CHECKPOINT_FILE_PATH "" OUTPUT_DIR runs/toy_videomae_scratch
	$(RUN) tools/make_toy.py --out datasets/toy_ego --egocentric
	$(RUN) tools/run_net.py --cfg configs/toy/lavila.yaml
	$(RUN) tools/run_net.py --cfg configs/toy/lavila.yaml EGO4D.METADATA datasets/toy_ego/ego4d_train.part.pkl OUTPUT_DIR runs/toy_lavila_part
	$(RUN) tools/run_net.py --cfg configs/toy/lavila.yaml EGO4D.METADATA datasets/toy_ego/ego4d_train.part.pkl \
		EGO4D.METADATA_AUX datasets/toy_ego/ego4d_train.narrator.pkl LOSSES.main.PSEUDO_TEMPERATURE 0.07 OUTPUT_DIR runs/toy_lavila_both
	$(RUN) tools/run_net.py --cfg configs/toy/narrator.yaml
	$(RUN) tools/make_toy.py --out datasets/toy_long --long
	$(RUN) tools/tokenize_captions.py datasets/toy_long/captions.json --features datasets/toy_long/features \
		--vocabulary datasets/toy_long/vocab.txt --out datasets/toy_long/text/captions.
	$(RUN) tools/run_net.py --cfg configs/toy/norton.yaml
	$(RUN) tools/run_net.py --cfg configs/toy/norton_infonce.yaml
	$(PYTEST) -m "" tests/test_toys.py

test: env
	$(PYTEST) -n $(WORKERS) --dist loadfile $(TESTS)

test-all: env
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "" $(TESTS)

faults: env
	# They wait more than they compute
	$(PYTEST) -n 4 --dist loadfile -m "" tests/faults

lint: env
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/hadolint" docker/Dockerfile

env:
	@test -f "$(READY)" || $(MAKE) --no-print-directory venv

# uv does in 20 s what takes pip 75 s; pip does it where uv cannot be had
venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: apt-get install python3, or make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make a virtual environment: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing the dependencies (about 6 GB, half a minute to two minutes) into $(VENV)"
	$(PYTHON) -m venv "$(VENV)"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check uv || echo "uv cannot be had: going on with pip"
	@if test -x "$(BIN)/uv"; then \
		"$(BIN)/uv" pip install --python "$(BIN)/python" -r setup.py --extra test $(PINS); \
	else \
		"$(BIN)/python" -m pip install -e ".[test]" $(PINS) && "$(BIN)/python" -m pip uninstall --yes videorl; \
	fi
	@touch "$(READY)"
