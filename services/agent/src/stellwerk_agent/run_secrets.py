"""The values of the secrets that a run may read: known before anything that it prints leaves the node."""

import asyncio
import logging
from collections.abc import Sequence

from stellwerk_agent.calls import LONGEST_DELAY_SECONDS, call
from stellwerk_agent.credentials import showing
from stellwerk_agent.redaction import Redactor
from stellwerk_platform.errors import FailedPrecondition, NotFound, PermissionDenied, PlatformError
from stellwerk_protos.secrets.v1 import secrets_pb2, secrets_pb2_grpc

log = logging.getLogger(__name__)


class RunSecrets:
    """Learns the values with the run's own token and keeps them in memory only."""

    def __init__(self, stub: "secrets_pb2_grpc.SecretServiceAsyncStub", secrets: Sequence[str]) -> None:
        self.redactor = Redactor()
        self._stub = stub
        self._secrets = secrets
        self._known = asyncio.Event()
        if not secrets:
            self._known.set()

    async def known(self) -> None:
        """Returns when every value is known."""
        await self._known.wait()

    async def learn(self, token: str) -> None:
        """Asks for what this token may read; waits while `secrets` is away."""
        with showing(token):
            for name in self._secrets:
                await self._learn(name)
        self._known.set()

    async def _learn(self, name: str) -> None:
        while True:
            try:
                found = await call(self._stub.AccessSecret, secrets_pb2.AccessSecretRequest(name=name))
            except (NotFound, PermissionDenied, FailedPrecondition) as error:
                # Nor can the run read it.
                log.warning("%s: %s", name, error)
                return
            except PlatformError as error:
                # Nothing is shown before it is known what to hide.
                log.error("%s: %s; trying again", name, error)
                await asyncio.sleep(LONGEST_DELAY_SECONDS)
            else:
                self.redactor.add([found.value])
                return
