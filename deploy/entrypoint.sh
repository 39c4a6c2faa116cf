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
# The agent says with this file that it serves; the one of a container that died must not speak for the next.
if [ -n "${STELLWERK_AGENT_DIR:-}" ]; then
    rm -f "$STELLWERK_AGENT_DIR/ready"
fi
case $STELLWERK_SERVICE in
    scorer) exec python -m stellwerk_scorer "$@" ;;
    *) exec python -m "stellwerk_$STELLWERK_SERVICE.main" "$@" ;;
esac
