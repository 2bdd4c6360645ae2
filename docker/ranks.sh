#!/usr/bin/env bash
# Service mpi or horovod of compose.yaml: all ranks in this container, by that launcher.
set -euo pipefail
cd "$(dirname "$0")/.."

case $1 in
  mpi) launcher=mpirun.sh ;;
  horovod) launcher=horovodrun.sh ;;
esac
read -ra settings <<<"$DTRAIN_SETTINGS"
exec "launch/$launcher" -n "$NUM_NODES" observe.prometheus.enabled=true observe.prometheus.host=0.0.0.0 \
  observe.prometheus.targets=/targets "run_dir=/runs/$1" overwrite=true "${settings[@]}"
