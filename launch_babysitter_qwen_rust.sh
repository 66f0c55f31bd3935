#!/usr/bin/env bash
# Starts InfiniLM-Rust with service_qwen.toml on port 8200. Each variable can be set in the
# environment; launch_babysitter.sh has the others.
set -euo pipefail
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

export PORT=${PORT:-8200}
export SERVICE_TYPE=${SERVICE_TYPE:-InfiniLM-Rust}
export CONFIG_FILE=${CONFIG_FILE:-$here/service_qwen.toml}
export HPCC_VISIBLE_DEVICES=${HPCC_VISIBLE_DEVICES-4,5,6,7}
export BABYSITTER_LABEL=qwen
exec "$here/launch_babysitter.sh" "$@"
