#!/usr/bin/env bash
# Stops the router; exit code 0 only when it is gone.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"
mapfile -t others < <(service_names "router_")  # those that replace, or are being replaced
stop_all_of router "${others[@]}"
