#!/usr/bin/env bash
# usage: launch_all.sh [--replace] [--implementation auto|python|rust]
# Starts registry, router and babysitters, waits until a model can be asked, and says what runs where.
# What runs already stays as it is. If one part cannot start, what this call started is stopped again.
# --replace and --implementation are for the router, see launch_router.sh.
# BABYSITTER_CONFIGS: blank-separated TOML files or launch scripts; default: deployment_configs/babysitters/*.toml.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

BABYSITTER_CONFIGS=${BABYSITTER_CONFIGS:-}
LAUNCH_REGISTRY=${LAUNCH_REGISTRY:-true}
LAUNCH_ROUTER=${LAUNCH_ROUTER:-true}
LAUNCH_BABYSITTER=${LAUNCH_BABYSITTER:-true}
# A port given here is followed by the others, unless they are told something else.
[[ -z ${REGISTRY_PORT:-} ]] || export ROUTER_REGISTRY_URL=${ROUTER_REGISTRY_URL:-http://localhost:$REGISTRY_PORT}
[[ -z ${ROUTER_REGISTRY_URL:-} ]] || export BABYSITTER_REGISTRY_URL=${BABYSITTER_REGISTRY_URL:-$ROUTER_REGISTRY_URL}
[[ -z ${ROUTER_PORT:-} ]] || export BABYSITTER_ROUTER_URL=${BABYSITTER_ROUTER_URL:-http://localhost:$ROUTER_PORT}

stop_what_was_started() {
  local code=$? started
  trap - EXIT HUP INT TERM
  ((${#LAUNCHERS[@]} == 0)) || { kill "${LAUNCHERS[@]}" && wait "${LAUNCHERS[@]}"; } 2>/dev/null || true
  if ((code)) && mapfile -t started <"$LAUNCH_JOURNAL" && ((${#started[@]})); then
    say "not everything could be started (see above): stopping what this call started" >&2 || true  # a terminal may be gone
    stop_all_of "${started[@]}" || true
  fi
  rm -f -- "$LAUNCH_JOURNAL"
  exit "$code"
}

find_babysitter() { # CONFIG: the file meant: as given, or in one of the usual folders
  local folder
  [[ $1 != /* ]] || { say "$1"; return; }
  for folder in "$PWD" "$ROOT" "$ROOT/deployment_configs/babysitters" "$ROOT/config"; do
    [[ ! -f $folder/$1 ]] || { say "$folder/$1"; return; }
  done
  die 64 "BABYSITTER_CONFIGS: there is no $1 in $PWD, $ROOT, deployment_configs/babysitters or config"
}

print_address() { # NAME: one line of the table
  inspect "$1"
  [[ $STATE != running ]] || printf '  %-28s %-28s pid %s\n' "$1" "$(service_url)" "${RECORD[pid]}"
}

print_summary() {
  local name url model patience=$((${#files[@]} ? 30 : 0)) begun=$SECONDS said=$SECONDS
  printf '\nrunning:\n'
  for name in registry router $(service_names babysitter_); do print_address "$name"; done
  inspect router
  [[ $STATE == running ]] || return 0
  url=$(service_url)
  until http_get "$url/v1/models" && [[ $HTTP_BODY =~ \"id\":\ ?\"([^\"]+)\" ]]; do
    ((SECONDS - begun < patience)) || { say "The router lists no model yet; $url/services tells what it knows."; return; }
    ((SECONDS - said < SAY_EVERY)) || { said=$SECONDS; say "router: waiting for a model, $((SECONDS - begun)) s"; }
    sleep 0.2
  done
  model=${BASH_REMATCH[1]//\'/\'\\\'\'}
  printf '%s\n' "" "try it:" \
    "curl -N $url/v1/chat/completions -H 'Content-Type: application/json' -d '{\"model\": \"$model\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'" \
    "" "stop it: $ROOT/stop_all.sh"
}

parse_launch_flags "$@"
((${#ARGUMENTS[@]} == 0)) || die 64 "launch_all.sh takes --implementation, --replace and nothing else, not: ${ARGUMENTS[*]}"

files=()
if [[ $LAUNCH_BABYSITTER == true && -n $BABYSITTER_CONFIGS ]]; then
  for config in $BABYSITTER_CONFIGS; do
    file=$(find_babysitter "$config")
    files+=("$file")
  done
elif [[ $LAUNCH_BABYSITTER == true ]]; then
  for file in "$ROOT"/deployment_configs/babysitters/*.toml; do [[ ! -f $file ]] || files+=("$file"); done
fi

ensure_python
export INFINILM_PYTHON=$PYTHON
LAUNCH_JOURNAL=$(mktemp)
export LAUNCH_JOURNAL
trap stop_what_was_started EXIT
trap 'exec >/dev/null 2>&1; exit 129' HUP  # the terminal was closed
trap 'exit 130' INT
trap 'exit 143' TERM
[[ $LAUNCH_REGISTRY != true ]] || "$ROOT/launch_registry.sh"
[[ $LAUNCH_ROUTER != true ]] || "$ROOT/launch_router.sh" "$@"
launch_babysitters "${files[@]}"
print_summary
