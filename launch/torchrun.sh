#!/usr/bin/env bash
# Train with torchrun, over gloo or NCCL: on this host, or as one host of several.
set -euo pipefail

# shellcheck source=launch/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"

usage() {
  cat <<'EOF'
Usage: launch/torchrun.sh [-n RANKS] [--nodes N --node-rank R --master HOST[:PORT]] [--interface NAME] [--id ID]
                          [--restarts K] [--dry-run] [SETTING...]

Runs `python -m dtrain.train SETTING...` on RANKS workers of this host (2 unless given), for example
  launch/torchrun.sh -n 4 model=squeezenet1_1 data=digits compressor=int4
With several hosts, run it on each of them:
  launch/torchrun.sh -n 4 --nodes 2 --node-rank 0 --master node0 model=squeezenet1_1     # on node0
  launch/torchrun.sh -n 4 --nodes 2 --node-rank 1 --master node0 model=squeezenet1_1     # on the other

  -n RANKS          how many workers on each host
  --nodes N         how many hosts (1 unless given)
  --node-rank R     which of them this is, from 0
  --master HOST     host 0 as the others reach it; the port is 29500 unless given as HOST:PORT
  --interface NAME  the network interface that carries the exchange (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)
  --id ID           the job's name (torchrun's --rdzv-id): a later start under it goes on with what this one leaves,
                    until that is complete; for example $SLURM_JOB_ID, which a job that is queued again keeps
  --restarts K      start all workers again so often (torchrun's --max-restarts; 0 unless given)
  --dry-run         print the command and do not run it
  --help            print this

$PYTHON is the interpreter (.venv/bin/python, else python3). Each worker has its share of the cores as threads, unless
$OMP_NUM_THREADS is set.
EOF
}

nodes=1 node_rank='' master='' interface='' id='' restarts=''
read_options '--nodes=nodes --node-rank=node_rank --master=master --interface=interface --id=id --restarts=restarts' "$@"
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes $nodes is not a number of hosts"

find_python

command=("$python" "$root/launch/torchrun.py" "--nproc-per-node=$ranks")
if [ "$nodes" = 1 ]; then
  [ -z "$node_rank$master" ] || fail "--node-rank and --master are for several hosts: add --nodes N"
  # what --standalone does, which has no place for a name
  if [ -n "$id" ]; then command+=(--rdzv-backend=c10d --rdzv-endpoint=localhost:0); else command+=(--standalone); fi
else
  [ -n "$node_rank" ] && [ -n "$master" ] || fail "--nodes $nodes needs --node-rank R and --master HOST"
  [[ $node_rank =~ ^(0|[1-9][0-9]*)$ ]] && [ "$node_rank" -lt "$nodes" ] ||
    fail "--node-rank $node_rank is not from 0 to $((nodes - 1))"
  [[ $master =~ ^[^:]+(:[0-9]+)?$ ]] || fail "--master $master is not HOST or HOST:PORT"
  port=29500
  [[ $master != *:* ]] || port=${master##*:}
  command+=("--nnodes=$nodes" "--node-rank=$node_rank" "--master-addr=${master%:*}" "--master-port=$port")
fi
[ -z "$id" ] || command+=("--rdzv-id=$id")
[[ $restarts =~ ^[0-9]*$ ]] || fail "--restarts $restarts is not a number"
[ -z "$restarts" ] || command+=("--max-restarts=$restarts")
command+=(-m dtrain.train "${settings[@]}")

share_cores "$ranks"
if [ -n "$interface" ]; then
  grep -q "^ *$interface:" /proc/net/dev || fail "--interface $interface does not exist here: see \`ip link\`"
  variables+=("GLOO_SOCKET_IFNAME=$interface" "NCCL_SOCKET_IFNAME=$interface")
fi

run_or_print "${command[@]}"
