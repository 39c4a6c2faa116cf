"""The whole platform as `stellwerk up` starts it, with the real services."""

from typing import Any

from stellwerk_launcher.services import START_ORDER
from stellwerk_launcher.testing import StackProcess


def test_every_process_of_the_platform_serves(stack: dict[str, Any], stack_process: StackProcess) -> None:
    health = {process["name"]: process["health"] for process in stack_process.status()["processes"]}
    services = {name for group in START_ORDER for name in group}
    assert set(health) == services | {"nats", "mongod", "openbao", "versitygw"}
    assert set(health.values()) == {"SERVING"}
    for name in ("gateway_url", "grpc_address", "s3_url", "vault_url", "otlp_endpoint", "owner_key_file"):
        assert stack[name], name
