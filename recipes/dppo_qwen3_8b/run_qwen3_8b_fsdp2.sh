#!/usr/bin/env bash
# DPPO | Qwen3-8B-Base | FSDP2 | 2 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=dppo/qwen3_8b
METHOD=${METHOD:-dppo_binary_tv}

source "$(dirname "$0")/../launch.sh"
launch "$@"
