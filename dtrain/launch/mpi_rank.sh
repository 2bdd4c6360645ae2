#!/usr/bin/env bash
# Run one rank of an MPI job (dtrain launch --launcher mpirun), and say which it was if a signal ends it: MPICH names only a process.
set -uo pipefail

trap : INT TERM # the program has them too; wait for it
{ "$@" 2>&3; } 3>&2 2>/dev/null # what the shell would say of a signal
code=$?
# Not of the signals by which a launcher ends the others
if [ "$code" -gt 128 ] && [ "$code" -ne 130 ] && [ "$code" -ne 143 ]; then
  rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-?}}
  echo "dtrain launch: rank $rank on $HOSTNAME was killed by SIG$(kill -l "$code"); the job ends" >&2
fi
exit "$code"
