"""The gRPC face of subscriptions."""

from datetime import UTC
from typing import Any

from stellwerk_platform import names, positions
from stellwerk_platform.auth import current_caller
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import FailedPrecondition, PermissionDenied
from stellwerk_protos.secrets.v1 import subscriptions_pb2 as pb
from stellwerk_protos.secrets.v1 import subscriptions_pb2_grpc
from stellwerk_secrets.people.access import require_self, require_self_or_administrator, resolve
from stellwerk_secrets.people.store import People
from stellwerk_secrets.subscriptions import domain
from stellwerk_secrets.subscriptions.access import Access
from stellwerk_secrets.subscriptions.keeper import Keeper
from stellwerk_secrets.subscriptions.store import Subscriptions


class SubscriptionService(subscriptions_pb2_grpc.SubscriptionServiceServicer):
    """subscriptions.proto. Without a keeper this installation's NATS asks nobody whom to let in."""

    def __init__(
        self,
        bus: Bus,
        subscriptions: Subscriptions,
        people: People,
        access: Access,
        keeper: Keeper | None,
        nats_url: str,
    ) -> None:
        self._bus = bus
        self._subscriptions = subscriptions
        self._people = people
        self._access = access
        self._keeper = keeper
        self._nats_url = nats_url

    async def CreateSubscription(
        self, request: pb.CreateSubscriptionRequest, context: Any
    ) -> pb.CreateSubscriptionResponse:
        user = resolve(request.parent)
        require_self(user)
        if self._keeper is None:
            raise FailedPrecondition(
                "SUBSCRIBERS_NOT_SET_UP",
                "The NATS of this installation lets no subscribers in.",
                "Set it up as docs/events.md says, section 'A NATS of your own'.",
            )
        subscription = domain.make(user, request, domain.new_consumer(self._bus.names))
        await self._check_access(user, subscription)
        start, password = await self._start(request), domain.new_password()
        created = await self._subscriptions.create(subscription, password.digest, start)
        await self._keeper.make(created)
        return pb.CreateSubscriptionResponse(
            subscription=created,
            nats_url=self._nats_url,
            nats_user=created.consumer,
            nats_password=password.text,
            stream=self._bus.names.stream("JOURNAL"),
            subjects=domain.filters(self._bus.names, created.workspaces),
        )

    async def _check_access(self, user: str, subscription: pb.Subscription) -> None:
        """Raises `PermissionDenied`, the same for a workspace that there is not."""
        missing = set(subscription.workspaces) - await self._access.now(user)
        if missing:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"{current_caller().subject} may not read {', '.join(sorted(missing))[:500]}.",
                "Name workspaces of yours only, or ask an owner of the workspace.",
            )

    async def _start(self, request: pb.CreateSubscriptionRequest) -> int:
        if request.start_sequence:
            return int(request.start_sequence)
        if request.HasField("start_time"):
            domain.seconds(request.start_time)
            return await positions.sequence_since(self._bus, "JOURNAL", request.start_time.ToDatetime(UTC))
        return await positions.next_sequence(self._bus, "JOURNAL")

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Any
    ) -> pb.ListSubscriptionsResponse:
        user = resolve(request.parent)
        await require_self_or_administrator(self._people, user)
        found, token = await self._subscriptions.page(user, request.page_size, request.page_token)
        return pb.ListSubscriptionsResponse(subscriptions=found, next_page_token=token)

    async def RevokeSubscription(
        self, request: pb.RevokeSubscriptionRequest, context: Any
    ) -> pb.Subscription:
        user_id, subscription_id = names.parse("users/*/subscriptions/*", request.name)
        user = resolve(f"users/{user_id}")
        await require_self_or_administrator(self._people, user)
        revoked = await self._subscriptions.revoke(f"{user}/subscriptions/{subscription_id}")
        if self._keeper is not None:
            self._keeper.wake()
        return revoked
