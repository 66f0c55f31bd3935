#!/usr/bin/env bash
# usage: launch_router.sh [--implementation python|rust] [ROUTER FLAGS]
# Starts the router and waits until it answers. Each variable can be set in the environment; an empty
# one leaves the choice to ROUTER_CONFIG.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

ROUTER_IMPLEMENTATION=${ROUTER_IMPLEMENTATION:-python}
ROUTER_CONFIG=${ROUTER_CONFIG-$ROOT/deployment_configs/router_config.json}
ROUTER_HOST=${ROUTER_HOST:-}
ROUTER_PORT=${ROUTER_PORT:-}              # 8000 where the file names none
REGISTRY_URL=${ROUTER_REGISTRY_URL:-${REGISTRY_URL:-}}
STATIC_SERVICES_FILE=${STATIC_SERVICES_FILE:-}
HEALTH_INTERVAL=${ROUTER_HEALTH_INTERVAL:-${HEALTH_INTERVAL:-}}
HEALTH_TIMEOUT=${ROUTER_HEALTH_TIMEOUT:-${HEALTH_TIMEOUT:-}}
MAX_ERRORS=${MAX_ERRORS:-}
REGISTRY_SYNC_INTERVAL=${ROUTER_REGISTRY_SYNC_INTERVAL:-${REGISTRY_SYNC_INTERVAL:-}}
SERVICE_REMOVAL_GRACE_PERIOD=${SERVICE_REMOVAL_GRACE_PERIOD:-}
ROUTER_STATE_DIR=${ROUTER_STATE_DIR:-}    # of the last good list of engines; follows LOG_DIR
ROUTER_WAIT_TIMEOUT=${ROUTER_WAIT_TIMEOUT:-60}

arguments=()
while (($#)); do
  case $1 in
    --implementation) (($# > 1)) || die 64 "--implementation needs a value: python or rust"; ROUTER_IMPLEMENTATION=$2; shift ;;
    --implementation=*) ROUTER_IMPLEMENTATION=${1#*=} ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
case $ROUTER_IMPLEMENTATION in
  python) ;;
  rust) die 69 "the Rust router is not in this release: $ROOT/router-rust is still to come. Use --implementation python." ;;
  *) die 64 "--implementation (ROUTER_IMPLEMENTATION) is '$ROUTER_IMPLEMENTATION'; it can be python or rust." ;;
esac
ensure_python
[[ -n $ROUTER_PORT || -n $(config_value "$ROUTER_CONFIG" router port) ]] || ROUTER_PORT=8000
[[ -n $REGISTRY_URL || -n $ROUTER_CONFIG ]] || REGISTRY_URL=http://localhost:18000
[[ $LOG_DIR == "$ROOT/logs" ]] || ROUTER_STATE_DIR=${ROUTER_STATE_DIR:-$LOG_DIR}
flags --config "$ROUTER_CONFIG" --host "$ROUTER_HOST" --router-port "$ROUTER_PORT" \
  --registry-url "$REGISTRY_URL" --static-services "$STATIC_SERVICES_FILE" \
  --health-interval "$HEALTH_INTERVAL" --health-timeout "$HEALTH_TIMEOUT" --max-errors "$MAX_ERRORS" \
  --registry-sync-interval "$REGISTRY_SYNC_INTERVAL" \
  --service-removal-grace-period "$SERVICE_REMOVAL_GRACE_PERIOD" --state-dir "$ROUTER_STATE_DIR"
launch router "$ROUTER_WAIT_TIMEOUT" "$PYTHON" "$ROOT/router-python/distributed_router.py" "${FLAGS[@]}" "${arguments[@]}"
