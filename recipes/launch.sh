#!/usr/bin/env bash
# Runs an experiment of hydra_configs/experiment, here or on the Ray cluster that RAY_ADDRESS names. In a job, submit.sh
# has started it.
#
#   METHOD=drpo SHARED_DIR=/shared recipes/launch.sh drpo/qwen3_4b trainer.total_training_steps=400
#
# The arguments after the experiment's name are Hydra overrides, and have the last word over the variables.
set -euo pipefail

if (($# == 0)) || [[ $1 == *=* ]]; then
    echo "usage: recipes/launch.sh EXPERIMENT [hydra.override=value]..." >&2
    exit 2
fi
EXPERIMENT=$1
ARGUMENTS=("$@")
shift

# ---- user-adjustable; empty: as the experiment has it ----
SHARED_DIR=${SHARED_DIR:-}    # on a cluster, a folder that every node has: data/, huggingface/, cache/, runs/
METHOD=${METHOD:-}            # of hydra_configs/method
HARDWARE=${HARDWARE:-}        # of hydra_configs/hardware
MODEL_PATH=${MODEL_PATH:-}    # a copy of the model's folder
RUN_NAME=${RUN_NAME:-}        # the same name again is the same run
RESUME_MODE=${RESUME_MODE:-}  # auto: on from the run's last checkpoint; disable: from the start
TOTAL_STEPS=${TOTAL_STEPS:-}
SAVE_FREQ=${SAVE_FREQ:-}      # steps
TEST_FREQ=${TEST_FREQ:-}      # steps
# ---- end user-adjustable ----

# What the run says when it ends early; submit.sh has a command of its own.
if [[ -z ${DRPO_VERL_RESUME_COMMAND:-} ]]; then
    RESUME=(env)
    for name in SHARED_DIR METHOD HARDWARE MODEL_PATH RUN_NAME TOTAL_STEPS SAVE_FREQ TEST_FREQ; do
        [[ -z ${!name} ]] || RESUME+=("$name=${!name}")
    done
    RESUME+=("$0")
    for argument in "${ARGUMENTS[@]}"; do
        [[ $argument == trainer.resume_mode=* ]] || RESUME+=("$argument")
    done
    printf -v DRPO_VERL_RESUME_COMMAND '%q ' "${RESUME[@]}" trainer.resume_mode=auto
    export DRPO_VERL_RESUME_COMMAND=${DRPO_VERL_RESUME_COMMAND% }
fi

if [[ -z $METHOD && $EXPERIMENT == dppo/* ]]; then
    METHOD=dppo_binary_tv
fi

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x $ROOT/.venv/bin/python ]] && PYTHON=$ROOT/.venv/bin/python
fi

RUNS=outputs
if [[ -n $SHARED_DIR ]]; then
    RUNS=$SHARED_DIR/runs
    export DRPO_VERL_DATA=${DRPO_VERL_DATA:-$SHARED_DIR/data}
    export DRPO_VERL_CACHE=${DRPO_VERL_CACHE:-$SHARED_DIR/cache}
    export HF_HOME=${HF_HOME:-$SHARED_DIR/huggingface}
fi

RUN=(
    experiment="$EXPERIMENT"
    ${METHOD:+method="$METHOD"}
    ${HARDWARE:+hardware="$HARDWARE"}
    ${MODEL_PATH:+actor_rollout_ref.model.path="$MODEL_PATH"}
    run.dir="$RUNS/\${trainer.experiment_name}" # resolved by Hydra
)

TRAINER=(
    ${RUN_NAME:+trainer.experiment_name="$RUN_NAME"}
    ${RESUME_MODE:+trainer.resume_mode="$RESUME_MODE"}
    ${TOTAL_STEPS:+trainer.total_training_steps="$TOTAL_STEPS"}
    ${SAVE_FREQ:+trainer.save_freq="$SAVE_FREQ"}
    ${TEST_FREQ:+trainer.test_freq="$TEST_FREQ"}
)

# Where drpo-verl is not installed, the checkout that came with the job is verl's plugin, beside others of your own.
export VERL_USE_EXTERNAL_MODULES="drpo_verl.plugin${VERL_USE_EXTERNAL_MODULES:+,$VERL_USE_EXTERNAL_MODULES}"

# For every process of the run, on every node. In quotes, since a comma means something else to Hydra.
ENVIRONMENT=(
    "VERL_USE_EXTERNAL_MODULES='$VERL_USE_EXTERNAL_MODULES'"
    ${HF_HOME:+HF_HOME="$HF_HOME"}
)

cd "$ROOT"
exec "$PYTHON" -m drpo_verl.train \
    "${RUN[@]}" \
    "${TRAINER[@]}" \
    "${ENVIRONMENT[@]/#/++ray_kwargs.ray_init.runtime_env.env_vars.}" \
    "$@"
