#!/usr/bin/env bash
# usage: run_tests.sh [--slow] [PYTEST ARGUMENTS]
# Runs every check: lint, format, types, shell scripts, tests. --slow runs the long lane of the tests.
# All groups run; the exit code is not 0 if one failed, and the last line names it.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"
cd -- "$ROOT"

install_tools() { # the programs that tests use: nginx (accepts our configuration), rsync, strace (fault injection)
  local missing=() root=()
  command -v nginx >/dev/null || [[ -x /usr/sbin/nginx ]] || missing+=(nginx-light)
  command -v rsync >/dev/null || missing+=(rsync)
  command -v strace >/dev/null || missing+=(strace)
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || root=(sudo -n)
  say "tools: installing ${missing[*]}"
  { "${root[@]}" apt-get update -q && "${root[@]}" apt-get install -q -y --no-install-recommends "${missing[@]}"; } ||
    die 69 "could not install them; as root: apt-get install ${missing[*]}"
}

failed=()
group() { # NAME COMMAND...
  printf '\n== %s\n' "$1"
  "${@:2}" || failed+=("$1")
}

types() { MYPYPATH=$1 "$PYTHON" -m mypy "${@:2}"; }

pytest_arguments=()
for argument; do
  if [[ $argument == --slow ]]; then pytest_arguments+=(-m slow); else pytest_arguments+=("$argument"); fi
done

install_tools
ensure_python requirements-dev.txt
PATH=$(dirname -- "$PYTHON"):$PATH
group "ruff check" "$PYTHON" -m ruff check .
group "ruff format" "$PYTHON" -m ruff format --check .
group "mypy registry" types registry registry/infinilm_registry
group "mypy babysitter" types babysitter babysitter/infinilm_babysitter
group "mypy router-python" types router-python router-python/infinilm_router
group "mypy tools" types . generate_nginx_config.py render_service_config.py
group "shellcheck" shellcheck ./*.sh .ci/run
group "pytest" "$PYTHON" -m pytest "${pytest_arguments[@]}"
((${#failed[@]} == 0)) || die 1 "failed: $(printf '%s; ' "${failed[@]}")"
printf '\nall checks passed\n'
