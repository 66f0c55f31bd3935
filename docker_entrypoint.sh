#!/usr/bin/env bash
# The container's main program: starts LAUNCH_COMPONENTS, waits, stops them on SIGTERM.
# LAUNCH_COMPONENTS: all (default), none, or a comma list of registry, router, babysitter. It ends with
# code 1 as soon as one of them ends, so that the container's restart policy can act. All variables of
# the launch scripts work: REGISTRY_PORT, ROUTER_PORT, ROUTER_IMPLEMENTATION, REGISTRY_URL,
# ROUTER_URL, BABYSITTER_CONFIGS, ...
# With arguments, these are run instead.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

LAUNCH_COMPONENTS=${LAUNCH_COMPONENTS:-all}
export ROUTER_REGISTRY_URL=${ROUTER_REGISTRY_URL:-${REGISTRY_URL:-}}
export BABYSITTER_REGISTRY_URL=${BABYSITTER_REGISTRY_URL:-${REGISTRY_URL:-}}
export BABYSITTER_ROUTER_URL=${BABYSITTER_ROUTER_URL:-${ROUTER_URL:-}}

shut_down() {
  trap '' INT TERM
  say "stopping"
  "$ROOT/stop_all.sh" || exit 1
  exit "$1"
}

select_components() {
  local component
  export LAUNCH_REGISTRY=false LAUNCH_ROUTER=false LAUNCH_BABYSITTER=false
  for component in ${LAUNCH_COMPONENTS//,/ }; do
    case $component in
      all) LAUNCH_REGISTRY=true LAUNCH_ROUTER=true LAUNCH_BABYSITTER=true ;;
      registry) LAUNCH_REGISTRY=true ;;
      router) LAUNCH_ROUTER=true ;;
      babysitter) LAUNCH_BABYSITTER=true ;;
      none) ;;
      *) die 64 "LAUNCH_COMPONENTS has '$component'; it can hold all, none, registry, router, babysitter." ;;
    esac
  done
}

(($# == 0)) || exec "$@"
select_components
# Pid files in a kept volume are of an earlier container: none of that can run.
rm -f -- "$LOG_DIR"/*.pid
trap 'shut_down 0' INT TERM
"$ROOT/launch_all.sh" & wait $! || shut_down 1
while all_run; do sleep 2 & wait $!; done
shut_down 1
