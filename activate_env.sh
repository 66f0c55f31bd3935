# shellcheck shell=bash
# usage: source activate_env.sh
# Makes the project's own Python environment (on first use) and activates it in the calling shell.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  printf 'error: use it as: source %s\n' "$0" >&2
  exit 64
fi
# The library may exit on errors and sets variables: both belong in a shell of its own.
# A bash of its own, since -e is ignored in a condition.
if _infinilm_python=$(bash -euo pipefail -c 'exec 3>&1 >&2; source "$1"; ensure_python; say "$PYTHON" >&3' bash \
  "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"); then
  if [[ -f ${_infinilm_python%/*}/activate ]]; then
    # shellcheck disable=SC1091  # made at run time
    source "${_infinilm_python%/*}/activate"
  fi
  printf 'Python of InfiniLM-SVC: %s\n' "$_infinilm_python"
  unset _infinilm_python
else
  unset _infinilm_python
  return 69
fi
