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

build_rust_router() { # TARGET: cargo itself sees whether there is anything to do
  unset CARGO_BUILD_TARGET  # it is to run here, and cargo would put it into a folder of that name
  cd -- "$CRATE" && CARGO_TERM_COLOR=never cargo build --release --locked --target-dir "$1"
}

# Sets RUST_ROUTER to a program that is up to date; false if there is none. REASON says why, either way.
find_rust_router() {
  local target=${CARGO_TARGET_DIR:-$CRATE/target} log=$LOG_DIR/router_build.log
  [[ $target == /* ]] || target=$CRATE/$target
  RUST_ROUTER=$target/release/infini-router
  if [[ -n ${INFINILM_ROUTER_BIN:-} ]]; then
    RUST_ROUTER=$INFINILM_ROUTER_BIN REASON="named by INFINILM_ROUTER_BIN"
  elif find_cargo; then
    mkdir -p -- "$LOG_DIR"
    REASON="it could not be built, see $log"
    run_with_progress router "building the Rust router" "$log" build_rust_router "$target" || return 1
    REASON="built with cargo $CARGO_VERSION"
  elif [[ -f $RUST_ROUTER ]]; then
    REASON="built earlier, $NO_CARGO here to look for changes"
  elif RUST_ROUTER=$(type -P infini-router); then
    REASON="found on the PATH, $NO_CARGO to build it"
  else
    REASON="there is no infini-router, and $NO_CARGO to build it"
    return 1
  fi
  "$RUST_ROUTER" --help >/dev/null 2>&1 && return
  REASON="$RUST_ROUTER, $REASON, does not run"
  return 1
}

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

# A service can have a successor, NAME_next, which takes over its port; then that one is NAME, and the other NAME_old.

replace() { # NAME SECONDS COMMAND...: start a successor of NAME, which serves until that one is ready, and as before if it fails
  local name=$1 old child part code=0
  exec 9<"$LOG_DIR"
  flock 9
  inspect "$name"
  old=${RECORD[pid]}
  for part in "$1_next" "$1_old"; do
    inspect "$part"
    [[ $STATE != running ]] || die 1 "$name: pid ${RECORD[pid]} ($part) is not done with the last replacement yet: wait until it is, or stop all with ./stop_$name.sh."
  done
  spawn "$1_next" "${@:3}"
  child=$!
  exec 9<&-
  wait_ready "$1_next" "$2" "$child" || code=$?
  settle "$name"
  if ((code)); then
    not_replaced "$name" "$old" >&2
    return "$code"
  fi
  inspect "$1_old"
  say "$name: pid ${RECORD[pid]} takes no new connections and ends what it has begun"
  await_end "$1_old" "$STOP_TIMEOUT" "${RECORD[pid]}" "${RECORD[start_time]}" || { say "$name: pid ${RECORD[pid]} still runs after $STOP_TIMEOUT s" >&2; return 1; }
  forget "$1_old" "${RECORD[pid]}"
  say "$name: replaced"
}

not_replaced() { # NAME PID: end the successor that did not get ready, and say what serves
  inspect "$1"
  [[ ${RECORD[pid]} == "$2" ]] || return 0  # it took over all the same, and wait_ready said what is wrong with it
  [[ ! -e $LOG_DIR/$1_next.pid ]] || stop_service "$1_next"
  inspect "$1"
  if [[ $STATE == running ]]; then
    say "$1: not replaced; pid $2 serves as before"
  else
    say "$1: not replaced, and pid $2 has ended meanwhile: start one without --replace"
  fi
}

settle() { # NAME: if its successor serves, the pid files say so from now on
  exec 9<"$LOG_DIR"
  flock 9
  inspect "$1_next"
  if [[ $STATE == running ]] && service_url >/dev/null; then
    [[ ! -e $LOG_DIR/$1.pid ]] || ln -f -- "$LOG_DIR/$1.pid" "$LOG_DIR/$1_old.pid"
    mv -f -- "$LOG_DIR/$1_next.pid" "$LOG_DIR/$1.pid"  # at no moment is there no pid file
  fi
  exec 9<&-
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
inspect router  # choosing a program may have taken minutes: another launch may have been quicker
if [[ $STATE == running && $REPLACE != true ]]; then
  keep_running
elif [[ $STATE == running ]]; then
  replace router "$ROUTER_WAIT_TIMEOUT" "${PROGRAM[@]}" --take-over
else
  launch router "$ROUTER_WAIT_TIMEOUT" "${PROGRAM[@]}"
fi
