"""`/login`, `/login/callback`, `/logout`: authorization code with PKCE (RFC 6749, 7636, 9207)."""

import asyncio
import hmac
import html
import time
from urllib.parse import parse_qs

import grpc

from stellwerk_gateway import refusals
from stellwerk_gateway.asgi import Header, Scope, Send, send_error, send_response
from stellwerk_gateway.login import cookies, origin
from stellwerk_gateway.login.provider import Provider
from stellwerk_platform.errors import (
    InvalidArgument,
    PlatformError,
    Unauthenticated,
    Unimplemented,
    as_platform_error,
    from_rpc,
)
from stellwerk_protos.secrets.v1 import (
    sessions_pb2,
    sessions_pb2_grpc,
    tokens_pb2,
    tokens_pb2_grpc,
    users_pb2,
    users_pb2_grpc,
)

PATHS = frozenset({"/login", "/login/callback", "/logout"})
_AT_A_TIME = 8
_HEADERS: list[Header] = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class _MethodNotAllowed(Unimplemented):
    http_status = 405


class LoginDoor:
    """Holds nothing of a login: the browser does, encrypted."""

    def __init__(
        self, secrets: grpc.aio.Channel, seal: cookies.Seal, client_secret: str, public_url: str
    ) -> None:
        self.public_url = public_url
        self._sessions = sessions_pb2_grpc.SessionServiceStub(secrets)
        self._users = users_pb2_grpc.UserServiceStub(secrets)
        self._tokens = tokens_pb2_grpc.TokenServiceStub(secrets)
        self._provider = Provider(self._sessions, client_secret)
        self._seal = seal
        # Anybody may begin a login; what the provider is asked at a time is bounded.
        self._gate = asyncio.Semaphore(_AT_A_TIME)

    async def __call__(self, scope: Scope, send: Send) -> None:
        """Answers one request for one of `PATHS`."""
        try:
            if scope["path"] == "/logout":
                await self._logout(scope, send)
            elif scope["method"] != "GET":
                raise _MethodNotAllowed("METHOD_NOT_ALLOWED", "A login is opened with GET.", "Open /login.")
            elif scope["path"] == "/login":
                await self._begin(scope, send)
            else:
                await self._finish(scope, send)
        except Exception as error:
            known = as_platform_error(error)
            if known is None:
                raise
            refusals.report(f"{scope['method']} {scope['path']}", known, refusals.address_of(scope))
            await _send_failure(scope, send, known)

    async def _begin(self, scope: Scope, send: Send) -> None:
        next_path = _query(scope).get("next", "")
        if next_path and not origin.own_path(next_path):
            raise InvalidArgument("INVALID_NEXT", "A login leads to a path of Stellwerk only.", "Give /path.")
        async with self._gate:
            begun = await self._provider.begin(self._callback(scope))
        remembered = {
            "state": begun.state,
            "nonce": begun.nonce,
            "verifier": begun.verifier,
            "next": next_path,
        }
        await _redirect(send, begun.url, [cookies.login_cookie(scope, self._seal.close(remembered))])

    async def _finish(self, scope: Scope, send: Send) -> None:
        query = _query(scope)
        remembered = self._seal.open(cookies.read_login(scope))
        state = query.get("state", "")
        if remembered is None or not hmac.compare_digest(remembered["state"].encode(), state.encode()):
            raise Unauthenticated(
                "LOGIN_EXPIRED",
                "This login was begun in another browser, or too long ago.",
                "Sign in again: /login.",
            )
        if "code" not in query:
            why = query.get("error", "it has no code")[:100]
            raise Unauthenticated(
                "LOGIN_REFUSED", f"The provider did not sign you in: {why}.", "Sign in again."
            )
        async with self._gate:
            id_token = await self._provider.id_token(
                self._callback(scope), query["code"], remembered["verifier"], query.get("iss", "")
            )
            session = await self._exchange(id_token, remembered["nonce"])
        seconds = max(int(session.expire_time.seconds - time.time()), 0)
        headers = [cookies.login_cookie(scope, ""), cookies.session_cookie(scope, session.key, seconds)]
        if remembered["next"]:
            await _redirect(send, remembered["next"], headers)
        else:
            name = session.user.display_name or session.user.name
            await _send_page(send, 200, f"Signed in as {name}", "You may close this page.", headers)

    async def _logout(self, scope: Scope, send: Send) -> None:
        if scope["method"] not in ("GET", "POST"):
            raise _MethodNotAllowed("METHOD_NOT_ALLOWED", "A session ends with POST.", "Use POST /logout.")
        origin.require_own(scope, self.public_url, typed=True)
        key = cookies.read_session(scope)
        if key:
            await self._revoke(key)
        forget = [cookies.session_cookie(scope, "", 0)]
        await _send_page(send, 200, "Signed out", "The session has ended.", forget)

    async def _exchange(self, id_token: str, nonce: str) -> sessions_pb2.Session:
        request = sessions_pb2.ExchangeIdTokenRequest(id_token=id_token, nonce=nonce, display_name="browser")
        try:
            return await self._sessions.ExchangeIdToken(request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from error

    async def _revoke(self, key: str) -> None:
        """Ends the session's key; one that has ended already is no error."""
        shown = (("authorization", f"Bearer {key}"),)
        try:
            caller = await self._tokens.GetCaller(tokens_pb2.GetCallerRequest(), metadata=shown)
            await self._users.RevokeApiKey(users_pb2.RevokeApiKeyRequest(name=caller.key), metadata=shown)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise from_rpc(error) from error

    def _callback(self, scope: Scope) -> str:
        return f"{origin.own_origin(scope, self.public_url)}/login/callback"


def _query(scope: Scope) -> dict[str, str]:
    try:
        found = parse_qs(scope["query_string"].decode("ascii"), max_num_fields=20)
    except ValueError:
        raise InvalidArgument(
            "INVALID_QUERY", "The address cannot be read.", "Sign in again: /login."
        ) from None
    return {name: values[0] for name, values in found.items()}


async def _redirect(send: Send, target: str, headers: list[Header]) -> None:
    await send_response(send, 303, [(b"location", target.encode()), *_HEADERS, *headers], b"")


async def _send_page(send: Send, status: int, title: str, text: str, headers: list[Header]) -> None:
    title, text = html.escape(title), html.escape(text)
    body = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title} · Stellwerk</title>'
        f"<h1>{title}</h1><p>{text}</p></html>"
    )
    content: Header = (b"content-type", b"text/html; charset=utf-8")
    await send_response(send, status, [content, *_HEADERS, *headers], body.encode())


async def _send_failure(scope: Scope, send: Send, error: PlatformError) -> None:
    """A page for browsers, a document for programs."""
    if "text/html" in cookies.header_of(scope, b"accept"):
        await _send_page(send, error.http_status, error.message, f"{error.cure} ({error.reason})", [])
    else:
        await send_error(send, error, _HEADERS)
