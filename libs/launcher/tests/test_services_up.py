"""A whole stack with stand-ins for the services: what the launcher owes them, in which order.

The stand-ins are hand-written because the point is the launcher; the real services run in
`tests/system`.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stellwerk_launcher import stack
from stellwerk_launcher.services import START_ORDER
from stellwerk_launcher.testing import Servers, StackProcess

NOTE = """
import json, os, pathlib, signal, sys
def note(what):
    line = json.dumps([what, NAME, {k: v for k, v in os.environ.items() if k.startswith("STELLWERK_")}])
    with open(os.environ["STAGE_NOTES"], "a") as file:
        file.write(line + "\\n")
def stop(*_):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note("started")
"""
GRPC = """
from concurrent.futures import ThreadPoolExecutor
import grpc, hvac
vault = hvac.Client(os.environ["STELLWERK_VAULT_URL"])
vault.auth.approle.login(os.environ["STELLWERK_VAULT_ROLE_ID"], os.environ["STELLWERK_VAULT_SECRET_ID"])
own = vault.secrets.pki.generate_certificate(NAME, f"{NAME}.stellwerk")["data"]
key, chain, authority = (own[part].encode() for part in ("private_key", "certificate", "issuing_ca"))
from grpc_health.v1 import health, health_pb2_grpc
server = grpc.server(ThreadPoolExecutor(2))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set("", 1)
credentials = grpc.ssl_server_credentials([(key, chain)], authority, require_client_auth=True)
server.add_secure_port(os.environ["STELLWERK_LISTEN"], credentials)
server.start()
while True: signal.pause()
"""
HTTP = """
import http.server
class Door(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
host, port = os.environ["STELLWERK_HTTP_LISTEN"].split(":")
http.server.HTTPServer((host, int(port)), Door).serve_forever()
"""
AGENT = """
pathlib.Path(os.environ["STELLWERK_AGENT_DIR"], "ready").touch()
while True: signal.pause()
"""
SWEEP = (
    """
import sys
NAME = 'sweep:' + ' '.join(sys.argv[1:])
print("workspaces/demo/runs/long")
"""
    + NOTE
)


def _write_stand_ins(folder: Path) -> None:
    bodies = {"gateway": HTTP, "agent": AGENT}
    for name in (name for group in START_ORDER for name in group):
        package = folder / f"stellwerk_{name}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "main.py").write_text(f"NAME = {name!r}\n{NOTE}{bodies.get(name, GRPC)}")
    (folder / "stellwerk_agent" / "sweep.py").write_text(SWEEP)


@pytest.fixture
def acted(tmp_path: Path, servers: Servers) -> Iterator[StackProcess]:
    """Stand-ins on the session's servers, which count as servers of the user."""
    _write_stand_ins(tmp_path / "packages")
    process = StackProcess(
        tmp_path / "data",
        environment={
            "PYTHONPATH": str(tmp_path / "packages"),
            "STAGE_NOTES": str(tmp_path / "notes"),
            "STELLWERK_NATS_URL": servers.nats_url,
            "STELLWERK_MONGODB_URI": servers.mongodb_uri,
            "STELLWERK_VAULT_URL": servers.vault_url,
            "STELLWERK_VAULT_SECRET_ID": servers.launcher_secret_id,
            "STELLWERK_S3_URL": servers.s3_url,
        },
    )
    yield process
    process.stop()


def _notes(process: StackProcess) -> list[tuple[str, str, dict[str, str]]]:
    text = (process.data_dir.parent / "notes").read_text()
    return [(note[0], note[1], note[2]) for note in map(json.loads, text.splitlines())]


def test_services_start_and_stop_in_order_with_their_variables(acted: StackProcess, servers: Servers) -> None:
    status = acted.start()
    assert [process["name"] for process in status["processes"]] == [n for group in START_ORDER for n in group]
    assert {process["health"] for process in status["processes"]} == {"SERVING"}
    assert status["nats_url"] == servers.nats_url
    assert acted.stop() == 0

    notes = _notes(acted)
    started = [name for what, name, _ in notes if what == "started" and not name.startswith("sweep")]
    assert started[0] == "secrets"
    assert started[-1] == "agent"
    after_start = [name for what, name, _ in notes][len(started) :]
    assert after_start[:3] == ["agent", f"sweep:{acted.data_dir / 'agent'}", "gateway"]
    assert after_start[-2:] == ["telemetry", "secrets"]

    variables = {name: environment for what, name, environment in notes if what == "started"}
    assert variables["secrets"]["STELLWERK_VAULT_URL"] == servers.vault_url
    assert variables["runs"]["STELLWERK_SECRETS_ADDRESS"] == variables["secrets"]["STELLWERK_LISTEN"]
    assert variables["agent"]["STELLWERK_GRPC_ADDRESS"] == status["grpc_address"]
    assert status["otlp_endpoint"] == "http://" + status["grpc_address"]
    assert variables["runs"]["STELLWERK_OTLP_ENDPOINT"] == (
        "https://" + variables["telemetry"]["STELLWERK_LISTEN"]
    )


@pytest.mark.parametrize("name", ["runs", "gateway", "agent"])
def test_a_killed_service_comes_back_on_its_address(acted: StackProcess, name: str) -> None:
    acted.start()
    address = acted.process(name)["address"]
    acted.wait_until_back(name, acted.kill(name))
    assert acted.process(name)["address"] == address
    assert acted.process(name)["last_reason"] == "killed by SIGKILL"


def test_down_after_a_killed_supervisor_sweeps_what_the_agent_left(
    acted: StackProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted.start()
    monkeypatch.setenv("PYTHONPATH", str(acted.data_dir.parent / "packages"))
    monkeypatch.setenv("STAGE_NOTES", str(acted.data_dir.parent / "notes"))
    acted.stop(signal.SIGKILL)
    stopped = stack.down(acted.data_dir)["stopped"]
    assert stopped == [] or set(stopped) <= {name for group in START_ORDER for name in group}
    assert f"sweep:{acted.data_dir / 'agent'}" in [name for _, name, _ in _notes(acted)]


def test_down_names_what_it_ends_before_it_does(
    acted: StackProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acted.start()
    monkeypatch.setenv("PYTHONPATH", str(acted.data_dir.parent / "packages"))
    monkeypatch.setenv("STAGE_NOTES", str(acted.data_dir.parent / "notes"))
    (acted.data_dir / "agent" / "allocations" / "demo.one").mkdir(parents=True)
    found = stack.down(acted.data_dir)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "workspaces/demo/runs/long is running: ending it",
        f"stellwerk is down on {acted.data_dir}",
    ]
    assert found["ended"] == ["workspaces/demo/runs/long"]
    assert set(found["stopped"]) == {name for group in START_ORDER for name in group}
    notes = [name for what, name, _ in _notes(acted) if name.startswith("sweep") or what == "stopped"]
    assert notes[:2] == [f"sweep:{acted.data_dir / 'agent'} --list", "agent"]
    assert "ended workspaces/demo/runs/long" in acted.output.read_text()


def test_two_stacks_live_side_by_side(acted: StackProcess, tmp_path: Path) -> None:
    first = acted.start()
    with StackProcess(tmp_path / "other", environment=acted.environment) as other:
        second = other.status()
        assert {p["address"] for p in first["processes"] if p["address"]}.isdisjoint(
            p["address"] for p in second["processes"]
        )
        assert {p["health"] for p in second["processes"]} == {"SERVING"}
    assert {p["health"] for p in acted.status()["processes"]} == {"SERVING"}
