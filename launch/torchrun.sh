#!/usr/bin/env bash
# Train with torchrun, over gloo or NCCL: dtrain launch, by the Python of this folder's environment.
set -euo pipefail

# shellcheck source=launch/python.sh
. "$(dirname "${BASH_SOURCE[0]}")/python.sh"

exec "$python" -m dtrain.cli launch --launcher torchrun "$@"
