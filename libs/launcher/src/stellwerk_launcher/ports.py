"""Loopback ports that stay the same over restarts.

Chosen below the kernel's ephemeral range (32768 and up): a port from within it can be taken by any
outgoing connection while our process is down for a moment, and its restart would then fail.
"""

import secrets
import socket
from collections.abc import Iterable, Mapping

HOST = "127.0.0.1"
PORT_RANGE = range(20_000, 32_000)
# By this process, and mostly not listened on at once: nobody else is to get one of these meanwhile.
_chosen: set[int] = set()


def is_free(port: int) -> bool:
    """True when the port can be listened on now; connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose(names: Iterable[str], kept: Mapping[str, int]) -> dict[str, int]:
    """A port for each name: the kept one while nobody else took it, else a free one."""
    chosen: dict[str, int] = {}
    for name in names:
        port = kept.get(name, 0)
        while port == 0 or port in chosen.values() or not is_free(port):
            # Not from `random`, whose seed tests set: two of them would choose the same.
            port = secrets.choice([port for port in PORT_RANGE if port not in _chosen])
        chosen[name] = port
        _chosen.add(port)
    return chosen
