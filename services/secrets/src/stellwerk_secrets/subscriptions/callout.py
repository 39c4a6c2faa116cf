"""Answers the NATS server that asks whether to let a stranger in (docs.nats.io, "Auth Callout")."""

import asyncio
import hmac
import logging
from typing import Any

from nats.aio.msg import Msg
from pymongo.errors import PyMongoError

from stellwerk_platform import activity
from stellwerk_platform.bus import Bus
from stellwerk_platform.errors import PermissionDenied, PlatformError, Unauthenticated
from stellwerk_secrets.subscriptions import domain
from stellwerk_secrets.subscriptions.access import Access
from stellwerk_secrets.subscriptions.store import Subscriptions
from stellwerk_secrets.subscriptions.tokens import Signer, claims_of

log = logging.getLogger(__name__)
_SUBJECT = "$SYS.REQ.USER.AUTH"
_ACTION = "CONNECT nats"
# So many are looked up at a time; who waits longer than the server does has lost nothing but time.
_PARALLEL = 32
_PASSWORD_CHARACTERS = 200


class Callout:
    """Lets subscribers in."""

    def __init__(self, bus: Bus, signer: Signer, subscriptions: Subscriptions, access: Access) -> None:
        self._bus = bus
        self._signer = signer
        self._subscriptions = subscriptions
        self._access = access

    async def run(self) -> None:
        """Answers for ever."""
        questions = await self._bus.client.subscribe(_SUBJECT)
        places = asyncio.Semaphore(_PARALLEL)
        async with asyncio.TaskGroup() as tasks:
            async for message in questions.messages:
                await places.acquire()
                task = tasks.create_task(self._answer(message))
                task.add_done_callback(lambda _: places.release())

    async def _answer(self, message: Msg) -> None:
        try:
            question = claims_of(message.data)["nats"]
            user_key, server = str(question["user_nkey"]), str(question["server_id"]["id"])
            options, client = question.get("connect_opts") or {}, question.get("client_info") or {}
        except (ValueError, KeyError, TypeError) as error:
            log.error("Not a question of a NATS server: %s", error)
            return
        user, password = str(options.get("user") or ""), str(options.get("pass") or "")
        if not domain.is_ours(self._bus.names, user):
            return
        try:
            claims = await self._claims(user, password)
            content = {"jwt": self._signer.sign({**claims, "sub": user_key})}
        except PlatformError as error:
            content = {"error": error.reason}
            self._report(error, user, str(client.get("host") or ""))
        except PyMongoError as error:
            log.warning("A subscriber has to wait for MongoDB: %.200s", error)
            content = {"error": "MONGODB_UNAVAILABLE"}
        answer = {"sub": user_key, "aud": server}
        nats = {"type": "authorization_response", "version": 2, **content}
        await message.respond(self._signer.sign({**answer, "nats": nats}).encode())

    async def _claims(self, user: str, password: str) -> dict[str, Any]:
        """What this user may do; raises `Unauthenticated` and `PermissionDenied`."""
        found = None
        if domain.is_consumer(self._bus.names, user) and len(password) <= _PASSWORD_CHARACTERS:
            found = await self._subscriptions.by_consumer(user)
        if found is None or not hmac.compare_digest(domain.digest_of(password), found[1]):
            raise Unauthenticated(
                "SUBSCRIPTION_INVALID",
                "User or password of the NATS connection is wrong.",
                "Check both, or make new ones: stellwerk events credentials create.",
                {"subscription": found[0].name if found is not None else ""},
            )
        subscription = found[0]
        if not domain.is_living(subscription):
            raise Unauthenticated(
                "SUBSCRIPTION_ENDED",
                f"{subscription.name} has ended.",
                "Make new credentials: stellwerk events credentials create.",
                {"subscription": subscription.name},
            )
        access = await self._access.now(domain.user_of(subscription))
        workspaces = domain.readable(subscription, access)
        if not workspaces:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"{subscription.name} may read none of its workspaces.",
                "Ask an owner of the workspace.",
                {"subscription": subscription.name},
            )
        return domain.user_claims(self._bus.names, subscription, workspaces)

    def _report(self, error: PlatformError, user: str, address: str) -> None:
        if isinstance(error, Unauthenticated | PermissionDenied):
            name = error.metadata.get("subscription", "") or (f"nats/{user}" if user else "")
            activity.denied(_ACTION, error, resource=name, address=address)
        else:
            log.warning("A subscriber has to wait: %s", error)
