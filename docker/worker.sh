#!/usr/bin/env bash
# A worker of compose.yaml: one rank, whose exchange goes over the network in which it is called rank<k>.
set -euo pipefail
cd "$(dirname "$0")/.."

interface=$(.venv/bin/python docker/interface_of.py "rank$NODE_RANK")
read -ra settings <<<"$DTRAIN_SETTINGS"
# A container that is killed takes its network along, so that nobody hears of it: 30 s of silence are enough
# A start after one that was stopped goes on where that was saved; of one that is done, or had other settings, and so
# another name, it takes the place
id=demo-$(printf %s "$NUM_NODES $DTRAIN_SETTINGS" | sha256sum | cut -c1-12)
exec launch/torchrun.sh -n 1 --id "$id" --nodes "$NUM_NODES" --node-rank "$NODE_RANK" --master rank0 --interface "$interface" \
  observe.nic_interface="$interface" observe.prometheus.enabled=true observe.prometheus.host=0.0.0.0 \
  observe.prometheus.targets=/targets backend.timeout_seconds=30 run_dir=/runs/demo overwrite=true "${settings[@]}"
