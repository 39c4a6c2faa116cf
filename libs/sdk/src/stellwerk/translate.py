"""The one place where an error of gRPC, HTTP or the blob store becomes a `StellwerkError`."""

import base64
import binascii
import json

import grpc
import httpx
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stellwerk.errors import StellwerkError

_DOMAIN = "stellwerk"
_DETAILS = "grpc-status-details-bin"
_CODES_BY_HTTP = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def from_rpc(error: grpc.aio.AioRpcError, address: str, trace_id: str) -> StellwerkError:
    """What the service said, or that it did not answer."""
    code, text = error.code().name, error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS and isinstance(value, bytes) and (info := _error_info(value)):
            return _from_info(info, text, code, trace_id)
    if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
        return no_answer(address, text if code == "UNAVAILABLE" else "no answer in time", code, trace_id)
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in text:
        # gRPC itself refuses it, before anything of ours could say a reason.
        return StellwerkError(
            "MESSAGE_TOO_LARGE",
            f"The request has more than 16 MiB ({text}).",
            "Send less at a time; files travel as blobs, not in requests.",
            code=code,
            trace_id=trace_id,
        )
    return StellwerkError(f"UPSTREAM_{code}", text or code, code=code, trace_id=trace_id)


def no_answer(address: str, text: str, code: str = "UNAVAILABLE", trace_id: str = "") -> StellwerkError:
    """Nobody is there."""
    detail = text.rstrip(".").splitlines()[0][:200] if text else ""
    return StellwerkError(
        "SERVER_UNAVAILABLE",
        f"Stellwerk does not answer on {address}{f' ({detail})' if detail else ''}.",
        "Start it with `stellwerk up`, see `stellwerk status`, or give another address with --grpc-address.",
        code=code,
        trace_id=trace_id,
    )


def from_http(response: httpx.Response, what: str, trace_id: str = "") -> StellwerkError:
    """The gateway's error (Connect's JSON with `ErrorInfo`), or what else a response has to say."""
    code = _CODES_BY_HTTP.get(response.status_code, "UNKNOWN")
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        text = response.text.strip()[:500] or response.reason_phrase
        return StellwerkError(f"HTTP_{response.status_code}", f"{what}: {text}", code=code, trace_id=trace_id)
    code = str(body.get("code", code)).upper()
    message = str(body.get("message") or body.get("error") or response.reason_phrase)
    for detail in body.get("details") or ():
        if isinstance(detail, dict) and str(detail.get("type", "")).endswith("google.rpc.ErrorInfo"):
            info = error_details_pb2.ErrorInfo()
            value = str(detail.get("value", ""))
            try:
                info.ParseFromString(base64.b64decode(value + "=" * (-len(value) % 4)))
            except (DecodeError, binascii.Error):
                continue
            return _from_info(info, message, code, trace_id)
    reason, cure = str(body.get("reason") or f"HTTP_{response.status_code}"), str(body.get("cure") or "")
    return StellwerkError(reason, message, cure, code=code, trace_id=str(body.get("trace_id") or trace_id))


def from_blob_store(response: httpx.Response, path: str) -> StellwerkError:
    """Why the blob store refused a file: its S3 error code is in the XML."""
    text = response.text
    if response.status_code == 507 or "no space" in text.lower() or "quota" in text.lower():
        return StellwerkError(
            "BLOB_STORE_FULL",
            f"The blob store has no space for {path}.",
            "Free space on the disk of the blob store, then try again.",
            code="RESOURCE_EXHAUSTED",
        )
    if any(word in text for word in ("BadDigest", "ChecksumMismatch", "InvalidDigest")):
        return StellwerkError(
            "FILE_CHANGED", f"{path} changed while it was being uploaded.", "Try again.", code="ABORTED"
        )
    return StellwerkError(
        "BLOB_STORE_REFUSED",
        f"The blob store refused {path} (HTTP {response.status_code}): {text[:300]}",
        "Try again; see `stellwerk logs versitygw`.",
        code="INTERNAL",
    )


def blob_store_silent(error: Exception, path: str) -> StellwerkError:
    """The blob store does not answer."""
    return StellwerkError(
        "BLOB_STORE_UNAVAILABLE",
        f"The blob store does not answer ({path}): {error or type(error).__name__}.",
        "Try again; see `stellwerk status`.",
        code="UNAVAILABLE",
    )


def _error_info(value: bytes) -> error_details_pb2.ErrorInfo | None:
    try:
        status = status_pb2.Status.FromString(value)
    except DecodeError:
        return None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            return info
    return None


def _from_info(info: error_details_pb2.ErrorInfo, message: str, code: str, trace_id: str) -> StellwerkError:
    metadata = dict(info.metadata)
    return StellwerkError(
        info.reason,
        message,
        metadata.get("cure", ""),
        code=code,
        trace_id=metadata.get("trace_id", trace_id),
    )
