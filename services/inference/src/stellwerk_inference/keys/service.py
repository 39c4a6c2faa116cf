"""EndpointKeyService: parse, change, reply."""

from typing import Any

from stellwerk_inference.endpoints.domain import PATTERN
from stellwerk_inference.keys import domain
from stellwerk_inference.store import Store
from stellwerk_platform import names
from stellwerk_platform.documents import now
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import keys_pb2, keys_pb2_grpc


class EndpointKeyService(keys_pb2_grpc.EndpointKeyServiceServicer):
    """The servicer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def RegenerateKey(
        self, request: keys_pb2.RegenerateKeyRequest, context: Any
    ) -> keys_pb2.RegenerateKeyResponse:
        names.parse(PATTERN, request.name)
        which, key = domain.word(request.slot), domain.generate()
        endpoint = await self._store.set_key(
            request.name,
            which,
            domain.digest(key),
            lambda endpoint: domain.regenerate(endpoint, which, key, now()),
        )
        return keys_pb2.RegenerateKeyResponse(key=key, endpoint=endpoint)

    async def SetAuthMode(self, request: keys_pb2.SetAuthModeRequest, context: Any) -> pb.Endpoint:
        names.parse(PATTERN, request.name)
        return await self._store.change(
            request.name,
            lambda tx: self._store.endpoints.update_in(
                tx, request.name, lambda endpoint: domain.set_auth_mode(endpoint, request.auth_mode)
            ),
        )
