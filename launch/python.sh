# shellcheck shell=bash
# The interpreter, in $python: $PYTHON, else that of .venv, else python3.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}") || {
  echo "launch/${0##*/}: no python: run make install, or set PYTHON" >&2
  exit 2
}
