# Generated from ../_async/endpoint_keys.py by scripts/generate_sync.py; do not edit.
"""Keys of endpoints, and what their callers may show."""

from stellwerk import names
from stellwerk._sync.core import Core
from stellwerk.errors import StellwerkError
from stellwerk_protos.inference.v1 import endpoints_pb2, keys_pb2, keys_pb2_grpc

_SLOTS = {"primary": keys_pb2.KEY_SLOT_PRIMARY, "secondary": keys_pb2.KEY_SLOT_SECONDARY}
AUTH_MODES = {
    "key": endpoints_pb2.AUTH_MODE_KEY,
    "token": endpoints_pb2.AUTH_MODE_TOKEN,
    "both": endpoints_pb2.AUTH_MODE_KEY_AND_TOKEN,
}


def auth_mode(word: str) -> endpoints_pb2.AuthMode.ValueType:
    """`key`, `token` or `both`."""
    if word not in AUTH_MODES:
        raise StellwerkError(
            "INVALID_AUTH_MODE", f"There is no auth mode {word!r}.", "Use key, token or both."
        )
    return AUTH_MODES[word]


class EndpointKeys:
    """The primary and the secondary key of each endpoint of a workspace."""

    def __init__(self, core: Core, parent: str) -> None:
        self._core, self._parent = core, parent
        self._stub = keys_pb2_grpc.EndpointKeyServiceStub(core.channel)

    def regenerate(self, endpoint: str, key: str) -> keys_pb2.RegenerateKeyResponse:
        """Makes the `primary` or `secondary` key anew; the answer alone has it. The other one goes on."""
        if key not in _SLOTS:
            raise StellwerkError("INVALID_KEY_SLOT", f"There is no key {key!r}.", "Use primary or secondary.")
        request = keys_pb2.RegenerateKeyRequest(name=self._name(endpoint), slot=_SLOTS[key])
        return self._core.call(self._stub.RegenerateKey, request)

    def set_auth_mode(self, endpoint: str, mode: str) -> endpoints_pb2.Endpoint:
        """What callers may show: `key`, `token` (also API keys of people) or `both`."""
        request = keys_pb2.SetAuthModeRequest(name=self._name(endpoint), auth_mode=auth_mode(mode))
        return self._core.call(self._stub.SetAuthMode, request)

    def _name(self, endpoint: str) -> str:
        return names.resource(self._parent, "endpoints", endpoint)
