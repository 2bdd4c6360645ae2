#!/usr/bin/env bash
# Train over MPI (MPICH or Open MPI).
set -euo pipefail

# shellcheck source=launch/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

usage() {
  cat <<'EOF'
Usage: launch/mpirun.sh [-n RANKS] [--hostfile FILE] [--backend NAME] [--dry-run] [SETTING...]

Runs `python -m dtrain.train backend=mpi SETTING...` on RANKS workers (2 unless given), for example
  launch/mpirun.sh -n 4 model=squeezenet1_1 data=digits compressor=int4

  -n RANKS          how many workers
  --hostfile FILE   spread them over these hosts, which need this folder at the same path, and ssh without a password
  --backend NAME    mpi unless given; horovod for a Horovod that is built with MPI
  --dry-run         print the command and do not run it
  --help            print this

$PYTHON is the interpreter (.venv/bin/python, else python3), $MPIEXEC the launcher (mpiexec beside it, else on PATH).
Each worker has its share of the cores as threads, unless $OMP_NUM_THREADS is set.
EOF
}

hostfile='' backend=mpi
read_options '--hostfile=hostfile --backend=backend' "$@"
[ -z "$hostfile" ] || [ -r "$hostfile" ] || fail "--hostfile $hostfile cannot be read"

find_python
# mpi4py takes the MPI of its own environment first, and both must be of the same make
mpiexec=${MPIEXEC:-$(dirname "$python")/mpiexec}
[ -x "$mpiexec" ] || mpiexec=$(command -v "${MPIEXEC:-mpiexec}") || fail "no mpiexec: pip install 'dtrain[mpi]'"

hosts=1
[ -z "$hostfile" ] || hosts=$(grep -c '^[^#]' "$hostfile") || fail "--hostfile $hostfile names no host"
share_cores $(((ranks + hosts - 1) / hosts))

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
command+=("$root/launch/mpi_rank.sh" "$python" -m dtrain.train backend="$backend" "${settings[@]}")

run_or_print "${command[@]}"
