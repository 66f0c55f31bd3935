#!/usr/bin/env bash
# usage: launch_babysitter.sh [CONFIG.toml | PORT] [BABYSITTER FLAGS]
# Starts an engine under a babysitter and waits until the engine is ready. With CONFIG.toml that file
# says everything (BABYSITTER_HOST, BABYSITTER_REGISTRY_URL and BABYSITTER_ROUTER_URL override it);
# without, the variables below do. Each can be set in the environment; an empty URL switches it off.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

BABYSITTER_WAIT_TIMEOUT=${BABYSITTER_WAIT_TIMEOUT:-600}  # the babysitter's own limit for loading

given_port() { # ARGUMENT...: the port that the babysitter's flags name, since they win; false if none
  local port=''
  while (($#)); do
    case $1 in
      --port) port=${2:-} ;;
      --port=*) port=${1#*=} ;;
    esac
    shift
  done
  [[ $port =~ ^[0-9]+$ ]] && say "$port"
}

if [[ ${1:-} == *.toml ]]; then
  [[ -f $1 ]] || die 64 "$1: no such file"
  config=$(readlink -f -- "$1") && shift
  ensure_python
  port=$(given_port "$@" || config_value "$config" port)
  name=$(basename -- "$config" .toml)
  name=babysitter_${name//[^A-Za-z0-9.-]/-}${port:+_$port}
  flags --config-file "$config" --host "${BABYSITTER_HOST:-}" \
    --registry-url "${BABYSITTER_REGISTRY_URL:-}" --router-url "${BABYSITTER_ROUTER_URL:-}"
else
  HOST=${HOST:-localhost}
  PORT=${PORT:-8100}
  SERVICE_NAME=${SERVICE_NAME:-}            # default: infinilm-<type>-<port>
  SERVICE_TYPE=${SERVICE_TYPE:-InfiniLM}    # or InfiniLM-Rust
  REGISTRY_URL=${REGISTRY_URL-${BABYSITTER_REGISTRY_URL-http://localhost:18000}}
  ROUTER_URL=${ROUTER_URL-${BABYSITTER_ROUTER_URL-http://localhost:8000}}
  MAX_RESTARTS=${MAX_RESTARTS:-10000}
  RESTART_DELAY=${RESTART_DELAY:-5}
  HEARTBEAT_INTERVAL=${HEARTBEAT_INTERVAL:-10}
  # InfiniLM
  MODEL_PATH=${MODEL_PATH:-}
  MODEL_NAME=${MODEL_NAME:-}                # default: the last part of MODEL_PATH
  LAUNCH_SCRIPT=${LAUNCH_SCRIPT:-}          # default: searched
  DEV=${DEV:-metax}
  NDEV=${NDEV:-1}
  MAX_BATCH=${MAX_BATCH:-3}
  MAX_TOKENS=${MAX_TOKENS:-}
  AWQ=${AWQ:-false}
  REQUEST_TIMEOUT=${REQUEST_TIMEOUT:-30}
  MAX_CONCURRENCY=${MAX_CONCURRENCY-5}      # empty: no limit
  # InfiniLM-Rust
  CONFIG_FILE=${CONFIG_FILE:-}
  BABYSITTER_LABEL=${BABYSITTER_LABEL:-}    # goes into the names of pid file and log

  [[ ! ${1:-} =~ ^[0-9]+$ ]] || { PORT=$1 && shift; }
  PORT=$(given_port "$@" || say "$PORT")
  name=babysitter_${BABYSITTER_LABEL:+${BABYSITTER_LABEL//[^A-Za-z0-9.-]/-}_}$PORT
  ensure_python
  if [[ $SERVICE_TYPE == InfiniLM ]]; then
    flags --path "$MODEL_PATH" --model-name "$MODEL_NAME" --launch-script "$LAUNCH_SCRIPT" --dev "$DEV" \
      --ndev "$NDEV" --max-batch "$MAX_BATCH" --max-tokens "$MAX_TOKENS" \
      --request-timeout "$REQUEST_TIMEOUT" --max-concurrency "$MAX_CONCURRENCY"
    [[ $AWQ != true ]] || FLAGS+=(--awq)
  else
    flags --path "$CONFIG_FILE"
  fi
  engine=("${FLAGS[@]}")
  flags --host "$HOST" --port "$PORT" --name "$SERVICE_NAME" --service-type "$SERVICE_TYPE" \
    --registry "$REGISTRY_URL" --router "$ROUTER_URL" --max-restarts "$MAX_RESTARTS" \
    --restart-delay "$RESTART_DELAY" --heartbeat-interval "$HEARTBEAT_INTERVAL"
  FLAGS+=("${engine[@]}")
fi
FLAGS+=(--log-dir "$LOG_DIR")
launch "$name" "$BABYSITTER_WAIT_TIMEOUT" "$PYTHON" "$ROOT/babysitter/enhanced_babysitter.py" "${FLAGS[@]}" "$@"
