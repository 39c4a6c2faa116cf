"""What `run` returned, as the frame that answers the request."""

from __future__ import annotations

import json
from typing import Any

from . import frames

# numpy's name of a type -> the protocol's
DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    **{f"{sign.lower()}int{bits}": f"{sign}INT{bits}" for sign in ("U", "") for bits in (8, 16, 32, 64)},
}


class NotSendable(Exception):
    """The result has no form in which it could be sent; the text says why."""


def encode(request_id: int, value: Any, tensors: bool, took: int) -> bytes:
    """The frame; `tensors` tells that an Open Inference client waits for it. Raises `NotSendable`."""
    if tensors:
        raw = _as_tensors(value)
        if raw is not None:
            return frames.encode(frames.TENSORS, request_id, *raw, took)
        meta = json.dumps({"arrays": _describe_arrays(value)}).encode()
        return frames.encode(frames.RESULT, request_id, meta, _json(_TENSOR_ENCODER, value), took)
    if hasattr(value, "status_code") and hasattr(value, "headers"):
        return _response(request_id, value, took)
    # As Azure's server does: nothing is an empty object.
    payload = b"{}" if value is None else _json(_ENCODER, value)
    return frames.encode(frames.RESULT, request_id, b"", payload, took)


def _json(encoder: json.JSONEncoder, value: Any) -> bytes:
    try:
        payload = encoder.encode(value).encode()
    except Exception as error:
        raise NotSendable(f"cannot be sent as JSON: {error}") from error
    if len(payload) > frames.MAX_PAYLOAD_BYTES:
        raise NotSendable("is larger than 4 GiB")
    return payload


def _plain(value: Any) -> Any:
    """What stands for a numpy array or scalar, or whatever looks like one, in JSON."""
    for name in ("tolist", "item"):
        convert = getattr(value, name, None)
        if callable(convert):
            return convert()
    raise TypeError(f"a {type(value).__name__} is not JSON serializable")


_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"))
# NaN is no JSON, but a tensor may hold it and gRPC can carry it: there the front decides.
_TENSOR_ENCODER = json.JSONEncoder(default=_plain, separators=(",", ":"))


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape") and hasattr(value, "tobytes")


def _as_tensors(value: Any) -> tuple[bytes, bytes] | None:
    """Description and raw bytes of a result of arrays only, None for others."""
    items = list(value.items()) if isinstance(value, dict) else [("", value)]
    described, parts = [], []
    for name, array in items:
        if not _is_array(array):
            return None
        datatype = DATATYPES.get(str(array.dtype))
        if datatype is None:
            return None
        raw = array.tobytes()
        described.append([str(name), datatype, [int(size) for size in array.shape], len(raw)])
        parts.append(raw)
    if not items or sum(map(len, parts)) > frames.MAX_PAYLOAD_BYTES:
        return None
    return json.dumps(described).encode(), b"".join(parts)


def _describe_arrays(value: Any) -> dict[str, list[Any]]:
    """Type and shape of the arrays in a result, which JSON cannot tell; "" names the result itself."""
    items = value.items() if isinstance(value, dict) else [("", value)]
    return {
        str(name): [str(item.dtype), [int(size) for size in item.shape]]
        for name, item in items
        if hasattr(item, "dtype") and hasattr(item, "shape")
    }


def _response(request_id: int, response: Any, took: int) -> bytes:
    """An `AMLResponse`, ours or Azure's, or whatever of Flask looks like one."""
    try:
        body = response.get_data()
        body = body.encode() if isinstance(body, str) else bytes(body)
        headers = [(str(name), str(value)) for name, value in response.headers.items()]
        status = int(response.status_code)
    except Exception as error:
        raise NotSendable(f"is no response that can be sent: {error}") from error
    if not 200 <= status <= 599:
        raise NotSendable(f"has the status code {status}, which is none of 200 to 599")
    meta = json.dumps({"status": status, "headers": headers}).encode()
    return frames.encode(frames.RESPONSE, request_id, meta, body, took)
