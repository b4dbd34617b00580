#!/usr/bin/env bash
# DRPO | DeepSeek-R1-Distill-Qwen-1.5B | FSDP2 | 1 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=drpo/r1d_1_5b
METHOD=${METHOD:-drpo}

source "$(dirname "$0")/../launch.sh"
launch "$@"
