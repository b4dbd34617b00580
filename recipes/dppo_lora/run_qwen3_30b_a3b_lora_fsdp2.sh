#!/usr/bin/env bash
# DPPO | Qwen3-30B-A3B-Base, LoRA | FSDP2 | 4 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=dppo/lora
METHOD=${METHOD:-dppo_binary_tv}

source "$(dirname "$0")/../launch.sh"
launch "$@"
