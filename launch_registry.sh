#!/usr/bin/env bash
# Starts the registry and waits until it answers. Arguments are passed on to it.
# Each variable can be set in the environment; an empty one leaves the choice to REGISTRY_CONFIG.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

REGISTRY_CONFIG=${REGISTRY_CONFIG-$ROOT/deployment_configs/registry_config.json}
REGISTRY_HOST=${REGISTRY_HOST:-}
REGISTRY_PORT=${REGISTRY_PORT:-}          # 18000 where the file names none
HEALTH_INTERVAL=${REGISTRY_HEALTH_INTERVAL:-${HEALTH_INTERVAL:-}}
HEALTH_TIMEOUT=${REGISTRY_HEALTH_TIMEOUT:-${HEALTH_TIMEOUT:-}}
CLEANUP_INTERVAL=${REGISTRY_CLEANUP_INTERVAL:-${CLEANUP_INTERVAL:-}}
REGISTRY_STORE=${REGISTRY_STORE:-}        # follows LOG_DIR
REGISTRY_WAIT_TIMEOUT=${REGISTRY_WAIT_TIMEOUT:-60}

ensure_python
[[ -n $REGISTRY_PORT || -n $(config_value "$REGISTRY_CONFIG" registry port) ]] || REGISTRY_PORT=18000
[[ $LOG_DIR == "$ROOT/logs" ]] || REGISTRY_STORE=${REGISTRY_STORE:-$LOG_DIR/registry.sqlite3}
flags --config "$REGISTRY_CONFIG" --host "$REGISTRY_HOST" --port "$REGISTRY_PORT" \
  --health-interval "$HEALTH_INTERVAL" --health-timeout "$HEALTH_TIMEOUT" \
  --cleanup-interval "$CLEANUP_INTERVAL" --store "$REGISTRY_STORE"
launch registry "$REGISTRY_WAIT_TIMEOUT" "$PYTHON" "$ROOT/registry/service_registry.py" "${FLAGS[@]}" "$@"
