#!/bin/sh
# Limit what a worker sends to $RATE (100mbit, as tc writes it). Runs in the worker's network, with NET_ADMIN.
set -eu

fail() {
  echo "docker/shaper.sh: $*" >&2
  exit 2
}

# shellcheck disable=SC2153
number=${RATE%?bit}
case $number in '' | *[!0-9]*) fail "SHAPED_RATE=$RATE is not a whole number of kbit, mbit or gbit, such as 100mbit" ;; esac
case $RATE in
  *kbit) rate=$((number * 1000)) ;;
  *mbit) rate=$((number * 1000000)) ;;
  *gbit) rate=$((number * 1000000000)) ;;
esac
# tbf lets this many bytes through at full speed after a pause: what passes in 2 ms, since with less it misses its turns
burst=$((rate / 8 / 500))
[ "$burst" -ge 32768 ] || burst=32768

address=$(getent ahostsv4 "rank$NODE_RANK" | sed -n '1s/ .*//p')
interface=$(ip -4 -oneline address show to "$address" | sed -n '1s/^[0-9]*: \([^ ]*\) .*/\1/p')
[ -n "$interface" ] || fail "no interface here has the address of rank$NODE_RANK, '$address'"
tc qdisc replace dev "$interface" root tbf rate "$RATE" burst "$burst" latency 200ms
tc qdisc show dev "$interface"
