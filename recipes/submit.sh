#!/usr/bin/env bash
# Submits an experiment of hydra_configs/experiment to a Ray cluster with `ray job submit`, and follows its log to the
# end. Ctrl-C ends the following, not the job.
#
#   export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
#   recipes/submit.sh drpo/qwen3_4b SHARED_DIR=/shared/drpo-verl METHOD=drpo trainer.total_training_steps=400
#
# After the experiment's name: VARIABLE=value is for launch.sh, --option=value for `ray job submit`, and the rest are
# Hydra overrides.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$PWD/.venv/bin"          # for `ray`, where no environment is active
AGENT_SECONDS=${AGENT_SECONDS:-120}  # how long to wait for a cluster that has just started to take jobs

EXPERIMENT=${1:-}
if [[ ! -f hydra_configs/experiment/$EXPERIMENT.yaml ]]; then
    echo "error: no experiment '$EXPERIMENT'; there are:" >&2
    find hydra_configs/experiment -name '*.yaml' | sed 's|^hydra_configs/experiment/||; s|\.yaml$||' | sort >&2
    exit 2
fi
shift

VARIABLES=()
OVERRIDES=()
OPTIONS=(--submission-id="${EXPERIMENT//\//_}-$(date +%Y%m%d-%H%M%S)")
for argument; do
    case $argument in
        --*) OPTIONS+=("$argument") ;;
        [A-Z]*=*) VARIABLES+=("$argument") ;;
        *) OVERRIDES+=("$argument") ;;
    esac
done

# What the run says when it ends early. The same submission id again would be refused.
RESUME=("$0" "$EXPERIMENT")
for argument; do
    case $argument in
        --submission-id=* | RESUME_MODE=* | trainer.resume_mode=*) ;;
        *) RESUME+=("$argument") ;;
    esac
done
printf -v RESUME_COMMAND '%q ' "${RESUME[@]}" trainer.resume_mode=auto

ERRORS=$(mktemp)
trap 'rm -f "$ERRORS"' EXIT

submit() {
    ray job submit --runtime-env=recipes/job.yaml "${OPTIONS[@]}" \
        -- env DRPO_VERL_RESUME_COMMAND="${RESUME_COMMAND% }" "${VARIABLES[@]}" bash recipes/launch.sh "$EXPERIMENT" "${OVERRIDES[@]}" 2>&1 >&3 | tee "$ERRORS" >&2
} 3>&1

until submit; do
    status=$?
    if ((SECONDS >= AGENT_SECONDS)) || ! grep -q "No available agent to submit job" "$ERRORS"; then
        exit "$status"
    fi
    echo "The cluster does not take jobs yet: its agent is still starting. Trying again, for up to $AGENT_SECONDS s." >&2
    sleep 5
done
