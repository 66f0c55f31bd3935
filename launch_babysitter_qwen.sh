#!/usr/bin/env bash
# Starts InfiniLM with Qwen3-32B on port 8200, on two devices. Each variable can be set in the
# environment; launch_babysitter.sh has the others.
set -euo pipefail

export PORT=${PORT:-8200}
export SERVICE_TYPE=${SERVICE_TYPE:-InfiniLM}
export MODEL_PATH=${MODEL_PATH:-/models/Qwen3-32B}
export DEV=${DEV:-metax}
export NDEV=${NDEV:-2}
export MAX_BATCH=${MAX_BATCH:-3}
export MAX_CONCURRENCY=${MAX_CONCURRENCY-}              # no limit
export HCCL_PCIE_BUFFER_MODE=${HCCL_PCIE_BUFFER_MODE-0} # two devices without it
export HPCC_VISIBLE_DEVICES=${HPCC_VISIBLE_DEVICES-4,5}
exec "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/launch_babysitter.sh" "$@"
