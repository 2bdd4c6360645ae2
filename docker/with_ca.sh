#!/bin/sh
# Run a command whose pip trusts the certificates given to the build (`--secret id=ca,src=FILE`), if any were given.
set -eu
[ ! -s /run/secrets/ca ] || export PIP_CERT=/run/secrets/ca
exec "$@"
