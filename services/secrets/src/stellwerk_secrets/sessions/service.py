"""SessionService: from a login or an invitation to a key."""

from typing import Any

from stellwerk_platform.errors import FailedPrecondition
from stellwerk_protos.secrets.v1 import sessions_pb2 as pb
from stellwerk_protos.secrets.v1 import sessions_pb2_grpc, users_pb2
from stellwerk_secrets.domain import sha256_of
from stellwerk_secrets.people import domain
from stellwerk_secrets.people.store import People


class SessionService(sessions_pb2_grpc.SessionServiceServicer):
    """sessions.proto."""

    def __init__(self, people: People) -> None:
        self._people = people

    async def GetLoginOptions(self, request: pb.GetLoginOptionsRequest, context: Any) -> pb.LoginOptions:
        return pb.LoginOptions()

    async def ExchangeIdToken(self, request: pb.ExchangeIdTokenRequest, context: Any) -> pb.Session:
        raise FailedPrecondition(
            "OIDC_NOT_CONFIGURED",
            "This installation has no OpenID provider.",
            "Use an API key or an invitation: stellwerk login --key, stellwerk login --invitation.",
        )

    async def AcceptInvitation(self, request: pb.AcceptInvitationRequest, context: Any) -> pb.Session:
        issued = domain.new_key()
        display_name = domain.check_display_name(request.display_name)

        def key(user: str) -> users_pb2.ApiKey:
            return domain.make_key(
                user, "", issued.text, users_pb2.API_KEY_ORIGIN_LOGIN, display_name=display_name
            )

        user, created = await self._people.accept(sha256_of(request.invitation), key, issued)
        return pb.Session(user=user, api_key=created, key=issued.text)
