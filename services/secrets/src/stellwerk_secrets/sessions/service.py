"""SessionService: from a login or an invitation to a key."""

from datetime import UTC, datetime, timedelta
from typing import Any

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.secrets.v1 import sessions_pb2 as pb
from stellwerk_protos.secrets.v1 import sessions_pb2_grpc, users_pb2
from stellwerk_secrets.domain import sha256_of
from stellwerk_secrets.limits import Gate
from stellwerk_secrets.people import domain
from stellwerk_secrets.people.store import People
from stellwerk_secrets.sessions.accounts import Accounts
from stellwerk_secrets.sessions.oidc import IdTokens
from stellwerk_secrets.sessions.store import UsedTokens


class SessionService(sessions_pb2_grpc.SessionServiceServicer):
    """sessions.proto. `tokens` is None where there is no OpenID provider."""

    def __init__(
        self,
        people: People,
        options: pb.LoginOptions,
        tokens: IdTokens | None,
        accounts: Accounts,
        used: UsedTokens,
        session_seconds: float,
    ) -> None:
        self._people = people
        self._options = options
        self._tokens = tokens
        self._accounts = accounts
        self._used = used
        self._session_seconds = session_seconds
        # Strangers may ask for work here, but not for much at a time.
        self._gate = Gate(running=4, waiting=64)

    async def GetLoginOptions(self, request: pb.GetLoginOptionsRequest, context: Any) -> pb.LoginOptions:
        return self._options

    async def ExchangeIdToken(self, request: pb.ExchangeIdTokenRequest, context: Any) -> pb.Session:
        if self._tokens is None:
            raise FailedPrecondition(
                "OIDC_NOT_CONFIGURED",
                "This installation has no OpenID provider.",
                "Use an API key or an invitation: stellwerk login --key, stellwerk login --invitation.",
            )
        display_name = domain.check_display_name(request.display_name)
        async with self._gate():
            account = await self._tokens.verify(request.id_token, request.nonce)
            await self._used.use(sha256_of(request.id_token), account.expire_time)
            user = await self._accounts.person(account)
            issued = domain.new_key()
            expire_time = datetime.now(UTC) + timedelta(seconds=self._session_seconds)
            key = _login_key(user.name, issued.text, display_name, expire_time)
            created = await self._people.add_key(key, issued.digest)
        return pb.Session(user=user, api_key=created, key=issued.text, expire_time=created.expire_time)

    async def AcceptInvitation(self, request: pb.AcceptInvitationRequest, context: Any) -> pb.Session:
        issued = domain.new_key()
        display_name = domain.check_display_name(request.display_name)

        def key(user: str) -> users_pb2.ApiKey:
            return _login_key(user, issued.text, display_name, None)

        async with self._gate():
            user, created = await self._people.accept(sha256_of(request.invitation), key, issued)
        return pb.Session(user=user, api_key=created, key=issued.text)


def _login_key(user: str, key: str, display_name: str, expire_time: datetime | None) -> users_pb2.ApiKey:
    return domain.make_key(
        user,
        "",
        key,
        users_pb2.API_KEY_ORIGIN_LOGIN,
        display_name=display_name or "login",
        expire_time=expire_time,
    )
