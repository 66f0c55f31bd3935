#!/usr/bin/env bash
# Starts InfiniLM with the 9g_8b_thinking model on port 8100. Each variable can be set in the
# environment; launch_babysitter.sh has the others.
set -euo pipefail

export PORT=${PORT:-8100}
export SERVICE_TYPE=${SERVICE_TYPE:-InfiniLM}
export MODEL_PATH=${MODEL_PATH:-/models/9g_8b_thinking}
export DEV=${DEV:-metax}
export NDEV=${NDEV:-1}
export MAX_BATCH=${MAX_BATCH:-16}
export HPCC_VISIBLE_DEVICES=${HPCC_VISIBLE_DEVICES-1}
export BABYSITTER_LABEL=9g8b
exec "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/launch_babysitter.sh" "$@"
