# shellcheck shell=bash
# What the user may set of a launch script: its options, $PYTHON and $OMP_NUM_THREADS. torchrun.sh, mpirun.sh and
# horovodrun.sh source this, so that they take the same options in the same way and say mistakes in the same words.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=launch/${0##*/}
variables=()

fail() {
  echo "$script: $*" >&2
  exit 2
}

# read_options 'NAME=VARIABLE ... FLAG ...' "$@": the script's own options. One with a value puts it into its variable;
# a flag, such as --mpi, sets the variable of its name to yes. Every script has -n RANKS, --dry-run, and --help, for
# which it defines `usage`. What follows the options is then in $settings.
read_options() {
  local options="-n=ranks --dry-run $1" option
  shift
  ranks=2 dry_run=''
  while [[ ${1-} == -* ]]; do
    for option in $options -h=help --help=help ''; do
      [ "${option%%=*}" != "$1" ] || break
    done
    case $option in
      '') fail "there is no option $1: see --help" ;;
      *=help)
        usage
        exit 0
        ;;
      *=*)
        [ "$#" -gt 1 ] || fail "$1 needs a value: see --help"
        printf -v "${option#*=}" %s "$2"
        shift
        ;;
      *)
        option=${option#--}
        printf -v "${option//-/_}" yes
        ;;
    esac
    shift
  done
  # shellcheck disable=SC2034 # for the script that sources this
  settings=("$@")
  [[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "-n $ranks is not a number of workers"
}

# The interpreter, in $python.
find_python() {
  python=${PYTHON:-$root/.venv/bin/python}
  [ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || fail "no python: run make install, or set PYTHON"
}

# share_cores RANKS: as many threads for each rank of this host as it has cores, in $variables.
share_cores() {
  local threads=$(($(nproc) / $1))
  variables=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}")
}

# run_or_print COMMAND...: become it, with $variables in its environment; with --dry-run only print both.
run_or_print() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "${variables[@]}" "$@"
    echo
  else
    [ "${#variables[@]}" = 0 ] || export "${variables[@]}"
    exec "$@"
  fi
}
