"""What may be collected, where a file of it lies, and which hours a question means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform import names
from stellwerk_platform.content import check_files
from stellwerk_platform.errors import InvalidArgument
from stellwerk_platform.journal import Fact
from stellwerk_protos.compute.v1.workloads_pb2 import DataCollection
from stellwerk_protos.inference.v1 import collections_pb2 as pb
from stellwerk_protos.inference.v1.endpoints_pb2 import Endpoint

REPLICA = "workspaces/*/endpoints/*/deployments/*/replicas/*"
MAX_FILES = 1_000
MAX_RETENTION_DAYS = 36_500
_MAX_COLLECTIONS = 10
_MAX_HEADERS = 20
_MAX_PAYLOAD_BYTES = 1_048_576
_COLLECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
_PATH = re.compile(
    r"(?P<endpoint>[^/]+)/(?P<deployment>[^/]+)/(?P<collection>[^/]+)/(?P<hour>\d{4}/\d\d/\d\d/\d\d)"
    r"/[A-Za-z0-9_.-]{1,200}\.jsonl"
)


@dataclass(frozen=True)
class Place:
    """Where a file lies, read from its path."""

    deployment: str
    collection: str
    hour: datetime

    @classmethod
    def of(cls, path: str, replica: str) -> Self:
        """Raises `InvalidArgument` for a path that is not one of the replica's deployment."""
        _, endpoint, deployment, _ = names.parse(REPLICA, replica)
        found = _PATH.fullmatch(path)
        try:
            if found is None or (found["endpoint"], found["deployment"]) != (endpoint, deployment):
                raise ValueError(path)
            if not _COLLECTION.fullmatch(found["collection"]):
                raise ValueError(path)
            hour = datetime.strptime(found["hour"], "%Y/%m/%d/%H").replace(tzinfo=UTC)
        except ValueError:
            raise InvalidArgument(
                "INVALID_PATH",
                f"{path[:200]!r} is no path of collected data of {replica}.",
                "Use {endpoint}/{deployment}/{collection}/{yyyy}/{MM}/{dd}/{HH}/{instance}.jsonl.",
            ) from None
        return cls(deployment, found["collection"], hour)


def check_settings(settings: DataCollection) -> None:
    """Raises `InvalidArgument` for settings of a deployment that cannot be."""
    if not 1 <= len(settings.collections) <= _MAX_COLLECTIONS:
        raise _invalid(
            f"{len(settings.collections)} collections cannot be had.", f"Name 1 to {_MAX_COLLECTIONS}."
        )
    for name in settings.collections:
        check_collection(name)
    if not 0 <= settings.sampling_percent <= 100:  # refuses NaN too
        raise _invalid(f"{settings.sampling_percent} % cannot be sampled.", "Use over 0 and up to 100.")
    if not 0 <= settings.max_payload_bytes <= _MAX_PAYLOAD_BYTES:
        raise _invalid(
            f"Payloads of {settings.max_payload_bytes:,} bytes cannot be kept.",
            f"Use up to {_MAX_PAYLOAD_BYTES:,}, or 0 for the default.",
        )
    _check_headers(settings.captured_headers)


def check_collection(name: str) -> None:
    """Raises `InvalidArgument` for what cannot be the name of a collection."""
    if not _COLLECTION.fullmatch(name):
        raise _invalid(f"{name[:80]!r} cannot be a collection.", "Use letters, digits, '_' and '-'.")


def _check_headers(headers: Sequence[str]) -> None:
    if len(headers) > _MAX_HEADERS:
        raise _invalid(f"{len(headers)} headers are too many.", f"Name up to {_MAX_HEADERS}.")
    for header in headers:
        if not _HEADER.fullmatch(header):
            raise _invalid(f"{header[:80]!r} is no header.", "Write its name in lower case.")
        if header in _SECRET_HEADERS:
            raise _invalid(f"The header {header} carries keys.", "Leave it out.")


def _invalid(message: str, cure: str) -> InvalidArgument:
    return InvalidArgument("INVALID_DATA_COLLECTION", message, cure)


def check_record(request: pb.RecordCollectedFilesRequest) -> list[Place]:
    """The places of the files, in their order; raises `InvalidArgument`."""
    check_files([item.file for item in request.files], maximum=MAX_FILES)
    for item in request.files:
        if item.event_count < 0 or item.dropped_count < 0:
            raise InvalidArgument("INVALID_COUNT", "A count is negative.", "Count events from 0.")
    return [Place.of(item.file.path, request.parent) for item in request.files]


def check_blobs(digests: Sequence[str]) -> None:
    """Raises `InvalidArgument` for more than may be asked for at a time."""
    if len(digests) > MAX_FILES:
        raise InvalidArgument(
            "TOO_MANY_BLOBS", f"{len(digests):,} blobs in one call.", f"Ask for up to {MAX_FILES:,}."
        )


def older(moment: datetime) -> datetime:
    """The last hour, by its beginning, that has ended by then."""
    return moment - timedelta(hours=1)


def check_delete(request: pb.DeleteCollectedDataRequest) -> datetime:
    """The last hour that is to go, by its beginning; raises `InvalidArgument`."""
    if not request.HasField("end_time"):
        raise InvalidArgument(
            "END_TIME_MISSING", "It is not said until when the data may go.", "Name a time; older data goes."
        )
    return older(_time(request.end_time))


def set_retention(endpoint: Endpoint, days: int) -> Fact | None:
    """How long the data of an endpoint is kept; raises `InvalidArgument`."""
    if not 0 <= days <= MAX_RETENTION_DAYS:
        raise InvalidArgument(
            "INVALID_RETENTION",
            f"Data cannot be kept for {days:,} days.",
            f"Use 1 to {MAX_RETENTION_DAYS:,}, or 0 to keep it for ever.",
        )
    if endpoint.data_retention_days == days:
        return None
    endpoint.data_retention_days = days
    kept = f"{days} days" if days else "for ever"
    return Fact("data_retention_changed", "REQUESTED", f"Collected data is kept {kept}.")


def hours(request: pb.ListCollectedFilesRequest) -> tuple[datetime | None, datetime | None]:
    """The first hour that is wanted, and the one before which the last begins; None for no bound."""
    first = last = None
    if request.HasField("start_time"):
        first = older(_time(request.start_time))
    if request.HasField("end_time"):
        last = _time(request.end_time)
    return first, last


def _time(moment: Timestamp) -> datetime:
    """Raises `InvalidArgument` for a time before which or at which there is no hour."""
    try:
        found = moment.ToDatetime(UTC)
        older(found)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            "INVALID_TIME", f"There is no time {moment.seconds:,} s after 1970.", "Use one of the calendar."
        ) from None
    return found
