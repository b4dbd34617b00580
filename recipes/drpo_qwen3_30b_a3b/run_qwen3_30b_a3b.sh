#!/usr/bin/env bash
# DRPO | mixtures of experts | FSDP2, or Megatron for FP8 end to end | 4 x 8 GPUs. Every argument is a Hydra override.
set -euo pipefail

SETTING=${SETTING:-bf16}  # fp8_rollout: FP8 in vLLM; fp8_e2e: and in the trainer; qwen3_5: Qwen3.5-35B-A3B, in bf16
METHOD=${METHOD:-drpo}

case $SETTING in
    bf16 | fp8_rollout | fp8_e2e) EXPERIMENT=drpo/qwen3_30b_a3b_$SETTING ;;
    qwen3_5) EXPERIMENT=drpo/qwen3_5_35b_a3b ;;
    *)
        echo "error: SETTING=$SETTING: expected bf16, fp8_rollout, fp8_e2e or qwen3_5" >&2
        exit 2
        ;;
esac

source "$(dirname "$0")/../launch.sh"
launch "$@"
