#!/usr/bin/env bash
# Train over Horovod, which moves its data with gloo, or with MPI.
set -euo pipefail

# shellcheck source=launch/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

usage() {
  cat <<'USAGE'
Usage: launch/horovodrun.sh [-n RANKS] [--hosts HOSTS] [--interface NAME] [--mpi] [--dry-run] [SETTING...]

Runs `python -m dtrain.train backend=horovod SETTING...` on RANKS workers (2 unless given), for example
  launch/horovodrun.sh -n 4 model=squeezenet1_1 data=digits compressor=int4

  -n RANKS          how many workers
  --hosts HOSTS     spread them: node0:2,node1:2 runs two on each; every host needs this folder at the same path, and ssh
                    without a password
  --interface NAME  the network interface to use (without --hosts lo; with them, one that Horovod finds on all)
  --mpi             start them with mpiexec and let Horovod use MPI; make horovod builds it in where it finds mpicxx
  --dry-run         print the command and do not run it
  --help            print this

$PYTHON is the interpreter (.venv/bin/python, else python3).
USAGE
}

hosts='' interface='' mpi=''
read_options '--hosts=hosts --interface=interface --mpi' "$@"
[[ $hosts =~ ^([^:,[:space:]]+:[1-9][0-9]*(,[^:,[:space:]]+:[1-9][0-9]*)*)?$ ]] ||
  fail "--hosts $hosts is not of the form node0:2,node1:2"

if [ -n "$mpi" ]; then
  [ -z "$hosts$interface" ] || fail "--hosts and --interface go without --mpi: use launch/mpirun.sh --backend horovod"
  exec "$root/launch/mpirun.sh" --backend horovod -n "$ranks" ${dry_run:+--dry-run} "${settings[@]}"
fi

find_python
"$python" -c 'import horovod' 2>/dev/null || fail "$python has no Horovod: run make horovod"
[ -n "$hosts" ] || interface=${interface:-lo}

command=("$python" "$root/launch/horovodrun.py" --gloo -np "$ranks")
[ -z "$hosts" ] || command+=(--hosts "$hosts")
[ -z "$interface" ] || command+=(--network-interfaces "$interface")
command+=("$python" -m dtrain.train backend=horovod "${settings[@]}")

run_or_print "${command[@]}"
