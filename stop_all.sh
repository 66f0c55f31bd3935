#!/usr/bin/env bash
# Stops everything that the launch scripts started: babysitters and their engines, then the router, then the registry.
set -euo pipefail
source "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/service_lib.sh"

failed=0
mapfile -t babysitters < <(service_names "babysitter_")
stop_all_of "${babysitters[@]}" || failed=1
"$ROOT/stop_router.sh" || failed=1
stop_service registry || failed=1
mapfile -t others < <(service_names)  # what is left: files of earlier versions, or what just failed
for name in "${others[@]}"; do
  [[ $name == babysitter_* || $name == router || $name == router_* || $name == registry ]] || stop_service "$name" || failed=1
done
exit "$failed"
