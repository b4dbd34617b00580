#!/usr/bin/env bash
# DPPO, the sanity test | DeepSeek-R1-Distill-Qwen-1.5B | FSDP2 | 1 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=dppo/sanity_r1d
METHOD=${METHOD:-dppo_binary_tv}

source "$(dirname "$0")/../launch.sh"
launch "$@"
