#!/usr/bin/env bash
# DPPO | Qwen3-30B-A3B | FSDP2, or Megatron for router replay | 4 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

SETTING=${SETTING:-base}  # base_r3: with router replay; thinking: not the base model; verl_script: not the paper's
METHOD=${METHOD:-dppo_binary_tv}

case $SETTING in
    base | base_r3 | thinking) EXPERIMENT=dppo/qwen3_30b_a3b_$SETTING ;;
    verl_script) EXPERIMENT=dppo/verl_script ;;
    *)
        echo "error: SETTING=$SETTING: expected base, base_r3, thinking or verl_script" >&2
        exit 2
        ;;
esac

source "$(dirname "$0")/../launch.sh"
launch "$@"
