#!/usr/bin/env bash
# A host of compose.yaml's elastic job: one worker. The first keeps the job together; one with KILL_SECONDS is killed then,
# with its container, which Docker starts again.
set -euo pipefail
cd "$(dirname "$0")/.."

interface=$(.venv/bin/python docker/interface_of.py "node$NODE_RANK")
export GLOO_SOCKET_IFNAME=$interface
read -ra settings <<<"$DTRAIN_SETTINGS"
place=(--join node0:29400)
[ "$NODE_RANK" != 0 ] || place=(--min 2 --max 3 --host node0 --port 29400)
killed=()
[ -z "${KILL_SECONDS-}" ] || killed=(timeout --signal=KILL "$KILL_SECONDS")
exec "${killed[@]}" .venv/bin/dtrain elastic -n 1 "${place[@]}" observe.nic_interface="$interface" \
  observe.prometheus.enabled=true observe.prometheus.host=0.0.0.0 observe.prometheus.targets=/targets \
  run_dir=/runs/elastic overwrite=true "${settings[@]}"
