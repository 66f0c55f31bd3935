#!/usr/bin/env bash
# usage: launch_router.sh [--replace] [--implementation auto|python|rust] [ROUTER FLAGS]
# Starts the router and waits until it answers. With --replace, one that runs already is replaced and no
# connection is lost: the new one takes over its port when it knows the engines, the old one ends what it
# has begun. If the new one cannot start, the old one serves on.
# auto takes the Rust router where its program is there or can be built, else the Python one, and says why.
# The flag wins over ROUTER_IMPLEMENTATION, and that over router.implementation of ROUTER_CONFIG. Each
# variable can be set in the environment; an empty one leaves the choice to ROUTER_CONFIG.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

ROUTER_IMPLEMENTATION=${ROUTER_IMPLEMENTATION:-}  # auto where the file names none
ROUTER_CONFIG=${ROUTER_CONFIG-$ROOT/deployment_configs/router_config.json}
ROUTER_HOST=${ROUTER_HOST:-}
ROUTER_PORT=${ROUTER_PORT:-}                      # 8000 where the file names none
REGISTRY_URL=${ROUTER_REGISTRY_URL:-${REGISTRY_URL:-}}
STATIC_SERVICES_FILE=${STATIC_SERVICES_FILE:-}
HEALTH_INTERVAL=${ROUTER_HEALTH_INTERVAL:-${HEALTH_INTERVAL:-}}
HEALTH_TIMEOUT=${ROUTER_HEALTH_TIMEOUT:-${HEALTH_TIMEOUT:-}}
MAX_ERRORS=${MAX_ERRORS:-}
REGISTRY_SYNC_INTERVAL=${ROUTER_REGISTRY_SYNC_INTERVAL:-${REGISTRY_SYNC_INTERVAL:-}}
SERVICE_REMOVAL_GRACE_PERIOD=${SERVICE_REMOVAL_GRACE_PERIOD:-}
ROUTER_STATE_DIR=${ROUTER_STATE_DIR:-}            # of the last good list of engines; follows LOG_DIR
ROUTER_HANDOVER=${ROUTER_HANDOVER:-}              # Unix socket for --replace, none = off; follows LOG_DIR
ROUTER_WAIT_TIMEOUT=${ROUTER_WAIT_TIMEOUT:-60}

choose_program() { # sets PROGRAM and says which router that is, and why
  local using=python why="as $ORIGIN says"
  PROGRAM=("$PYTHON" "$ROOT/router-python/distributed_router.py")
  if [[ $IMPLEMENTATION != python ]]; then
    if find_rust_router; then
      PROGRAM=("$RUST_ROUTER") using=rust why="$REASON: $RUST_ROUTER"
    elif [[ $IMPLEMENTATION == rust ]]; then
      die 69 "the Rust router is asked for ($ORIGIN), but $REASON. Install Rust (https://rustup.rs) or a wheel of router-rust, or use --implementation python."
    else
      why="the Rust one is not available: $REASON"
    fi
  fi
  say "router: using $using ($why)"
}

keep_running() { # it stays as it is, but somebody who asked for the other one should know
  local is=rust
  [[ $(tr '\0' ' ' <"/proc/${RECORD[pid]}/cmdline") != *distributed_router.py* ]] || is=python
  say "router: already running (pid ${RECORD[pid]}, $is)"
  [[ $IMPLEMENTATION == @(auto|"$is") ]] || say "router: not the $IMPLEMENTATION one that is asked for ($ORIGIN): add --replace" >&2
  wait_ready router "$ROUTER_WAIT_TIMEOUT"
}

parse_launch_flags "$@"
ensure_python
if [[ -z $IMPLEMENTATION ]]; then
  ORIGIN="router.implementation in $ROUTER_CONFIG"
  IMPLEMENTATION=$(read_config "$ROUTER_CONFIG" router implementation || say auto)
  check_implementation "$ORIGIN" "$IMPLEMENTATION"
fi
[[ ! -e $LOG_DIR/router_next.pid ]] || settle router  # a replacement that was interrupted
inspect router
[[ $STATE != running || $REPLACE == true ]] || { keep_running; exit; }
choose_program
[[ -n $ROUTER_PORT || -n $(config_value "$ROUTER_CONFIG" router port) ]] || ROUTER_PORT=8000
[[ -n $REGISTRY_URL || -n $ROUTER_CONFIG ]] || REGISTRY_URL=http://localhost:18000
read_config "$ROUTER_CONFIG" router state_dir >/dev/null || ROUTER_STATE_DIR=${ROUTER_STATE_DIR:-$LOG_DIR}
read_config "$ROUTER_CONFIG" router handover >/dev/null || ROUTER_HANDOVER=${ROUTER_HANDOVER:-$LOG_DIR/router.handover}
flags --config "$ROUTER_CONFIG" --host "$ROUTER_HOST" --router-port "$ROUTER_PORT" \
  --registry-url "$REGISTRY_URL" --static-services "$STATIC_SERVICES_FILE" \
  --health-interval "$HEALTH_INTERVAL" --health-timeout "$HEALTH_TIMEOUT" --max-errors "$MAX_ERRORS" \
  --registry-sync-interval "$REGISTRY_SYNC_INTERVAL" \
  --service-removal-grace-period "$SERVICE_REMOVAL_GRACE_PERIOD" --state-dir "$ROUTER_STATE_DIR" --handover "$ROUTER_HANDOVER"
PROGRAM+=("${FLAGS[@]}" "${ARGUMENTS[@]}")
inspect router  # choosing a program may have taken minutes
if [[ $STATE == running && $REPLACE == true ]]; then
  replace router "$ROUTER_WAIT_TIMEOUT" "${PROGRAM[@]}" --take-over
else
  launch router "$ROUTER_WAIT_TIMEOUT" "${PROGRAM[@]}"
fi
