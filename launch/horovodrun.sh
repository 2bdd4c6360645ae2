#!/usr/bin/env bash
# Train over Horovod, which moves its data with gloo, or with MPI.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: launch/horovodrun.sh [-n RANKS] [--hosts HOSTS] [--interface NAME] [--mpi] [--dry-run] [SETTING...]

Runs `python -m dtrain.train backend=horovod SETTING...` on RANKS workers (2 unless given), for example
  launch/horovodrun.sh -n 4 model=squeezenet1_1 data=digits compressor=top_k

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

fail() {
  echo "launch/horovodrun.sh: $*" >&2
  exit 2
}

ranks=2 hosts='' interface='' mpi='' dry_run=''
while [ "$#" -gt 0 ]; do
  case $1 in
    -n | --hosts | --interface)
      [ "$#" -gt 1 ] || fail "$1 needs a value: see --help"
      case $1 in
        -n) ranks=$2 ;;
        --hosts) hosts=$2 ;;
        *) interface=$2 ;;
      esac
      shift
      ;;
    --mpi) mpi=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*) fail "there is no option $1: see --help" ;;
    *) break ;;
  esac
  shift
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "-n $ranks is not a number of workers"
[[ $hosts =~ ^([^:,[:space:]]+:[1-9][0-9]*(,[^:,[:space:]]+:[1-9][0-9]*)*)?$ ]] ||
  fail "--hosts $hosts is not of the form node0:2,node1:2"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -n "$mpi" ]; then
  [ -z "$hosts$interface" ] || fail "--hosts and --interface go without --mpi: use launch/mpirun.sh --backend horovod"
  exec "$root/launch/mpirun.sh" --backend horovod -n "$ranks" ${dry_run:+--dry-run} "$@"
fi

python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || fail "no python: run make install, or set PYTHON"
"$python" -c 'import horovod' 2>/dev/null || fail "$python has no Horovod: run make horovod"
[ -n "$hosts" ] || interface=${interface:-lo}

command=("$python" "$root/launch/horovodrun.py" --gloo -np "$ranks")
[ -z "$hosts" ] || command+=(--hosts "$hosts")
[ -z "$interface" ] || command+=(--network-interfaces "$interface")
command+=("$python" -m dtrain.train backend=horovod "$@")

if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
