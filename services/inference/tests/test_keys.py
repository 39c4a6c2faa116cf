"""The keys of an endpoint: shown once, kept as digests, delivered to the gateways."""

import hashlib
import json
from typing import Any

import pytest

from services.inference.tests.support import Inference, Journal
from services.inference.tests.test_inference import reason_of, routes_of
from stellwerk_protos.inference.v1 import endpoints_pb2 as pb
from stellwerk_protos.inference.v1 import keys_pb2


async def regenerate(
    inference: Inference, endpoint: str, slot: keys_pb2.KeySlot.ValueType = keys_pb2.KEY_SLOT_PRIMARY
) -> Any:
    return await inference.keys.RegenerateKey(keys_pb2.RegenerateKeyRequest(name=endpoint, slot=slot))


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def test_a_key_is_shown_once_and_only_its_digest_is_kept(
    inference: Inference, journal: Journal
) -> None:
    endpoint = (await inference.create_endpoint("keys")).name
    first = await regenerate(inference, endpoint)
    second = await regenerate(inference, endpoint, keys_pb2.KEY_SLOT_SECONDARY)
    assert first.key.startswith("swe_")
    assert first.endpoint.primary_key.ending == first.key[-4:]
    route = await routes_of(inference, endpoint)
    assert list(route.key_digests) == [digest(first.key), digest(second.key)]

    again = await regenerate(inference, endpoint)
    route = await routes_of(inference, endpoint)
    assert list(route.key_digests) == [digest(again.key), digest(second.key)]
    events = [await journal.next("endpoint.key_regenerated") for _ in range(3)]
    assert events[0]["data"]["actor"] == "users/owner"
    for made in (first, second, again):
        assert made.key[4:-4] not in json.dumps(events)
        assert digest(made.key).hex() not in json.dumps(events)


async def test_a_new_endpoint_of_the_same_name_has_no_key_of_the_old_one(inference: Inference) -> None:
    endpoint = (await inference.create_endpoint("reborn")).name
    await regenerate(inference, endpoint)
    await inference.stub.DeleteEndpoint(pb.DeleteEndpointRequest(name=endpoint))
    assert await reason_of(regenerate(inference, endpoint)) == "ENDPOINT_DELETED"
    born = await inference.create_endpoint("reborn")
    assert not born.HasField("primary_key")
    assert not (await routes_of(inference, endpoint)).key_digests


async def test_the_auth_mode_is_delivered(inference: Inference) -> None:
    request = pb.CreateEndpointRequest(
        parent="workspaces/demo", endpoint_id="mode", auth_mode=pb.AUTH_MODE_KEY
    )
    endpoint = await inference.stub.CreateEndpoint(request)
    assert (await routes_of(inference, endpoint.name)).auth_mode == pb.AUTH_MODE_KEY
    change = keys_pb2.SetAuthModeRequest(name=endpoint.name, auth_mode=pb.AUTH_MODE_TOKEN)
    assert (await inference.keys.SetAuthMode(change)).auth_mode == pb.AUTH_MODE_TOKEN
    assert (await routes_of(inference, endpoint.name)).auth_mode == pb.AUTH_MODE_TOKEN


@pytest.mark.parametrize("name", ["unknown", "No Name"])
async def test_keys_of_no_endpoint(inference: Inference, name: str) -> None:
    reason = await reason_of(regenerate(inference, f"workspaces/demo/endpoints/{name}"))
    assert reason in ("ENDPOINT_NOT_FOUND", "INVALID_NAME")
