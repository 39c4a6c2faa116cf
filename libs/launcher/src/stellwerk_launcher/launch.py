"""One life of a stack in this process: from the empty folder to the last child's end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hvac.exceptions import VaultError
from requests import RequestException

from stellwerk_launcher import folder, identities, ports, services
from stellwerk_launcher.binaries import Binary
from stellwerk_launcher.context import PORT_NAMES, Context, external_servers, host_and_port
from stellwerk_launcher.credentials import Credentials, load_or_create_owner_key
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.process import create_time
from stellwerk_launcher.report import Reporter
from stellwerk_launcher.rotation import Rotation
from stellwerk_launcher.servers import mongod, nats, openbao, versitygw
from stellwerk_launcher.supervisor import Supervisor, together
from stellwerk_launcher.tied import tied_to_parent
from stellwerk_launcher.vault import Certificate

SERVERS = {"nats": nats, "mongod": mongod, "openbao": openbao, "versitygw": versitygw}
# mongod takes longest, and needs Vault only once it runs.
BEFORE_VAULT = ("mongod", "openbao")
AFTER_VAULT = ("nats", "versitygw")
STOP_ORDER = (
    ("agent",),
    ("gateway",),
    ("registry", "runs", "compute", "inference"),
    ("telemetry",),
    ("secrets",),
)
SWEEP_TIMEOUT_SECONDS = 20.0
RENEWAL_RETRY_SECONDS = 1.0
INTERRUPTED = 130


class Launch:
    """Prepares everything first, so that a missing program is told before anything was started."""

    def __init__(self, data_dir: Path, reporter: Reporter, *, servers_only: bool = False) -> None:
        self._data_dir = data_dir
        self._reporter = reporter
        self._servers_only = servers_only
        self._state = "starting"
        self._vault_ready = asyncio.Event()
        earlier = folder.read_state(data_dir)
        ended = folder.end_leftovers(earlier)
        if ended:
            reporter.line(f"ended {ended} processes of an earlier start that was cut short")
        self._context = self._make_context(earlier)
        self._binaries = self._find_servers()
        self._supervisor = Supervisor(data_dir / folder.LOGS_FOLDER, reporter.line, self._save)

    def _make_context(self, earlier: dict[str, Any]) -> Context:
        credentials_file = self._data_dir / "credentials.json"
        if not credentials_file.exists() and (self._data_dir / "mongod" / "data").exists():
            raise LauncherError(
                "CREDENTIALS_MISSING",
                f"{self._data_dir} has data of a stack, but its credentials.json is gone.",
                "Restore the file from a copy, or start with another --data-dir.",
            )
        test_users = (nats.TEST_USER,) if self._servers_only else ()
        load_or_create_owner_key(self._data_dir / services.OWNER_KEY_FILE)
        return Context(
            data_dir=self._data_dir,
            namespace=os.environ.get("STELLWERK_NAMESPACE") or "stellwerk",
            ports=ports.choose(PORT_NAMES, earlier.get("internal", {}).get("ports", {})),
            credentials=Credentials.load_or_create(credentials_file, extra_nats_users=test_users),
            external=external_servers(os.environ),
        )

    def _find_servers(self) -> dict[str, Binary]:
        found: dict[str, Binary] = {}
        for name, server in SERVERS.items():
            uri = self._context.external.get(name)
            if uri is None:
                found[name] = versitygw.find(self._reporter.line) if server is versitygw else server.find()
                continue
            host, port = host_and_port(uri)
            _check_reachable(name, host, port)
            self._reporter.line(f"{name}: using the one at {host}:{port}")
        return found

    async def run(self) -> int:
        """Starts, serves until a signal, stops; returns the exit code."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        rotation = Rotation(self._context, self._supervisor, self._reporter.line)
        loop.add_signal_handler(signal.SIGUSR1, rotation.requested.set)
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        keeping = [
            asyncio.create_task(self._supervisor.keep_logs_short()),
            asyncio.create_task(self._keep_certificate()),
            asyncio.create_task(rotation.run()),
        ]
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                self._reporter.line("interrupted: ending what was started")
                return INTERRUPTED
            await starting
            await stopping
            return 0
        finally:
            starting.cancel()
            stopping.cancel()
            for task in keeping:
                task.cancel()
            await asyncio.gather(starting, stopping, *keeping, return_exceptions=True)
            await self._stop()

    async def _start(self) -> None:
        began = time.monotonic()
        self._save()
        context = self._context
        self._reporter.line("starting " + ", ".join(self._binaries))
        await together(self._start_servers(BEFORE_VAULT), self._start_after_vault())
        for group in () if self._servers_only else services.START_ORDER:
            self._reporter.line("starting " + ", ".join(group))
            await self._supervisor.start([services.specify(context, name) for name in group])
        self._state = "ready"
        self._save()
        self._reporter.line(f"stellwerk is up ({time.monotonic() - began:.1f} s)")
        if not self._servers_only:
            document = self.document()
            for name in ("gateway_url", "grpc_address", "owner_key_file"):
                self._reporter.line(f"  {name}: {document[name]}")
        self._reporter.ready()

    async def _start_servers(self, names: tuple[str, ...]) -> None:
        specs = [SERVERS[n].specify(self._context, b) for n, b in self._binaries.items() if n in names]
        await self._supervisor.start(specs, self._initialise)

    async def _start_after_vault(self) -> None:
        """What cannot even start without the secrets that Vault keeps."""
        if "openbao" in self._context.external:
            await self._set_up("openbao", identities.prepare)
        await self._vault_ready.wait()
        await self._start_servers(AFTER_VAULT)

    async def _initialise(self, name: str) -> None:
        if name != "openbao":
            await self._vault_ready.wait()
        await self._set_up(name, SERVERS[name].initialise)

    async def _set_up(self, name: str, work: Callable[[Context], None]) -> None:
        """Sets a server up in a thread; once Vault is, the others may go on."""
        try:
            await asyncio.to_thread(work, self._context)
            if name == "openbao":
                self._vault_ready.set()
        except LauncherError:
            raise
        except Exception as error:
            raise LauncherError(
                "SERVER_SETUP_FAILED",
                f"{name} answers, but setting it up failed: {error}.",
                f"Its output is in {self._data_dir / folder.LOGS_FOLDER / name}.log",
            ) from error

    async def _keep_certificate(self) -> None:
        """Renews the launcher's certificate at half its life; while Vault is away, tries again."""
        await self._vault_ready.wait()
        while True:
            renew_time = datetime.fromisoformat(Certificate.read(self._context.certificate_file).renew_time)
            await asyncio.sleep(max(RENEWAL_RETRY_SECONDS, (renew_time - datetime.now(UTC)).total_seconds()))
            try:
                await asyncio.to_thread(identities.renew_certificate, self._context)
            except (LauncherError, OSError, RequestException, VaultError) as error:
                self._reporter.line(f"the launcher's certificate could not be renewed: {error}")

    async def _stop(self) -> None:
        self._state = "stopping"
        self._save()
        self._reporter.line("stopping")
        await self._supervisor.stop_one("agent")
        # Also when no agent came up this time: an earlier one may have left commands.
        if (self._data_dir / services.AGENT_FOLDER).exists():
            await self._sweep()
        await self._supervisor.stop(STOP_ORDER)
        self._state = "down"
        self._save()
        self._reporter.line("stopped")

    async def _sweep(self) -> None:
        """Ends the commands that the agent left running on purpose."""
        log = self._data_dir / folder.LOGS_FOLDER / "agent.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *tied_to_parent(services.sweep_command(self._data_dir)),
                env=services.inherited_environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
            try:
                names, _ = await asyncio.wait_for(process.communicate(), SWEEP_TIMEOUT_SECONDS)
                for name in names.decode(errors="replace").splitlines():
                    self._reporter.line(f"ended {name}")
            except TimeoutError:
                process.kill()
                await process.wait()
            code = process.returncode
        if code != 0:
            self._reporter.line(f"the agent's commands may still run: its sweep ended with {code}, see {log}")

    def _save(self) -> None:
        """Keeps `stack.json` true; a full disk must not end a running stack."""
        try:
            folder.write_state(self._data_dir, self.document())
        except OSError as error:
            self._reporter.line(f"stack.json could not be written: {error.strerror}")

    def document(self) -> dict[str, Any]:
        """What `stack.json` says: addresses for everybody, and below `internal` what only we read."""
        context, children = self._context, self._supervisor.children
        services_up = not self._servers_only
        return {
            "state": self._state,
            "data_dir": str(self._data_dir),
            "gateway_url": f"http://{context.address('gateway_http')}" if services_up else "",
            "grpc_address": context.address("gateway") if services_up else "",
            "nats_url": context.nats_url,
            "mongodb_uri": context.inspector_uri,
            "s3_url": context.s3_url,
            "vault_url": context.vault_url,
            "otlp_endpoint": f"http://{context.address('gateway')}" if services_up else "",
            "owner_key_file": str(self._data_dir / services.OWNER_KEY_FILE),
            "credentials_file": str(self._data_dir / "credentials.json"),
            "processes": [
                {
                    "name": name,
                    "pid": child.pid,
                    "version": child.spec.version,
                    "address": child.spec.address,
                    "restarts": child.restarts,
                    "last_reason": child.last_reason,
                }
                for name, child in children.items()
            ],
            "internal": {
                "supervisor": {"pid": os.getpid(), "create_time": create_time(os.getpid())},
                "ports": dict(context.ports),
                "create_times": {name: child.create_time for name, child in children.items()},
                "checks": {
                    name: [child.spec.check.kind, child.spec.check.target] for name, child in children.items()
                },
            },
        }


def _check_reachable(name: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise LauncherError(
            "SERVER_UNREACHABLE",
            f"Nothing answers at {host}:{port}, the {name} that the environment names: {error}.",
            "Start that server, or unset the variable so that stellwerk starts one of its own.",
        ) from error
