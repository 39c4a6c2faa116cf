"""The whole platform as `stellwerk up` starts it, with the real services."""

import json
from pathlib import Path
from typing import Any

import psutil

from stellwerk_launcher.services import START_ORDER
from stellwerk_launcher.testing import StackProcess


def test_every_process_of_the_platform_serves(stack: dict[str, Any], stack_process: StackProcess) -> None:
    health = {process["name"]: process["health"] for process in stack_process.status()["processes"]}
    services = {name for group in START_ORDER for name in group}
    assert set(health) == services | {"nats", "mongod", "openbao", "versitygw"}
    assert set(health.values()) == {"SERVING"}
    for name in ("gateway_url", "grpc_address", "s3_url", "vault_url", "otlp_endpoint", "owner_key_file"):
        assert stack[name], name


def test_nothing_listens_on_a_port_that_was_not_chosen_for_it(stack: dict[str, Any]) -> None:
    """The next port may be another's."""
    taken = {
        connection.laddr.port: process["name"]
        for process in stack["processes"]
        for connection in psutil.Process(process["pid"]).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    kept = json.loads((Path(stack["data_dir"]) / "stack.json").read_text())
    chosen = set(kept["internal"]["ports"].values())
    assert {port: name for port, name in taken.items() if port not in chosen} == {}
