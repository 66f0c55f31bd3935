#!/usr/bin/env bash
# usage: run_tests.sh [--slow] [PYTEST ARGUMENTS]
# Runs every check: lint, format, types, shell scripts, the Rust router, tests. --slow runs the long lane of
# the tests. Without cargo, the Rust router is left out. CARGO_BUILD_JOBS: 2, since a build needs much memory.
# All groups run; the exit code is not 0 if one failed, and the last line names it.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"
cd -- "$ROOT"

install_tools() { # what tests use: nginx (accepts our configuration), rsync; strace, faketime, ip, nft (faults); etcd
  local missing=() root=()
  command -v nginx >/dev/null || [[ -x /usr/sbin/nginx ]] || missing+=(nginx-light)
  command -v rsync >/dev/null || missing+=(rsync)
  command -v strace >/dev/null || missing+=(strace)
  command -v faketime >/dev/null || missing+=(faketime)
  command -v ip >/dev/null || missing+=(iproute2)
  command -v nft >/dev/null || [[ -x /usr/sbin/nft ]] || missing+=(nftables)
  command -v etcd >/dev/null || missing+=(etcd-server)
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

cargo_group() { # COMMAND...: of cargo, for the Rust router
  group "cargo $1" in_crate cargo "$@"
}

in_crate() { (cd -- "$CRATE" && "$@"); }

check_rust() { # its program is built last, for pytest
  local tool
  if ! find_cargo; then
    printf '\n== the Rust router is not checked: %s. pytest runs the Python router only.\n' "$NO_CARGO"
    export ROUTERS=${ROUTERS:-python}
    return
  fi
  unset CARGO_BUILD_TARGET  # the tests look for the program in the place below
  export CARGO_TARGET_DIR=$CRATE/target CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-2} RUSTDOCFLAGS="-D warnings"
  cargo_group fmt --check
  cargo_group clippy --all-targets --locked -- -D warnings
  cargo_group test --locked
  cargo_group doc --no-deps --locked
  for tool in deny audit; do
    in_crate cargo "$tool" --version >/dev/null 2>&1 || { printf '\n== cargo %s is not installed: not run\n' "$tool"; continue; }
    if [[ $tool == deny ]]; then cargo_group deny --locked check; else cargo_group audit; fi
  done
  cargo_group build --release --locked
  [[ ${failed[*]} != *"cargo build"* ]] || export ROUTERS=${ROUTERS:-python}  # the program there may be an old one
}

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
group "mypy tools" types . config_tools.py generate_nginx_config.py render_service_config.py
group "shellcheck" shellcheck ./*.sh .ci/run
check_rust
# Two processes, since tests wait more than they work; a file's tests stay together, with what they have started.
((${#pytest_arguments[@]})) || pytest_arguments=(-n 2 --dist loadfile)
group "pytest" "$PYTHON" -m pytest "${pytest_arguments[@]}"
((${#failed[@]} == 0)) || die 1 "failed: $(printf '%s; ' "${failed[@]}")"
printf '\nall checks passed\n'
