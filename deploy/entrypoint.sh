#!/bin/sh
# Starts the service of this image. Secrets come as a file of NAME=value lines, so that they stand
# neither in docker-compose.yml nor in what `docker inspect` shows; on Kubernetes there is no such file.
set -eu

secrets=/run/secrets/stellwerk
if [ -e "$secrets" ]; then
    # Read, not sourced: a value may hold any character.
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
            STELLWERK_*=*) export "${line%%=*}=${line#*=}" ;;
        esac
    done <"$secrets"
fi
exec python -m "stellwerk_${STELLWERK_SERVICE}" "$@"
