#!/usr/bin/env bash
# Build Horovod for the torch of an environment, once, and install it there: `make horovod`.
#
# Horovod's last release pins C++14 in its CMake files, and torch's headers need C++17. So a compiler of ours stands in
# front of the real one and corrects that flag. It also drops debug symbols (most of the build's time and size), and
# has the library look for MPI beside the environment it is installed in rather than the one it was built in.
set -euo pipefail

version=0.28.1

usage() {
  cat <<'USAGE'
Usage: launch/build_horovod.sh

Builds Horovod with gloo, and with MPI where the environment has an MPI compiler (pip install 'dtrain[mpi]' brings one),
and installs it. It takes some minutes, once: the wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/dtrain/wheels, one for
each version of torch and Python.

$PYTHON is the environment's interpreter (.venv/bin/python), $CXX the compiler (g++).
USAGE
}

fail() {
  echo "launch/build_horovod.sh: $*" >&2
  exit 2
}

case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  ?*) fail "there is no option $1: see --help" ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(command -v "${PYTHON:-$root/.venv/bin/python}") || fail "no ${PYTHON:-.venv/bin/python}: run make install"
built_for=$("$python" -c 'import sys, sysconfig, torch
print(f"torch-{torch.__version__}-{sys.implementation.cache_tag}-{sysconfig.get_platform()}")' 2>/dev/null) ||
  fail "$python has no torch: run make install"

bin=$(cd "$(dirname "$python")" && pwd) # absolute: CMake looks for mpicxx from a directory of its own
if [ -x "$bin/mpicxx" ]; then mpi=mpich; else mpi=no-mpi; fi
wheels=${XDG_CACHE_HOME:-$HOME/.cache}/dtrain/wheels/horovod-$version-$built_for-$mpi

if ! compgen -G "$wheels/*.whl" >/dev/null; then
  cxx=$(command -v "${CXX:-g++}") || fail "no C++ compiler: apt-get install g++, or set CXX"
  for tool in cmake make; do
    command -v "$tool" >/dev/null || fail "no $tool: apt-get install $tool"
  done
  "$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
    fail "no Python.h for $python: apt-get install python3-dev"

  mkdir -p "$(dirname "$wheels")"
  work=$(mktemp -d "$wheels.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cat >"$work/c++" <<WRAPPER
#!/usr/bin/env bash
arguments=('-Wl,-rpath,\$ORIGIN/../../../..')
for argument in "\$@"; do
  case \$argument in
    -std=*14) arguments+=("\${argument%14}17") ;;
    -g | -Wl,-rpath,*) ;;
    *) arguments+=("\$argument") ;;
  esac
done
exec $(printf %q "$cxx") "\${arguments[@]}"
WRAPPER
  chmod +x "$work/c++"

  if [ "$mpi" = mpich ]; then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi
  export CXX=$work/c++ CMAKE_POLICY_VERSION_MINIMUM=3.5 HOROVOD_WITH_GLOO=1 HOROVOD_WITH_PYTORCH=1
  export HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
  export MAKEFLAGS="${MAKEFLAGS:--j$(nproc)}" PATH="$bin:$PATH"
  echo "building Horovod $version for $built_for ($mpi): some minutes, once"
  "$python" -m pip install --quiet --constraint "$root/constraints.txt" 'setuptools>=70.1' packaging pyyaml cloudpickle psutil cffi
  "$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --no-binary horovod \
    --wheel-dir "$work/wheels" "horovod==$version" || fail "Horovod did not build: the lines above say why"
  rm -rf "$wheels"
  mv "$work/wheels" "$wheels"
fi

"$python" -m pip install --quiet --constraint "$root/constraints.txt" "$wheels"/*.whl
echo "Horovod $version ($mpi) is installed for $python"
