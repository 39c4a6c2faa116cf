"""What the front keeps of requests and answers; rendered and written by another thread."""

import json
from typing import Any

from stellwerk_scorer.worker import collecting

REQUEST, RESPONSE = "request", "response"
_DEFAULT_TYPE = "application/octet-stream"


class Collection:
    """The collections `request` and `response` of a replica."""

    def __init__(self, settings: collecting.Settings) -> None:
        self._settings = settings
        self._requests = settings.wants(REQUEST)
        self._responses = settings.wants(RESPONSE)
        self._headers = [name.encode("latin-1") for name in settings.headers]
        self._writer = collecting.Writer(settings) if self._requests or self._responses else None

    @property
    def is_on(self) -> bool:
        """Whether anything is kept here."""
        return self._writer is not None

    def samples(self, request_id: str) -> bool:
        """Whether anything of this request is kept here."""
        return self._writer is not None and self._settings.samples(request_id)

    def request(self, request_id: str, subject: str, headers: dict[bytes, bytes], body: bytes) -> None:
        """Keeps a request."""
        if self._writer is None or not self._requests:
            return
        more: dict[str, Any] = {"subject": subject}
        captured = {
            name.decode(): headers[name].decode("latin-1") for name in self._headers if name in headers
        }
        if captured:
            # Attributes of CloudEvents hold no objects.
            more["capturedheaders"] = json.dumps(captured)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        self._put(REQUEST, request_id, content_type, body, more)

    def response(self, request_id: str, status: int, head: bytes, body: bytes) -> None:
        """Keeps an answer; `head` are its header lines."""
        if self._responses:
            self._put(RESPONSE, request_id, _content_type(head), body, {"statuscode": status})

    def _put(
        self, collection: str, request_id: str, content_type: str, body: bytes, more: dict[str, Any]
    ) -> None:
        if self._writer is not None:
            event = collecting.Event(
                type=collection,
                request_id=request_id,
                correlation_id=request_id,
                content_type=content_type or _guess(body),
                body=body,
                more=more,
            )
            self._writer.put(collection, event)

    def close(self) -> None:
        """Writes what waits. Blocks for a moment."""
        if self._writer is not None:
            self._writer.close()


def _content_type(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-type":
            return value.strip().decode("latin-1")
    return ""


def _guess(body: bytes) -> str:
    return "application/json" if body[:1] in (b"{", b"[") else _DEFAULT_TYPE
