#!/usr/bin/env bash
# Get the newest model that the publisher signed, again and again; its public key comes through a volume.
set -euo pipefail
until [ -s /keys/publisher.pub ]; do
  sleep 1
done
exec dtrain ship receive http://publisher:8470 --output /models/model.dtz --every 10 --public-key /keys/publisher.pub
