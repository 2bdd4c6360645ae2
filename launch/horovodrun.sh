#!/usr/bin/env bash
# Train over Horovod: dtrain launch --launcher horovodrun, by the Python of this folder's environment. It moves its data
# with gloo or, with --mpi, which starts the ranks with mpiexec, by MPI.
set -euo pipefail

# shellcheck source=launch/python.sh
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"

launcher=horovodrun options=()
while [[ ${1-} == -* ]]; do
  case $1 in
    --mpi) launcher=mpirun && set -- '' "$@" ;;
    --dry-run | -h | --help) options+=("$1") && set -- '' "$@" ;;
    *) options+=("$1" ${2+"$2"}) ;;
  esac
  shift $(($# > 1 ? 2 : 1))
done
exec "$python" -m dtrain.cli launch --launcher "$launcher" "${options[@]}" backend=horovod "$@"
