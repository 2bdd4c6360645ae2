#!/usr/bin/env bash
# Train over MPI (MPICH or Open MPI).
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: launch/mpirun.sh [-n RANKS] [--hostfile FILE] [--backend NAME] [--dry-run] [SETTING...]

Runs `python -m dtrain.train backend=mpi SETTING...` on RANKS workers (2 unless given), for example
  launch/mpirun.sh -n 4 model=squeezenet1_1 data=digits compressor=top_k

  -n RANKS          how many workers
  --hostfile FILE   spread them over these hosts, which need this folder at the same path, and ssh without a password
  --backend NAME    mpi unless given; horovod for a Horovod that is built with MPI
  --dry-run         print the command and do not run it
  --help            print this

$PYTHON is the interpreter (.venv/bin/python, else python3), $MPIEXEC the launcher (mpiexec beside it, else on PATH).
Each worker has its share of the cores as threads, unless $OMP_NUM_THREADS is set.
EOF
}

fail() {
  echo "launch/mpirun.sh: $*" >&2
  exit 2
}

ranks=2 hostfile='' backend=mpi dry_run=''
while [ "$#" -gt 0 ]; do
  case $1 in
    -n | --hostfile | --backend)
      [ "$#" -gt 1 ] || fail "$1 needs a value: see --help"
      case $1 in
        -n) ranks=$2 ;;
        --hostfile) hostfile=$2 ;;
        *) backend=$2 ;;
      esac
      shift
      ;;
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
[ -z "$hostfile" ] || [ -r "$hostfile" ] || fail "--hostfile $hostfile cannot be read"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || fail "no python: run make install, or set PYTHON"
# mpi4py takes the MPI of its own environment first, and both must be of the same make
mpiexec=${MPIEXEC:-$(dirname "$python")/mpiexec}
[ -x "$mpiexec" ] || mpiexec=$(command -v "${MPIEXEC:-mpiexec}") || fail "no mpiexec: pip install 'dtrain[mpi]'"

hosts=1
[ -z "$hostfile" ] || hosts=$(grep -c '^[^#]' "$hostfile") || fail "--hostfile $hostfile names no host"
threads=$(($(nproc) / ((ranks + hosts - 1) / hosts)))
variables=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}")

command=("$mpiexec" -n "$ranks")
case $("$mpiexec" --version 2>&1) in
  *'Open MPI'* | *OpenRTE* | *PRRTE*)
    command+=(--bind-to none) # a rank has several threads, which must not share a core
    [ "$(id -u)" != 0 ] || command+=(--allow-run-as-root)
    if [ -n "$hostfile" ]; then command+=(--hostfile "$hostfile" -x OMP_NUM_THREADS); else command+=(--oversubscribe); fi
    ;;
  *)
    [ -z "$hostfile" ] || command+=(-f "$hostfile")
    ;;
esac
command+=("$root/launch/mpi_rank.sh" "$python" -m dtrain.train backend="$backend" "$@")

if [ -n "$dry_run" ]; then
  printf '%q ' "${variables[@]}" "${command[@]}"
  echo
else
  export "${variables[@]}"
  exec "${command[@]}"
fi
