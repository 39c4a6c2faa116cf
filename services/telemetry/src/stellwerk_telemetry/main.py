"""Composition root of `telemetry`."""

import asyncio
from datetime import timedelta

from stellwerk_platform import telemetry
from stellwerk_platform.app import App, Service, run
from stellwerk_platform.documents import Document
from stellwerk_platform.grpc_server import Registration
from stellwerk_protos.telemetry.v1 import (
    activity_pb2,
    activity_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
)
from stellwerk_telemetry import projection
from stellwerk_telemetry.activities.domain import expiring, from_journal, from_report
from stellwerk_telemetry.activities.service import ActivityService
from stellwerk_telemetry.activities.store import Activities
from stellwerk_telemetry.config import TelemetrySettings
from stellwerk_telemetry.dead_letters.store import DeadLetters
from stellwerk_telemetry.events.domain import to_document
from stellwerk_telemetry.events.store import Events
from stellwerk_telemetry.events.watch import Journal
from stellwerk_telemetry.projection import Source
from stellwerk_telemetry.service import TelemetryService
from stellwerk_telemetry.traces import otlp
from stellwerk_telemetry.traces.buffer import SpanBuffer
from stellwerk_telemetry.traces.store import Spans
from stellwerk_telemetry.workspace_data import workspace_data
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
    journal = Source("JOURNAL", "telemetry-index", "journal", to_document)
    app.background(projection.run(service.bus, journal, events.insert))
    activities = await keep_activities(service, settings)
    workspaces = Workspaces(events, service.channel(settings.registry_address))
    dead_letters = DeadLetters(service.bus)
    data = workspace_data(service.database, service.bus, workspaces, dead_letters).registration()
    registration = Registration(
        TelemetryService(spans, events, Journal(service.bus), dead_letters, workspaces, service.guard),
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server,
        telemetry_pb2.DESCRIPTOR.services_by_name["TelemetryService"],
    )
    sink = otlp.TraceSink(buffer, timedelta(days=settings.trace_days))
    registrations = [registration, activities, data, *otlp.registrations(sink)]
    await app.serve(settings.listen, service.guard, registrations)
    # Its own last spans must leave while it still takes spans.
    app.defer(lambda: asyncio.to_thread(telemetry.stop))


async def keep_activities(service: Service, settings: TelemetrySettings) -> Registration:
    """The activity log, from the journal and from the reports of what was refused."""
    activities = Activities(service.database)

    def read_report(sequence: int, body: bytes) -> Document:
        return expiring(from_report(sequence, body), settings.activity_days)

    sources = (
        Source("JOURNAL", "telemetry-activity", "journal", from_journal),
        Source("ACTIVITY", "telemetry-reports", "activity", read_report),
    )
    filled = await activities.open()
    for source in sources:
        if not filled:
            await projection.rewind(service.bus, source)
        service.app.background(projection.run(service.bus, source, activities.insert))
    return Registration(
        ActivityService(activities),
        activity_pb2_grpc.add_ActivityServiceServicer_to_server,
        activity_pb2.DESCRIPTOR.services_by_name["ActivityService"],
    )


if __name__ == "__main__":
    run("telemetry", TelemetrySettings, compose)
