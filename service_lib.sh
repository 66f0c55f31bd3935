# shellcheck shell=bash
# The library of the launch and stop scripts: Python environment, cargo, start, readiness, pid files, stop.
#
# A service has a name: registry, router, babysitter_mock_8100. LOG_DIR/NAME.pid says which process it is:
#   1234                    the pid alone, for `cat`
#   start_time=567          with boot_id: tells this process from a later one that was given the same pid
#   boot_id=0a1b-...
#   launch_id=2c3d-...      is in the environment of the whole process tree (INFINILM_LAUNCH_ID)
#   log_offset=0            where this process's part of the log begins
#   log=/.../NAME_YYMMDDhhmm.log
#   url=http://...          where it answers, once it was ready
# Pid files are written and removed under a lock on LOG_DIR, which the service does not inherit.

ROOT=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
LOG_DIR=${LOG_DIR:-logs}
[[ $LOG_DIR == /* ]] || LOG_DIR=$ROOT/$LOG_DIR
STOP_TIMEOUT=${STOP_TIMEOUT:-150}  # seconds: the 120 s that a router or babysitter may drain, and a margin
TREE_TIMEOUT=${TREE_TIMEOUT:-15}   # seconds that an engine's last process may outlive its babysitter
SAY_EVERY=4                        # seconds: no wait is silent for longer
declare -A RECORD=()               # the pid file read last
HTTP_BODY=''                       # the last answer's
STATE=none                         # of that service: none, running, gone, stranger or unknown

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$2" >&2; exit "$1"; }

# --- Python environment -------------------------------------------------------------------------

python_is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Prints the microseconds of processor time that some work takes; fails where environments cannot be made.
PYTHON_TRIAL='
import ensurepip, sys, time, venv
class Account:
    total = 0
    def add(self, text, number):
        self.total += len(b"%b %d" % (text, number))
def trial():
    account, begun = Account(), time.process_time()
    for number in range(20_000):
        account.add(b"text", number)
    return time.process_time() - begun
sys.exit(1) if sys.version_info < (3, 11) else print(round(1e6 * min(trial() for _ in range(10))))'

# The fastest python3 on the PATH: a request costs those that a distribution builds a seventh less than those
# that pyenv builds. Where none can be used, the first that is new enough, for make_venv to say what it lacks.
find_python() {
  local candidate micros least best=''
  while read -r candidate; do
    micros=$("$candidate" -c "$PYTHON_TRIAL" 2>/dev/null) || continue
    if [[ -z $best ]] || ((micros < least)); then best=$candidate least=$micros; fi
  done < <(type -aP python3)
  [[ -z $best ]] || { say "$best"; return; }
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    python_is_new_enough "$candidate" && { say "$candidate"; return; }
  done
  die 69 "Python 3.11 or newer is needed; python3 here is: $(python3 --version 2>&1 || true). Install python3.11, or set PYTHON_CMD."
}

run_with_progress() ( # NAME TITLE OUTPUT COMMAND...: false, and the end of OUTPUT is shown, if it fails
  name=$1 title=$2 output=$3 begun=$SECONDS said=$SECONDS
  set -m  # a process group of its own, which ends as a whole when the script is interrupted
  "${@:4}" >"$output" 2>&1 </dev/null & job=$!
  set +m  # else each command below would have the terminal to itself, and Ctrl-C would end that one alone
  trap 'kill -- "-$job"' EXIT
  while kill -0 "$job" 2>/dev/null; do
    if ((SECONDS - said >= SAY_EVERY)); then
      said=$SECONDS
      line=$(tail -n 1 -- "$output")
      say "$name: $title, $((SECONDS - begun)) s: ${line:0:100}"
    fi
    sleep 0.1
  done
  trap - EXIT
  wait "$job" || { tail -n 20 -- "$output" | sed 's/^/    /'; say "$name: $title failed; the whole output is in $output"; exit 1; } >&2
)

make_venv() { # VENV: an environment with pip; one that works is kept
  "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
  local python
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die 69 "$python cannot make virtual environments. Install its venv package (Debian: apt install python3-venv), or set PYTHON_CMD."
  say "python: making $1 with $(command -v "$python")"
  run_with_progress python "making the environment" "$1/install.log" "$python" -m venv "$1" || exit 69
}

# Sets PYTHON: INFINILM_PYTHON or PYTHON_CMD if given, else the tree's own .venv with REQUIREMENTS installed.
ensure_python() { # [REQUIREMENTS]
  local requirements=${1:-requirements.txt} venv=$ROOT/.venv stamp sum
  PYTHON=${INFINILM_PYTHON:-${PYTHON_CMD:-}}
  if [[ -n $PYTHON ]]; then
    python_is_new_enough "$PYTHON" || die 69 "INFINILM_PYTHON or PYTHON_CMD is '$PYTHON', which does not run as Python 3.11 or newer."
    return
  fi
  PYTHON=$venv/bin/python stamp=$venv/.installed-$requirements
  sum=$(cat "$ROOT"/requirements*.txt | sha256sum)
  [[ -f $stamp && $(<"$stamp") == "$sum" ]] && python_is_new_enough "$PYTHON" && return
  mkdir -p "$venv"
  exec 8<"$venv"  # two scripts at once: the second waits, then finds the stamp
  until flock -w "$SAY_EVERY" 8; do say "python: waiting for another script that is installing into $venv"; done
  if [[ ! -f $stamp || $(<"$stamp") != "$sum" ]] || ! python_is_new_enough "$PYTHON"; then
    make_venv "$venv"
    say "python: installing $requirements into $venv"
    run_with_progress python "installing $requirements" "$venv/install.log" \
      "$PYTHON" -m pip install --disable-pip-version-check --no-input --progress-bar off -r "$ROOT/$requirements" || exit 69
    printf '%s\n' "$sum" >"$stamp"
    say "python: ready"
  fi
  exec 8<&-
}

read_config() { # FILE KEY...: the text or number there, in JSON or TOML; false if there is none
  "$PYTHON" -c '
import functools, json, pathlib, sys, tomllib
file = pathlib.Path(sys.argv[1])
parse = tomllib.loads if file.suffix == ".toml" else json.loads
value = functools.reduce(lambda table, key: table[key], sys.argv[2:], parse(file.read_text("utf-8")))
sys.stdout.write(str(value))' "$@" 2>/dev/null
}

config_value() { read_config "$@" || true; }  # nothing if there is none: faults are for the program to report

# --- Rust router --------------------------------------------------------------------------------

CRATE=$ROOT/router-rust
IMPLEMENTATIONS="auto, python or rust"

check_implementation() { # ORIGIN VALUE
  case $2 in
    auto | python | rust) ;;
    *) die 64 "$1 is '$2'; it can be $IMPLEMENTATIONS." ;;
  esac
}

# Takes --implementation and --replace out of the arguments: IMPLEMENTATION and its ORIGIN, REPLACE (true or
# false), ARGUMENTS are the others.
# shellcheck disable=SC2034  # launch_router.sh reads REPLACE
parse_launch_flags() { # ARGUMENT...
  IMPLEMENTATION=${ROUTER_IMPLEMENTATION:-} ORIGIN=ROUTER_IMPLEMENTATION REPLACE=false ARGUMENTS=()
  while (($#)); do
    case $1 in
      --implementation)
        (($# > 1)) || die 64 "--implementation needs a value: $IMPLEMENTATIONS"
        IMPLEMENTATION=$2 ORIGIN=--implementation
        shift ;;
      --implementation=*) IMPLEMENTATION=${1#*=} ORIGIN=--implementation ;;
      --replace) REPLACE=true ;;
      *) ARGUMENTS+=("$1") ;;
    esac
    shift
  done
  [[ -z $IMPLEMENTATION && $ORIGIN != --implementation ]] || check_implementation "$ORIGIN" "$IMPLEMENTATION"
}

# shellcheck disable=SC2034  # launch_router.sh and run_tests.sh read NO_CARGO
find_cargo() { # sets CARGO_VERSION; false if the crate cannot be built, and NO_CARGO is the reason
  local needed
  [[ -f $CRATE/Cargo.toml ]] || { NO_CARGO="no $CRATE"; return 1; }
  command -v cargo >/dev/null || { NO_CARGO="no cargo"; return 1; }
  read -r _ CARGO_VERSION _ < <(cd -- "$CRATE" && cargo --version 2>/dev/null) || { NO_CARGO="no cargo that runs"; return 1; }
  needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$CRATE/Cargo.toml")
  NO_CARGO="no cargo $needed (but $CARGO_VERSION)"
  printf '%s\n' "$needed" "$CARGO_VERSION" | sort -VC
}

# --- HTTP ---------------------------------------------------------------------------------------

HTTP_GET='
import sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    answer = opener.open(sys.argv[1], timeout=3)
except urllib.error.HTTPError as refused:
    answer = refused
sys.stdout.write(f"{answer.read().decode()}\n{answer.status}")'

http_get() { # URL: true if the answer is 2xx; its body, of any status, is in HTTP_BODY
  local answer
  if command -v curl >/dev/null; then
    answer=$(curl -qs --noproxy '*' --max-time 3 -w '\n%{http_code}' "$1") || true
  else
    answer=$("$PYTHON" -c "$HTTP_GET" "$1" 2>/dev/null) || true
  fi
  HTTP_BODY=${answer%$'\n'*}
  [[ ${answer##*$'\n'} == 2?? ]]
}

# --- Processes and pid files --------------------------------------------------------------------

process_fields() { # PID: its /proc stat line after the name, as FIELDS (0 state, 1 parent, 19 start time); false if dead
  local line=''
  { read -r -d '' line <"/proc/$1/stat"; } 2>/dev/null || [[ -n $line ]] || return 1
  read -ra FIELDS <<<"${line##*) }"
  [[ ${FIELDS[0]} != [ZX] ]]
}

is_same_process() { process_fields "$1" && [[ ${FIELDS[19]} == "$2" ]]; } # PID START_TIME

inspect() { # NAME: read its pid file into RECORD and set STATE
  local key value file=$LOG_DIR/$1.pid
  STATE=none
  [[ -e $file ]] || return 0
  RECORD=([pid]='' [start_time]='' [boot_id]='' [launch_id]='' [log_offset]=0 [log]='' [url]='')
  { read -r 'RECORD[pid]' && while IFS='=' read -r key value; do RECORD[$key]=$value; done; } <"$file" || true
  if [[ ! ${RECORD[pid]} =~ ^[0-9]+$ ]] || ! process_fields "${RECORD[pid]}"; then
    STATE=gone
  elif [[ -z ${RECORD[start_time]} ]]; then
    STATE=unknown
  elif [[ ${RECORD[boot_id]} == "$(</proc/sys/kernel/random/boot_id)" && ${RECORD[start_time]} == "${FIELDS[19]}" ]]; then
    STATE=running
  else
    STATE=stranger
  fi
}

is_passing() { [[ $1 == router_next || $1 == router_old ]]; } # NAME: a router that is to replace another, or was replaced

service_names() { # [PREFIX]: the services that have a pid file
  local file
  for file in "$LOG_DIR/${1:-}"*.pid; do
    [[ ! -e $file ]] || basename -- "$file" .pid
  done
}

all_run() { # whether everything that was started runs; else says what does not
  local name
  for name in $(service_names); do
    ! is_passing "$name" || continue  # that one may end
    inspect "$name"
    [[ $STATE == running ]] || { say "$name: ended; its log is ${RECORD[log]}" >&2; return 1; }
  done
}

forget() { # NAME PID: remove the pid file, unless a new launch has taken it over
  exec 9<"$LOG_DIR"
  flock 9
  local pid=''
  read -r pid 2>/dev/null <"$LOG_DIR/$1.pid" || true
  [[ $pid != "$2" ]] || rm -f -- "$LOG_DIR/$1.pid"
  exec 9<&-
}

# --- Start --------------------------------------------------------------------------------------

flags() { # FLAG VALUE...: FLAGS becomes those pairs whose value is set
  FLAGS=()
  while (($#)); do
    [[ -z $2 ]] || FLAGS+=("$1" "$2")
    shift 2
  done
}

# Its process is first a shell that writes the pid file and then becomes the service: at no moment is there a
# service that no pid file names. It keeps the lock until then.
spawn() { # NAME COMMAND...: start it in a session of its own, in the background; needs the lock on descriptor 9
  local name=$1 log offset launch_id draft=$LOG_DIR/.$1.new
  log=$LOG_DIR/${name%_next}_$(date +%y%m%d%H%M).log
  launch_id=$(</proc/sys/kernel/random/uuid)
  { touch -- "$log" && offset=$(stat -c %s -- "$log"); } || die 74 "$name: not started: $log cannot be written"
  (
    me=$BASHPID
    process_fields "$me"
    fault=$(printf '%s\n' "$me" "start_time=${FIELDS[19]}" "boot_id=$(</proc/sys/kernel/random/boot_id)" \
      "launch_id=$launch_id" "log_offset=$offset" "log=$log" 2>&1 >"$draft") ||
      { rm -f -- "$draft"; die 74 "$name: not started: $LOG_DIR/$name.pid cannot be written: ${fault##*: }"; }
    mv -- "$draft" "$LOG_DIR/$name.pid"  # readers take no lock: they must never see half a file
    export INFINILM_LAUNCH_ID=$launch_id PYTHONUNBUFFERED=1
    exec setsid -- "${@:2}" >>"$log" 2>&1 </dev/null 9<&-
  ) &
  exec 9<"$LOG_DIR"
  flock 9
  inspect "$name"
  [[ $STATE != none && ${RECORD[launch_id]} == "$launch_id" ]] || wait "$!"
}

launch() { # NAME SECONDS COMMAND...: start it, unless it runs, and wait until it is ready
  local name=$1 child=''
  mkdir -p -- "$LOG_DIR"
  exec 9<"$LOG_DIR"
  flock 9
  inspect "$name"
  case $STATE in
    running) say "$name: already running (pid ${RECORD[pid]})" ;;
    unknown) die 1 "$name: $LOG_DIR/$name.pid holds only the pid ${RECORD[pid]} of a live process: cannot tell whether it is ours. Stop it, or remove that file." ;;
    *)
      [[ -z ${LAUNCH_JOURNAL:-} ]] || say "$name" >>"$LAUNCH_JOURNAL"  # for launch_all.sh to undo
      spawn "$name" "${@:3}"
      child=$!
      ;;
  esac
  exec 9<&-
  wait_ready "$name" "$2" "$child"
}

service_url() { # the address that the service in RECORD printed, as one that can be connected to
  local url=${RECORD[url]}
  [[ -z $url ]] || { say "$url"; return; }
  # No pipe: grep leaves a long log unread, and the signal that ends tail then would count as failure.
  url=$(grep -oaE -m 1 'listening on http://[^ /]+' < <(tail -c "+$((RECORD[log_offset] + 1))" -- "${RECORD[log]}" 2>/dev/null)) || return 1
  url=${url#listening on }
  url=${url/\/\/0.0.0.0:/\/\/127.0.0.1:}
  say "${url/\/\/\[::\]:/\/\/[::1]:}"
}

remember_url() { # NAME URL: of the service in RECORD, in its pid file, since its log may be truncated or deleted
  local pid=${RECORD[pid]} draft=$LOG_DIR/.$1.new
  [[ -z ${RECORD[url]} ]] || return 0
  exec 9<"$LOG_DIR"
  flock 9
  inspect "$1"
  if [[ $STATE == running && ${RECORD[pid]} == "$pid" ]]; then
    if { cat -- "$LOG_DIR/$1.pid" && say "url=$2"; } 2>/dev/null >"$draft"; then mv -- "$draft" "$LOG_DIR/$1.pid"; else rm -f -- "$draft"; fi
  fi
  exec 9<&-
}

health_value() { # KEY DEFAULT: the text that the last health answer has there
  if [[ $HTTP_BODY =~ \"$1\":\ ?\"(([^\"\\]|\\.)*)\" ]]; then say "${BASH_REMATCH[1]}"; else say "$2"; fi
}

wait_ready() { # NAME SECONDS [CHILD]: until /health answers 2xx; else say why, with the end of the log
  local name=$1 begun=$SECONDS said=$SECONDS url line
  HTTP_BODY=''
  while inspect "$name"; do
    if [[ $STATE != running ]]; then
      start_failed "$name" "${3:-}"
      return
    fi
    url=$(service_url) && http_get "$url/health" && break
    if ((SECONDS - begun >= $2)); then
      say "$name: not ready after $2 s and still $(health_value state starting) (pid ${RECORD[pid]}); it is left running. Log: ${RECORD[log]}" >&2
      tail -n 10 -- "${RECORD[log]}" >&2
      return 1
    fi
    if ((SECONDS - said >= SAY_EVERY)); then
      said=$SECONDS
      line=$(health_value last_log_line "$(tail -n 1 -- "${RECORD[log]}")")
      say "$name: $(health_value state starting), $((SECONDS - begun)) s: ${line:0:120}"
    fi
    sleep 0.2
  done
  remember_url "$name" "$url" 2>/dev/null || true  # without it all works as long as the log is there
  say "$name: ready at $url (pid ${RECORD[pid]}, log ${RECORD[log]})"
}

start_failed() { # NAME CHILD: report a service that ended before it was ready; returns its exit code, 1 for 0
  local code=0
  [[ -z $2 ]] || wait "$2" || code=$?
  {
    say "$1: ended with exit code $code before it was ready. The end of its log ${RECORD[log]}:"
    tail -c "+$((RECORD[log_offset] + 1))" -- "${RECORD[log]}" | tail -n 20 | sed 's/^/    /'
  } >&2
  forget "$1" "${RECORD[pid]}"
  return $((code > 0 ? code : 1))
}

LAUNCHERS=()  # pids of the launch scripts under way
launch_babysitters() { # FILE...: side by side, since an engine may load for minutes
  local file job failed=0
  for file; do
    if [[ $file == *.sh ]]; then "$file" & else "$ROOT/launch_babysitter.sh" "$file" & fi
    LAUNCHERS+=($!)
  done
  for job in "${LAUNCHERS[@]}"; do wait "$job" || failed=1; done
  return "$failed"
}

# --- Stop ---------------------------------------------------------------------------------------

tree() { # PID|- LAUNCH_ID: "pid start_time" of each descendant, and of each process started by that launch
  local stat pid grown=1
  local -A parent=() member=(["$1"]=1)
  for stat in /proc/[0-9]*/stat; do
    pid=${stat//[^0-9]/}
    ! process_fields "$pid" || parent[$pid]=${FIELDS[1]}
  done
  while read -r pid; do
    member[${pid//[^0-9]/}]=1
  done < <(grep -lszx -- "INFINILM_LAUNCH_ID=${2:-none}" /proc/[0-9]*/environ)
  while ((grown)); do
    grown=0
    for pid in "${!parent[@]}"; do
      [[ -n ${member[$pid]:-} || -z ${member[${parent[$pid]}]:-} ]] || { member[$pid]=1 grown=1; }
    done
  done
  for pid in "${!member[@]}"; do
    [[ $pid == "$1" ]] || ! process_fields "$pid" || say "$pid ${FIELDS[19]}"
  done
}

await_end() { # NAME SECONDS PID START_TIME: false if that process still lives after so long
  local begun=$SECONDS said=$SECONDS
  while is_same_process "$3" "$4"; do
    ((SECONDS - begun < $2)) || return 1
    ((SECONDS - said < SAY_EVERY)) || { said=$SECONDS; say "$1: stopping, $((SECONDS - begun)) s (pid $3)"; }
    sleep 0.1
  done
}

await_tree() { # NAME TREE: false, and a report, if one of its processes outlives the service
  local pid start_time command
  while read -r pid start_time; do
    if [[ -n $pid ]] && ! await_end "$1" "$TREE_TIMEOUT" "$pid" "$start_time"; then
      command=$(tr '\0' ' ' <"/proc/$pid/cmdline")
      say "$1: its process $pid (${command:0:80}) still runs; end it by hand: kill -9 $pid" >&2
      return 1
    fi
  done <<<"$2"
}

send() { # SIGNAL NAME PID START_TIME: false, with the reason, if that process lives on and may not be told
  local reason
  is_same_process "$3" "$4" || return 0
  reason=$(kill -s "$1" -- "$3" 2>&1) || ! is_same_process "$3" "$4" || { say "$2: not stopped: ${reason#*kill: }" >&2; return 1; }
}

stop_service() { # NAME: SIGTERM, wait, SIGKILL to that process alone; true only when it and its tree are gone
  local name=$1 pid start_time processes
  inspect "$name"
  [[ $STATE != none ]] || { say "$name: not running"; return; }
  pid=${RECORD[pid]} start_time=${RECORD[start_time]}
  case $STATE in
    unknown) say "$name: not stopped: $LOG_DIR/$name.pid holds only the pid $pid, and that process may be a stranger. Stop it by hand, or remove the file." >&2; return 1 ;;
    stranger) say "$name: pid $pid now belongs to another process, which is left alone" ;;
    gone) say "$name: had ended" ;;
    *) say "$name: stopping (pid $pid)" ;;
  esac
  if [[ $STATE == running ]]; then
    processes=$(tree "$pid" "${RECORD[launch_id]}")
    send TERM "$name" "$pid" "$start_time" || return 1
    if ! await_end "$name" "$STOP_TIMEOUT" "$pid" "$start_time"; then
      say "$name: still runs after $STOP_TIMEOUT s: killing pid $pid" >&2
      send KILL "$name" "$pid" "$start_time" || return 1
      await_end "$name" 10 "$pid" "$start_time" || return 1
    fi
  else
    processes=$(tree - "${RECORD[launch_id]}")
  fi
  await_tree "$name" "$processes" || return 1
  forget "$name" "$pid"
  [[ $STATE != running ]] || say "$name: stopped"
}

stop_all_of() { # NAME...: stop them side by side; false if one could not be stopped
  local name job failed=0 jobs=()
  for name; do stop_service "$name" & jobs+=($!); done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return "$failed"
}
