# Everything here runs on Linux without a GPU. `make` lists the targets.

# An interpreter of one's own choice. Otherwise requirements/environment.sh takes the first of 3.11, 3.12, 3.13, 3.10.
PYTHON ?=
VENV   ?= .venv
# Where the CPU build of torch is, if pip does not find it by itself.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN       := $(VENV)/bin
# On a machine with a GPU: the environment of `make setup-gpu`, and what the targets for GPUs run with, which may be an
# interpreter of your own stack.
VENV_GPU   ?= .venv-gpu
GPU_PYTHON ?= $(or $(wildcard $(VENV_GPU)/bin/python),$(BIN)/python)
DEVICE     ?= cuda
# How many real runs `make test-e2e` makes at a time. A run takes seven GiB, and most of its time is start-up, which
# keeps one core busy.
E2E_RUNS   ?= $(shell awk '/^MemTotal/ {print ($$2 > 15 * 1024 * 1024) ? 2 : 1}' /proc/meminfo)
INSTALLED := $(VENV)/.installed
OVERLAYS  := $(VENV)/megatron/.installed $(VENV)/verl-0.9.0/.installed

.DEFAULT_GOAL := help
.PHONY: study study-page study-smoke help setup setup-gpu demo demo-gpu smoke smollm2 test test-gpu bench-gpu test-unit test-configuration test-contract test-e2e test-faults browser lint docs reliability methods top-k diagnostics weights anchors probe mismatch bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 32

# --ignore-requires-python: verl 0.9.1 says that it is for Python below 3.13, and runs on 3.13 too (docs/install.md).
setup: $(INSTALLED)  ## install the pinned stack into .venv (no GPU needed)

# pip would compile 30,000 files one after the other; compileall does it on all cores.
PIP := $(BIN)/pip install --quiet --no-deps --no-compile

$(INSTALLED): requirements/cpu.txt requirements/torch-cpu.txt pyproject.toml
	@requirements/environment.sh $(VENV) $(PYTHON)
	@echo "$(VENV): $$($(BIN)/python --version); installing torch (CPU build) ..."
	@$(PIP) -r requirements/torch-cpu.txt 2>/dev/null || $(PIP) --index-url $(TORCH_INDEX) -r requirements/torch-cpu.txt
	@echo "installing the rest of the stack (about 250 packages, 2 to 5 minutes) ..."
	@$(PIP) --ignore-requires-python -r requirements/cpu.txt
	@$(PIP) --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib/python3*/site-packages >/dev/null 2>&1 || true  # some are not Python 3
	@touch $@

# Not into the environment, but on the path of single tests: every process of a run would import Megatron where it finds
# it, and there is a verl already.
$(OVERLAYS): $(VENV)/%/.installed: requirements/%.txt $(INSTALLED)
	@rm -rf $(@D)
	@$(BIN)/pip install --quiet --no-deps --ignore-requires-python --target $(@D) -r $<
	@touch $@

setup-gpu: $(VENV_GPU)/.installed  ## install the pinned stack for one NVIDIA GPU into .venv-gpu

$(VENV_GPU)/.installed: requirements/cuda.txt pyproject.toml
	@requirements/environment.sh $(VENV_GPU) $(or $(PYTHON),python3.12)
	@echo "installing the stack with CUDA (about 280 packages, 10 GB) ..."
	@$(VENV_GPU)/bin/pip install --quiet --no-deps -r requirements/cuda.txt
	@$(VENV_GPU)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo-gpu: $(VENV_GPU)/.installed  ## the demo on one GPU, with bf16 in both engines
	$(VENV_GPU)/bin/python -m drpo_verl.train experiment=gpu_tiny trainer.experiment_name=demo_gpu

demo: $(INSTALLED)  ## train the tiny policy with DRPO on verl + Ray + vLLM + FSDP2
	$(BIN)/python -m drpo_verl.train experiment=cpu_tiny trainer.experiment_name=demo

smoke: $(INSTALLED)  ## three steps of the same job
	$(BIN)/python -m drpo_verl.train experiment=cpu_tiny trainer.experiment_name=smoke trainer.total_training_steps=3 \
	  trainer.val_before_train=false trainer.test_freq=-1

smollm2: $(INSTALLED)  ## the same job on SmolLM2-135M-Instruct, bf16 rollout against fp32 trainer
	$(BIN)/python -m drpo_verl.train experiment=cpu_smollm2

test: test-unit test-configuration test-contract test-e2e  ## all tests

test-unit test-configuration: test-%: $(INSTALLED)  ## the objectives and what is around them; experiments and the check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/$*

test-contract: $(INSTALLED) $(OVERLAYS)  ## the seams with real verl, two versions of it, and with ranks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/contract

test-e2e: $(INSTALLED)  ## real runs, and engines; the tests for a GPU, on the CPU
	$(BIN)/python -m pytest --numprocesses $(E2E_RUNS) --dist loadscope --no-loadscope-reorder tests/e2e tests/gpu

test-gpu:  ## the tests for one GPU of 24 GB or more (DEVICE=cpu: the same bodies on a CPU)
	@command -v $(GPU_PYTHON) >/dev/null || { echo "no $(GPU_PYTHON): run make setup-gpu (or make setup), or set GPU_PYTHON"; exit 1; }
	$(GPU_PYTHON) -m pytest tests/gpu --device $(DEVICE)

test-faults: $(INSTALLED)  ## real runs into which faults are injected; their times are in outputs/faults.jsonl
	@mkdir -p outputs && rm -f outputs/faults.jsonl
	FAULT_TIMES=outputs/faults.jsonl $(BIN)/python -m pytest tests/faults -n 2 --dist loadfile

browser:  ## install chromium, in which the report is tested (Debian, as root)
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## write the tables of metrics and methods from the code
	$(BIN)/python docs/metrics_tables.py docs/metrics.md
	$(BIN)/python docs/methods_table.py

reliability: $(INSTALLED)  ## write the table of docs/reliability.md from the last `make test-faults`
	$(BIN)/python docs/reliability_table.py outputs/faults.jsonl docs/reliability.md

top-k diagnostics: %: $(INSTALLED)  ## what they cost in a step
	$(BIN)/python -m benchmarks.$(subst -,_,$*)

methods: $(INSTALLED)  ## three real steps of every method
	$(BIN)/python -m benchmarks.methods

weights: $(INSTALLED)  ## draw docs/weights.png anew
	$(BIN)/python -m benchmarks.weights docs/weights.png

anchors: $(INSTALLED)  ## draw docs/anchors.png anew, and print its table
	$(BIN)/python -m benchmarks.anchors docs/anchors.png

PROBE := $(BIN)/drpo-verl probe smollm2 --train-dtype float32 --prompts docs/probe_prompts.txt --max-tokens 24
probe: $(INSTALLED)  ## measure SmolLM2 in vLLM (bf16, fp8 KV cache) against fp32, and draw docs/probe*.png anew
	$(PROBE) --out outputs/probe && cp outputs/probe/probe.png docs/probe.png
	$(PROBE) --kv-cache-dtype fp8_e4m3 --out outputs/probe_fp8 && cp outputs/probe_fp8/probe.png docs/probe_fp8.png

mismatch: $(INSTALLED)  ## measure vLLM against the trainer in every precision, and write docs/precision.md's table
	$(BIN)/python -m benchmarks.mismatch

bench: $(INSTALLED)  ## time and memory of the losses against verl's
	$(BIN)/python -m benchmarks.policy_loss

study: $(INSTALLED)  ## the runs behind docs/study.md that are not there yet: many hours
	$(BIN)/drpo-verl study studies/trust_region_map.yaml --out docs/study

study-page: $(INSTALLED)  ## write the tables and pictures of docs/study.md, and what the product knows of them
	$(BIN)/python -m benchmarks.study_page

study-smoke: $(INSTALLED)  ## a study of four short runs
	$(BIN)/drpo-verl study studies/smoke.yaml

bench-gpu:  ## time and memory of the losses, and of an update with them, on one GPU
	$(GPU_PYTHON) -m benchmarks.gpu --device $(DEVICE)

lock: $(INSTALLED)  ## pin requirements/cpu.in again, for every Python from 3.10 on
	$(BIN)/uv pip compile requirements/cpu.in --override requirements/excluded.txt --no-header --no-emit-index-url \
	  --universal --python-version 3.10 --no-python-downloads --output-file requirements/cpu.txt
	$(BIN)/uv pip compile requirements/cuda.in --override requirements/excluded-cuda.txt --no-header --no-emit-index-url \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_34 --no-python-downloads \
	  --output-file requirements/cuda.txt

clean:  ## remove the environment and everything that runs left behind
	rm -rf $(VENV) $(VENV_GPU) outputs build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
