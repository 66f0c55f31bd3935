#!/usr/bin/env bash
# Runs one machine's part of a deployment, and starts the other machines' parts over ssh.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

usage() {
  cat <<'TEXT'
usage: deploy_services.sh [-c DIR] [-r PORT] [-p PORT] [--implementation NAME] [--dry-run] COMMAND

  start-registry          start the registry here, as DIR/registry_config.json says
  start-router            start the router here, as DIR/router_config.json says
  start-services          start the engines of this machine: DIR/babysitters/NAME.toml of each service in
                          DIR/*_services.json whose host is this machine; if those files name none here,
                          every DIR/babysitters/*.toml
  stop-all                stop everything that was started here
  status                  what runs here, and what the registry knows; exit code 3 if something does not run
  deploy-remote [HOST..]  copy this folder to each HOST (default: the hosts of DIR/*_services.json) with rsync
                          and run start-services there over ssh, with INFINILM_REGISTRY_TOKEN and
                          INFINILM_ADMIN_TOKEN as here; --dry-run only shows the commands
  generate-config         write nginx_distributed.conf from the registry's healthy engines; without a
                          registry from DIR/router_config.json

  -c, --config-dir DIR       deployment configuration (default: deployment_configs)
  -r, --registry-port PORT   the registry's port on this machine (default: as configured)
  -p, --router-port PORT     the router's port; for generate-config, nginx's (default: as configured, 8080)
  --implementation NAME      the router to start: auto, python or rust (default: as configured, auto)
  -h, --help                 this text

environment: REGISTRY_URL   where engines register (default: as in DIR/router_config.json)
             REMOTE_DIR     folder on the remote machines (default: infinilm-svc in the login folder)
             SSH            ssh command (default: ssh -o BatchMode=yes -o ConnectTimeout=10)
TEXT
}

usage_error() { usage >&2; die 64 "$1"; }

# Prints "host <tab> name" of every service in DIR/*_services.json; all faulty files are reported.
list_services() {
  "$PYTHON" - "$CONFIG_DIR" <<'PYTHON'
import json, pathlib, sys

faults = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*_services.json")):
    try:
        for service in json.loads(path.read_text("utf-8")).get("services", []):
            print(service["host"], service["name"], sep="\t")
    except (OSError, ValueError) as error:
        faults.append(f"{path}: not readable as JSON: {error}")
    except (KeyError, TypeError, AttributeError) as error:
        faults.append(f'{path}: expected {{"services": [{{"name", "host", "port"}}]}}: {error!r}')
sys.exit("\n".join(f"error: {fault}" for fault in faults) or 0)
PYTHON
}

is_this_machine() { # HOST, which deploy-remote may have used a name for that only others know
  case " localhost 127.0.0.1 ::1 ${BABYSITTER_HOST:-} $(hostname) $(hostname -f 2>/dev/null || true) $(hostname -I 2>/dev/null || true) " in
    *" $1 "*) ;;
    *) return 1 ;;
  esac
}

start_services() {
  local host name services files=() missing=()
  services=$(list_services) || exit 64
  while IFS=$'\t' read -r host name; do
    [[ -n $host ]] || continue
    is_this_machine "$host" || continue
    if [[ -f $CONFIG_DIR/babysitters/$name.toml ]]; then files+=("$CONFIG_DIR/babysitters/$name.toml"); else missing+=("$name.toml"); fi
  done <<<"$services"
  ((${#missing[@]} == 0)) || die 64 "$CONFIG_DIR/babysitters lacks ${missing[*]}: write one for each from the files in babysitters/examples."
  if ((${#files[@]} == 0)); then
    say "no file $CONFIG_DIR/*_services.json names this machine: starting $CONFIG_DIR/babysitters/*.toml"
    for name in "$CONFIG_DIR"/babysitters/*.toml; do [[ ! -f $name ]] || files+=("$name"); done
  fi
  ((${#files[@]})) || die 64 "there is nothing to start: no $CONFIG_DIR/babysitters/*.toml"
  launch_babysitters "${files[@]}"
}

status() {
  local name url code=0
  for name in $(service_names); do
    HTTP_BODY=''
    inspect "$name"
    if is_passing "$name"; then  # its address is the router's
      [[ $STATE != running ]] || printf '%-28s part of a replacement under way (pid %s)\n' "$name" "${RECORD[pid]}"
    elif [[ $STATE != running ]]; then
      printf '%-28s not running (%s)\n' "$name" "$STATE" && code=3
    elif url=$(service_url) && http_get "$url/health"; then
      printf '%-28s ready at %s (pid %s)\n' "$name" "$url" "${RECORD[pid]}"
    else
      printf '%-28s running, not ready: %s (pid %s)\n' "$name" "$(health_value state starting)" "${RECORD[pid]}" && code=3
    fi
  done
  [[ -n ${name:-} ]] || { say "nothing was started here"; code=3; }
  if registry_get /services; then
    printf '\nregistry %s:\n' "$(registry_url)"
    "$PYTHON" -c 'import json, sys
for s in json.load(sys.stdin)["services"]:
    print("  {:28} {} ({})".format(s["name"], s["url"], "healthy" if s["is_healthy"] else s["status"]))' <<<"$HTTP_BODY"
  fi
  return "$code"
}

registry_url() { # as told by REGISTRY_URL or the port given, else as configured
  if [[ -n $ROUTER_REGISTRY_URL ]]; then
    say "${ROUTER_REGISTRY_URL%/}"
  else
    config_value "$CONFIG_DIR/router_config.json" router registry_url
  fi
}

registry_get() { # TARGET: from the first of the registries that answers
  local url urls
  IFS=, read -ra urls <<<"$(registry_url)"
  for url in "${urls[@]}"; do ! http_get "${url%/}$1" || return 0; done
  return 1
}

run() { # COMMAND...: show it, and run it unless --dry-run
  printf '+ %s\n' "${*@Q}"
  "$DRY_RUN" || "$@"
}

deploy_to() { # HOST, with or without user@
  local directory=${REMOTE_DIR:-infinilm-svc} remote config=${CONFIG_DIR#"$ROOT"/} token tokens=''
  printf -v remote 'cd %q && BABYSITTER_HOST=%q BABYSITTER_REGISTRY_URL=%q ./deploy_services.sh -c %q start-services' \
    "$directory" "${1#*@}" "$(registry_url)" "$config"
  for token in INFINILM_REGISTRY_TOKEN INFINILM_ADMIN_TOKEN; do  # by standard input: everybody there sees command lines
    [[ -n ${!token:-} ]] || continue
    remote="IFS= read -r $token && export $token && $remote"
    tokens=${!token}$'\n'$tokens
  done
  run rsync --archive --compress --delete --secluded-args --rsh "$SSH" \
    --exclude /.git --exclude /.venv --exclude /logs --exclude __pycache__ --exclude '.*_cache' --exclude target \
    "$ROOT/" "$1:$directory/" </dev/null &&
    run "${ssh[@]}" "$1" "$remote" <<<"$tokens"
}

deploy_remote() { # [HOST...]
  local host services hosts=("$@") failed=()
  local -a ssh
  [[ ${REMOTE_DIR-infinilm-svc} == *[!./~]* && ${REMOTE_DIR-infinilm-svc}/ != *../* ]] ||
    die 64 "REMOTE_DIR is '$REMOTE_DIR'; it must be a folder of its own, without .., since files that are not here are deleted there."
  SSH=${SSH:-ssh -o BatchMode=yes -o ConnectTimeout=10}
  read -ra ssh <<<"$SSH"
  command -v rsync >/dev/null || die 69 "deploy-remote needs rsync, here and on the remote machines (apt install rsync)."
  [[ $CONFIG_DIR == "$ROOT"/* ]] || die 64 "-c $CONFIG_DIR: deploy-remote copies $ROOT; put the configuration inside it."
  case $(registry_url) in
    '') die 64 "no registry_url in $CONFIG_DIR/router_config.json: set REGISTRY_URL=http://THIS_HOST:18000" ;;
    http://localhost* | http://127.*)
      [[ -n ${REGISTRY_URL:-} ]] ||  # said outright, it is a tunnel's end
        die 64 "the registry is $(registry_url), which other machines cannot reach: set REGISTRY_URL=http://THIS_HOST:18000, or router.registry_url in $CONFIG_DIR/router_config.json"
      ;;
  esac
  if ((${#hosts[@]} == 0)); then
    services=$(list_services) || exit 64
    mapfile -t hosts < <(cut -f 1 <<<"$services" | sort -u)
  fi
  for host in "${hosts[@]}"; do
    [[ -n $host ]] || continue
    say "$host:"
    deploy_to "$host" || { failed+=("$host"); say "$host: failed" >&2; }
  done
  ((${#failed[@]} == 0)) || die 1 "not deployed: ${failed[*]}"
}

generate_config() {
  local services flags=(--router-port "${ROUTER_PORT:-8080}" --output nginx_distributed.conf)
  if registry_get '/services?healthy=true'; then
    services=$("$PYTHON" -c 'import json, sys
for s in json.load(sys.stdin)["services"]:
    if s["metadata"].get("type") == "openai-api":
        weight = round(s["weight"]) or (1 if s["weight"] else 0)
        host = "[" + s["host"] + "]" if ":" in s["host"] else s["host"]
        print("{name}:{0}:{port}:{1}".format(host, weight, **s), end=",")' <<<"$HTTP_BODY")
    [[ -n $services ]] || die 1 "the registry at $(registry_url) has no healthy engine: start one, then try again."
    flags+=(--services "$services")
  else
    say "no registry answers at '$(registry_url)': using the static services of $CONFIG_DIR/router_config.json"
    flags+=(--config-file "$CONFIG_DIR/router_config.json")
  fi
  "$PYTHON" "$ROOT/generate_nginx_config.py" "${flags[@]}"
}

CONFIG_DIR=$ROOT/deployment_configs DRY_RUN=false COMMAND='' arguments=()
while (($#)); do
  case $1 in
    -c | --config-dir | -r | --registry-port | -p | --router-port | --implementation)
      (($# > 1)) || usage_error "$1 needs a value"
      case $1 in
        -c | --config-dir) CONFIG_DIR=$(readlink -m -- "$2") ;;
        -r | --registry-port) export REGISTRY_PORT=$2 ;;
        --implementation) check_implementation "$1" "$2" && export ROUTER_IMPLEMENTATION=$2 ;;
        *) export ROUTER_PORT=$2 ;;
      esac
      shift ;;
    --dry-run) DRY_RUN=true ;;
    -h | --help) usage; exit ;;
    -*) usage_error "unknown option $1" ;;
    *) if [[ -z $COMMAND ]]; then COMMAND=$1; else arguments+=("$1"); fi ;;
  esac
  shift
done
[[ -d $CONFIG_DIR ]] || die 64 "-c: there is no folder $CONFIG_DIR"
[[ $COMMAND == deploy-remote || ${#arguments[@]} == 0 ]] || usage_error "$COMMAND takes no arguments: ${arguments[*]}"
ROUTER_REGISTRY_URL=${REGISTRY_URL:-${REGISTRY_PORT:+http://localhost:$REGISTRY_PORT}}
BABYSITTER_REGISTRY_URL=${BABYSITTER_REGISTRY_URL:-$ROUTER_REGISTRY_URL}
export ROUTER_REGISTRY_URL BABYSITTER_REGISTRY_URL
export REGISTRY_CONFIG=$CONFIG_DIR/registry_config.json ROUTER_CONFIG=$CONFIG_DIR/router_config.json

case $COMMAND in
  start-registry) "$ROOT/launch_registry.sh" ;;
  start-router) "$ROOT/launch_router.sh" ;;
  stop-all) "$ROOT/stop_all.sh" ;;
  start-services | status | deploy-remote | generate-config)
    ensure_python
    "${COMMAND//-/_}" "${arguments[@]}"
    ;;
  '') usage_error "a command is needed" ;;
  *) usage_error "unknown command $COMMAND" ;;
esac
