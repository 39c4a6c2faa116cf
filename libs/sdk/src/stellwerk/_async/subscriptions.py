"""Credentials of event subscribers."""

from collections.abc import Sequence
from datetime import UTC, datetime

from stellwerk import names
from stellwerk._async.core import AsyncCore
from stellwerk_protos.secrets.v1 import subscriptions_pb2, subscriptions_pb2_grpc

_ME = "users/me"


class AsyncSubscriptions:
    """NATS credentials with which your programs read the journal."""

    def __init__(self, core: AsyncCore) -> None:
        self._core = core
        self._stub = subscriptions_pb2_grpc.SubscriptionServiceStub(core.channel)

    async def create(
        self,
        workspaces: Sequence[str],
        *,
        name: str = "",
        display_name: str = "",
        since: int | datetime = 0,
        expires: datetime | None = None,
    ) -> subscriptions_pb2.CreateSubscriptionResponse:
        """New credentials for the journal of these workspaces, from a sequence or a time on (0: from now on).

        The password is in this answer and nowhere else.
        """
        request = subscriptions_pb2.CreateSubscriptionRequest(
            parent=_ME,
            subscription_id=name,
            display_name=display_name,
            workspaces=[names.workspace(workspace) for workspace in workspaces],
        )
        if isinstance(since, int):
            request.start_sequence = since
        else:
            request.start_time.FromDatetime(since.astimezone(UTC))
        if expires is not None:
            request.expire_time.FromDatetime(expires.astimezone(UTC))
        return await self._core.call(self._stub.CreateSubscription, request)

    async def list(self, user: str = "") -> Sequence[subscriptions_pb2.Subscription]:
        """Yours, newest first, or as an administrator those of another person."""
        request = subscriptions_pb2.ListSubscriptionsRequest(parent=_user(user))
        pages = await self._core.pages(self._stub.ListSubscriptions, request)
        return [subscription for page in pages for subscription in page.subscriptions]

    async def revoke(self, name: str, user: str = "") -> subscriptions_pb2.Subscription:
        """Ends credentials and the connections that use them, within a second."""
        full = name if name.startswith("users/") else f"{_user(user)}/subscriptions/{name}"
        request = subscriptions_pb2.RevokeSubscriptionRequest(name=full)
        return await self._core.call(self._stub.RevokeSubscription, request)


def _user(name: str) -> str:
    return f"users/{name.removeprefix('users/')}" if name else _ME
