"""Composition root of `telemetry`."""

import asyncio
from datetime import timedelta

from stellwerk_platform import telemetry
from stellwerk_platform.app import App, Service, run
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.telemetry.v1 import telemetry_pb2, telemetry_pb2_grpc
from stellwerk_telemetry.config import TelemetrySettings
from stellwerk_telemetry.dead_letters.store import DeadLetters
from stellwerk_telemetry.events import index
from stellwerk_telemetry.events.store import Events
from stellwerk_telemetry.events.watch import Journal
from stellwerk_telemetry.service import TelemetryService
from stellwerk_telemetry.traces import otlp
from stellwerk_telemetry.traces.buffer import SpanBuffer
from stellwerk_telemetry.traces.store import Spans
from stellwerk_telemetry.workspaces import Workspaces


async def compose(app: App, settings: TelemetrySettings) -> None:
    """Wires the parts."""
    service = await Service.open(app, settings)
    spans, events = Spans(service.database), Events(service.database)
    await spans.open()
    await events.open()
    buffer = SpanBuffer(spans)
    app.defer(buffer.flush)
    app.background(buffer.run())
    app.background(index.run(service.bus, events))
    workspaces = Workspaces(events, service.channel(settings.registry_address))
    registration = Registration(
        TelemetryService(spans, events, Journal(service.bus), DeadLetters(service.bus), workspaces),
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server,
        telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"],
    )
    sink = otlp.TraceSink(buffer, timedelta(days=settings.trace_days))
    await app.serve(settings.listen, service.verify, [registration, *otlp.registrations(sink)])
    # Its own last spans must leave while it still takes spans.
    app.defer(lambda: asyncio.to_thread(telemetry.stop))


if __name__ == "__main__":
    run("telemetry", TelemetrySettings, compose)
