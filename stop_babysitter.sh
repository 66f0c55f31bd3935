#!/usr/bin/env bash
# usage: stop_babysitter.sh [ID]
# Stops the babysitter called ID (8100, mock or mock_8100), or all, each with its engine; exit code 0 only when all of that is gone.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

mapfile -t names < <(service_names "babysitter_")
if (($#)); then
  running=("${names[@]}") names=()
  for name in "${running[@]}"; do
    [[ $name != "babysitter_$1" && $name != "babysitter_$1_"* && $name != babysitter_*"_$1" ]] || names+=("$name")
  done
  ((${#names[@]})) || die 1 "no babysitter is called '$1'; known here: ${running[*]:-none}"
fi
((${#names[@]})) || say "no babysitter is running"
stop_all_of "${names[@]}"
