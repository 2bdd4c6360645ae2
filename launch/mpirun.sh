#!/usr/bin/env bash
# Train over MPI (MPICH or Open MPI): dtrain launch --launcher mpirun, by the Python of this folder's environment.
# --backend NAME, in place of the setting backend=NAME: mpi, or horovod for a Horovod that is built with MPI.
set -euo pipefail

# shellcheck source=launch/python.sh
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"

backend=mpi options=()
while [[ ${1-} == -* ]]; do
  case $1 in
    --backend) backend=${2-} ;;
    --dry-run | -h | --help) options+=("$1") && set -- '' "$@" ;;
    *) options+=("$1" ${2+"$2"}) ;;
  esac
  shift $(($# > 1 ? 2 : 1))
done
exec "$python" -m dtrain.cli launch --launcher mpirun "${options[@]}" backend="$backend" "$@"
