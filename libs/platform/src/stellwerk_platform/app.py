"""The life of a service process: start, serve, stop in the opposite order.

`main.py` of a service builds its parts in a coroutine that gets an `App`; what it
enters is left again at the end, and a background task that fails ends the process,
so that whoever supervises it starts it anew.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import uvloop

from stellwerk_platform import activity, probes, telemetry
from stellwerk_platform.access import Guard
from stellwerk_platform.auth import CallerCredentials, TokenSource, TokenVerifier
from stellwerk_platform.diagnosis import Diagnosis
from stellwerk_platform.errors import PlatformError, Unavailable
from stellwerk_platform.grpc_client import Credentials, connect
from stellwerk_platform.grpc_server import Registration, Server
from stellwerk_platform.hardening import keep_memory_private
from stellwerk_platform.identity import Identity
from stellwerk_platform.journal import Relay
from stellwerk_platform.memberships import Memberships, Registry, RoleSource
from stellwerk_platform.revocations import Revocations, from_secrets
from stellwerk_platform.settings import (
    IdentitySettings,
    ServiceSettings,
    Settings,
    SettingsError,
    StoreSettings,
)
from stellwerk_protos.platform.v1 import platform_pb2, platform_pb2_grpc

if TYPE_CHECKING:
    from stellwerk_platform.bus import Bus
    from stellwerk_platform.mongo import Database

log = logging.getLogger(__name__)
_AWAY_SECONDS = 1.0
T = TypeVar("T")
S = TypeVar("S", bound=Settings)


class App:
    """What a service process holds.

    Without an identity nothing is encrypted: that is for tests of single parts, and for the scorer,
    which serves this machine only. `run` gives one to every service.
    """

    def __init__(self, name: str, identity: Identity | None = None, health_listen: str = "") -> None:
        self.name = name
        self.identity = identity
        self._health_listen = health_listen
        self._stack = AsyncExitStack()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._failure: BaseException | None = None
        self.activity = activity.Reporter(name)
        activity.use(self.activity)
        self.diagnosis = Diagnosis(name)

    async def enter(self, manager: AbstractAsyncContextManager[T]) -> T:
        """Enters a context until the process stops."""
        return await self._stack.enter_async_context(manager)

    def defer(self, call: Callable[[], Awaitable[None]]) -> None:
        """Calls this when the process stops."""
        self._stack.push_async_callback(call)

    def close(self, call: Callable[[], None]) -> None:
        """Calls this when the process stops: for what closes without waiting."""
        self._stack.callback(call)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs this until the process stops; that it fails or ends before stops the process."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            error = task.exception() or RuntimeError(f"{task.get_coro()} has ended by itself")
            self._failure = self._failure or error
            self._stop.set()

    def connect(self, service: str, address: str, credentials: Credentials | None = None) -> grpc.aio.Channel:
        """A channel to another service, closed at the end; anonymous without credentials."""
        channel = connect(address, credentials, identity=self.identity, service=service)
        self.defer(channel.close)
        return channel

    async def serve(self, listen: str, guard: Guard, registrations: list[Registration]) -> Server:
        """Serves gRPC until the process stops."""
        if self.identity is not None:
            probes.add_certificate(self.diagnosis, self.identity)
        server = Server(
            listen,
            guard,
            [*registrations, self._diagnosis_registration()],
            identity=self.identity,
            health_listen=self._health_listen,
        )
        await server.start()
        log.info("%s listens on port %d", self.name, server.port)
        self.defer(server.stop)
        return server

    def _diagnosis_registration(self) -> Registration:
        return Registration(
            self.diagnosis,
            platform_pb2_grpc.add_DiagnosisServiceServicer_to_server,
            platform_pb2.DESCRIPTOR.services_by_name["DiagnosisService"],
        )

    async def wait(self) -> None:
        """Waits for SIGTERM or SIGINT, then leaves everything; raises what a background task raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            await self._stop.wait()
        finally:
            await self.leave()
        if self._failure is not None:
            raise self._failure

    async def leave(self) -> None:
        """Ends the background tasks and leaves everything that was entered."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


async def open_journal(app: App, settings: StoreSettings) -> tuple[Database, Bus]:
    """Connects to MongoDB and NATS, and publishes in the background what is committed."""
    # Not for all: a scoring server has neither, and its start is waited for.
    from stellwerk_platform.bus import Bus, ensure_streams
    from stellwerk_platform.mongo import Database

    database = Database(settings.mongodb_uri, settings.namespace, app.name)
    app.close(database.close)
    await database.open()
    bus = await app.enter(Bus.connect(settings.nats_url, settings.namespace, app.name, settings.nats_seed))
    app.background(bus.lasts())
    await ensure_streams(bus)
    database.maximum_event_bytes = bus.maximum_body_bytes
    relay = Relay(database, bus)
    database.on_commit(relay.wake)
    app.background(relay.run())
    app.background(app.activity.run(bus))
    probes.add_store(app.diagnosis, database)
    probes.add_bus(app.diagnosis, bus)
    return database, bus


async def open_guard(
    app: App,
    bus: Bus,
    keys: grpc.aio.Channel | TokenSource,
    revocations: Revocations,
    members: RoleSource,
) -> Guard:
    """Who may do what in a service, kept up to date by the journal while the process runs."""
    memberships = Memberships(members)
    await memberships.follow(bus)
    await revocations.follow(bus)
    app.background(revocations.run(bus))
    guard = Guard(TokenVerifier(keys, revocations).verify, memberships, revocations)
    app.background(guard.streams.sweep())
    return guard


async def follow_apart(
    connect_bus: Callable[[], AbstractAsyncContextManager[Bus]],
    memberships: Memberships,
    revocations: Revocations,
) -> None:
    """Keeps both up to date, for ever, in a process that also works while NATS is away."""
    while True:
        # What was told while nobody listened.
        memberships.forget()
        with suppress(PlatformError):
            await revocations.refresh()
        try:
            async with connect_bus() as bus, asyncio.TaskGroup() as tasks:
                await memberships.follow(bus)
                await revocations.follow(bus)
                tasks.create_task(bus.lasts())
                tasks.create_task(revocations.run(bus))
        except* Unavailable as error:
            log.info(
                "What changes of members and keys is asked for until NATS is back: %s", error.exceptions[0]
            )
        await asyncio.sleep(_AWAY_SECONDS)


class Service:
    """An app with what nearly every service has: database, bus, relay, tokens."""

    guard: Guard

    def __init__(
        self,
        app: App,
        settings: ServiceSettings,
        database: Database,
        bus: Bus,
        credentials: CallerCredentials,
    ) -> None:
        self.app = app
        self._settings = settings
        self.database = database
        self.bus = bus
        self.credentials = credentials

    @classmethod
    async def open(
        cls,
        app: App,
        settings: ServiceSettings,
        members: Callable[[Database], RoleSource] | None = None,
    ) -> Service:
        """Connects to MongoDB, NATS and `secrets`; the relay runs in the background.

        `members` is for who keeps the members of workspaces itself; everybody else asks `registry`.
        """
        database, bus = await open_journal(app, settings)
        anonymous = app.connect("secrets", settings.secrets_address)
        credentials = CallerCredentials(anonymous, settings.vault_role_id, settings.vault_secret_id)
        probes.add_secrets(app.diagnosis, anonymous, credentials)
        service = cls(app, settings, database, bus, credentials)
        source = members(database) if members else Registry(service.channel(settings.registry_address))
        revocations = Revocations(from_secrets(service.channel(settings.secrets_address)))
        service.guard = await open_guard(app, bus, anonymous, revocations, source)
        return service

    def channel(self, address: str) -> Any:
        """A channel to another service, closed at the end.

        Which one, its certificate must prove: the one whose `…_address` in the settings this is.
        """
        values = vars(self._settings)
        names = [name for name, value in values.items() if name.endswith("_address") and value == address]
        if not names:
            raise ValueError(f"{address} is the address of no service in the settings")
        return self.app.connect(names[0].removesuffix("_address"), address, self.credentials)


def run(
    name: str,
    settings_type: type[S],
    compose: Callable[[App, S], Awaitable[None]],
    *,
    plaintext: bool = False,
) -> None:
    """Runs a service: reads settings, gets its identity, composes, serves until stopped.

    Exit code 2: settings, 1: failure. `plaintext` is for tests that start a single part as a process.
    """
    keep_memory_private()
    try:
        settings = settings_type.from_environment()
        if isinstance(settings, IdentitySettings) and not plaintext and not settings.vault_url:
            raise SettingsError("STELLWERK_VAULT_URL is not set")
        telemetry.start_log(settings)
        uvloop.run(_live(name, settings, compose, plaintext))
    except SettingsError as error:
        print(f"{name}: {error}. See docs/interfaces.md.", file=sys.stderr)
        sys.exit(2)
    except PlatformError as error:
        log.critical("%s stops: %s %s %s", name, error.reason, error.message, error.cure)
        sys.exit(1)
    finally:
        telemetry.stop()


async def _live(
    name: str, settings: S, compose: Callable[[App, S], Awaitable[None]], plaintext: bool
) -> None:
    identity = None
    if isinstance(settings, IdentitySettings) and not plaintext:
        identity = await Identity.open(name, settings)
        if settings.kept_in_vault():
            settings = settings.completed(await identity.secrets())
    telemetry.start(name, settings, identity)
    app = App(name, identity, settings.health_listen)
    if identity is not None:
        app.background(identity.keep())
    try:
        await compose(app, settings)
    except BaseException:
        await app.leave()
        raise
    await app.wait()
