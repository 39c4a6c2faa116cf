#!/usr/bin/env bash
# Makes .venv from uv.lock, with nothing but Python 3.11 or newer on the machine.
# Safe to run again; when nothing changed it takes a fraction of a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

stop() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        # Running it, not just finding it: version managers put shims on the PATH for Pythons that are not there.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.implementation.name != "cpython")' \
            >/dev/null 2>&1; then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# 0.9 is the first uv that builds the packages of this workspace (build-system.requires).
usable_uv() {
    local version
    version=$("$1" --version 2>/dev/null | awk '{print $2}') || return 1
    [ -n "$version" ] && [ "$(printf '%s\n0.9\n' "$version" | sort -V | head -n 1)" = 0.9 ]
}

if ! python=$(find_python); then
    stop "Stellwerk needs Python 3.11 or newer, and none is on the PATH." \
        "Debian 12+ or Ubuntu 24.04+: apt-get install python3" \
        "Ubuntu 22.04:                apt-get install python3.11" \
        "Others:                      https://www.python.org/downloads/"
fi

if usable_uv uv; then
    uv=uv
else
    uv=$root/.tools/uv
    usable_uv "$uv" || "$python" scripts/fetch_uv.py "$uv"
fi

# A copied or moved checkout: its environment still points at the old place.
if [ -e .venv ] && [ "$(cat .venv/stellwerk-root 2>/dev/null || true)" != "$root" ] && [ -e .venv/stellwerk-root ]; then
    echo "setup: this checkout was moved; making .venv anew" >&2
    rm -rf .venv
fi
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    "$uv" venv --quiet --clear --python "$python" .venv
fi
"$uv" sync --frozen --quiet --python .venv/bin/python

# Bytecode once and for all: on two cores the first import of scikit-learn and its like takes a quarter of a minute.
stamp=.venv/stellwerk-compiled
if ! cmp --silent uv.lock "$stamp"; then
    .venv/bin/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
    cp uv.lock "$stamp"
fi
printf '%s\n' "$root" >.venv/stellwerk-root
