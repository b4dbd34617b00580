#!/usr/bin/env bash
# Submits a recipe to a Ray cluster with `ray job submit`, and follows its log to the end. Ctrl-C ends the following, not
# the job.
#
#   export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
#   recipes/submit.sh drpo_qwen3_4b SHARED_DIR=/shared/drpo-verl METHOD=drpo trainer.total_training_steps=400
#
# After the recipe's name: VARIABLE=value is for its script, --option=value for `ray job submit`, the rest are Hydra
# overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"  # for `ray`, where no environment is active

RECIPE=${1:-}
if [[ ! -f recipes/$RECIPE/job.yaml ]]; then
    echo "error: no recipe '$RECIPE'; there are:" >&2
    dirname recipes/*/job.yaml >&2
    exit 2
fi
shift

VARIABLES=()
OVERRIDES=()
OPTIONS=(--submission-id="$RECIPE-$(date +%Y%m%d-%H%M%S)")
for argument; do
    case $argument in
        --*) OPTIONS+=("$argument") ;;
        [A-Z]*=*) VARIABLES+=("$argument") ;;
        *) OVERRIDES+=("$argument") ;;
    esac
done
SCRIPTS=(recipes/"$RECIPE"/run_*.sh)

exec ray job submit --runtime-env="recipes/$RECIPE/job.yaml" "${OPTIONS[@]}" \
    -- env "${VARIABLES[@]}" bash "${SCRIPTS[0]}" "${OVERRIDES[@]}"
