#!/usr/bin/env bash
# The tiny policy on a CPU; every argument is a Hydra override.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec .venv/bin/python -m drpo_verl.train experiment=cpu_tiny "$@"
