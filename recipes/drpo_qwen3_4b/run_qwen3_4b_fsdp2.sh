#!/usr/bin/env bash
# DRPO | Qwen3-4B-Base | FSDP2 | 2 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=drpo/qwen3_4b
METHOD=${METHOD:-drpo}

source "$(dirname "$0")/../launch.sh"
launch "$@"
