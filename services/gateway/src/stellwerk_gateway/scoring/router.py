"""What the requests of all endpoints share: routes, access, limits, traces, copies."""

import re
from dataclasses import dataclass

from stellwerk_gateway.scoring import access as names
from stellwerk_gateway.scoring.access import Access
from stellwerk_gateway.scoring.counters import Counters
from stellwerk_gateway.scoring.deployment import Deployment
from stellwerk_gateway.scoring.mirror import Mirrors
from stellwerk_gateway.scoring.routes import Endpoint, RouteTable
from stellwerk_gateway.scoring.tracing import Tracer
from stellwerk_platform.errors import InvalidArgument

PREFIX = "/endpoints/"
_PATH = re.compile(rb"/endpoints/([^/?]+)/([^/?]+)(?:/+((?:(?:score|swagger\.json|v2)(?:/[^?]*)?)?))?(\?.*)?")
_MAX_TARGETS = 2_000


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    max_body_bytes: int = 100_000_000
    # A body up to this size is held until it is whole: it can then be sent again, and copied.
    held_body_bytes: int = 1 << 18
    # Bodies that are held at a time, all together.
    held_bytes: int = 1 << 28
    # How long a request waits for a replica when none is fit.
    park_seconds: float = 30.0
    # A body must come at 1 KiB/s, looked at so often.
    body_check_seconds: float = 10.0


@dataclass(frozen=True)
class Target:
    """What a URL means: the endpoint, the replica's path and query, and the path for names of spans.

    The endpoint is empty where the URL has ids that no endpoint can have.
    """

    endpoint: str
    onward: bytes
    label: str


class Router:
    """One for each gateway process."""

    def __init__(self, table: RouteTable, access: Access, limits: Limits, tracer: Tracer) -> None:
        self.table = table
        self.access = access
        self.limits = limits
        self.tracer = tracer
        self.mirrors = Mirrors()
        # Requests for endpoints that do not exist.
        self.strays = Counters()
        self.held_bytes = 0
        self._targets: dict[bytes, Target | None] = {}

    def target(self, url: bytes) -> Target | None:
        """What a URL means; None for one that means nothing. URLs repeat, so they are remembered."""
        try:
            return self._targets[url]
        except KeyError:
            target = _parse(url)
        if len(self._targets) >= _MAX_TARGETS:
            self._targets.clear()
        self._targets[url] = target
        return target

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name, if it is known."""
        return self.table.endpoints.get(name)

    def counters(self, name: str) -> Counters:
        """Where a request is counted that no deployment got."""
        endpoint = self.table.endpoints.get(name)
        return endpoint.refused if endpoint is not None else self.strays

    async def prepare(
        self, endpoint: str, authorization: str, wanted: str, sticky: bytes
    ) -> tuple[str, Deployment]:
        """What to show the scorers, and the deployment that answers; raises `PlatformError`.

        The long way, for callers and endpoints that are not known yet.
        """
        await self.access.check(authorization, endpoint)
        deployment = await self.table.wait(endpoint, wanted, sticky)
        return await self.access.admit(authorization, endpoint), deployment


def _parse(url: bytes) -> Target | None:
    match = _PATH.fullmatch(url)
    if match is None:
        return None
    try:
        endpoint = names.endpoint_name(match[1].decode("latin-1"), match[2].decode("latin-1"))
    except InvalidArgument:
        endpoint = ""
    rest = match[3] or b""
    label = rest.split(b"/", 1)[0].decode()
    return Target(endpoint, b"/" + rest + (match[4] or b""), f"/endpoints/{{endpoint}}/{label}")
