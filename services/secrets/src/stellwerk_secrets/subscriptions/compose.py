"""Wires the subscriptions of event subscribers."""

from urllib.parse import urlsplit

import grpc

from stellwerk_platform.app import App
from stellwerk_platform.bus import Bus
from stellwerk_platform.grpc_server import Registration
from stellwerk_platform.mongo import Database
from stellwerk_protos.secrets.v1 import subscriptions_pb2, subscriptions_pb2_grpc
from stellwerk_secrets.config import SecretsSettings
from stellwerk_secrets.people.store import People
from stellwerk_secrets.subscriptions.access import Access
from stellwerk_secrets.subscriptions.callout import Callout
from stellwerk_secrets.subscriptions.connections import Connections
from stellwerk_secrets.subscriptions.consumers import Consumers
from stellwerk_secrets.subscriptions.keeper import Keeper
from stellwerk_secrets.subscriptions.service import SubscriptionService
from stellwerk_secrets.subscriptions.store import Subscriptions
from stellwerk_secrets.subscriptions.tokens import Signer


async def compose(
    app: App,
    settings: SecretsSettings,
    database: Database,
    bus: Bus,
    people: People,
    registry: grpc.aio.Channel,
) -> Registration:
    """Answers NATS and looks after subscribers in the background; without a signing key it does neither."""
    subscriptions = Subscriptions(database)
    await subscriptions.open()

    async def active(user: str) -> bool:
        found = await people.users.find(user)
        return found is not None and not found.disabled

    access = Access(registry, active)
    keeper = None
    if settings.nats_callout_seed:
        consumers = Consumers(bus, subscriptions)
        keeper = Keeper(bus, subscriptions, access, consumers, Connections(bus))
        await keeper.follow()
        callout = Callout(bus, Signer(settings.nats_callout_seed), subscriptions, access)
        for work in (keeper.run(), callout.run(), consumers.tell()):
            app.background(work)
    nats_url = settings.subscriber_nats_url or _without_password(settings.nats_url)
    return Registration(
        SubscriptionService(bus, subscriptions, people, access, keeper, nats_url),
        subscriptions_pb2_grpc.add_SubscriptionServiceServicer_to_server,
        subscriptions_pb2.DESCRIPTOR.services_by_name["SubscriptionService"],
    )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
