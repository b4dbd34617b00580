#!/usr/bin/env bash
# The tiny policy | FSDP2 over gloo | CPUs. Every argument is a Hydra override.
set -euo pipefail

EXPERIMENT=cpu_tiny

source "$(dirname "$0")/../launch.sh"
launch "$@"
