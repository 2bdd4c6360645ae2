#!/bin/sh
# Limit what a worker sends, in whose network namespace this runs, to $RATE (as tc writes it: 100mbit).
set -eu
address=$(getent ahostsv4 "rank$NODE_RANK" | awk '{ print $1; exit }')
interface=$(ip -4 -oneline address show to "$address" | awk '{ print $2; exit }')
[ -n "$interface" ] || { echo "docker/shaper.sh: no interface has rank$NODE_RANK's address $address" >&2; exit 1; }
# tbf lets a burst through at full speed after a pause: small, or what is measured is not the limit
tc qdisc replace dev "$interface" root tbf rate "$RATE" burst "$BURST" latency 200ms
tc qdisc show dev "$interface"
