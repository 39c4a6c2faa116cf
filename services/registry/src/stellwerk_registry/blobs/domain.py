"""The document of a blob, as all spell it who write to it.

`_id` is `<workspace>/<sha256>`, `seen_time` when it was last found
present or an upload of it was given out, `present` whether it was found present since,
`offer_time` when an upload was given out that nobody has found yet, `size` in bytes (until
it is present: what the client says), `datastore` the id of the datastore where it lies.
A small blob may lie in another one, a pack: `pack` is the `_id` of that and `offset` where
in it (`packs/store.py`); a pack has `pack_bytes`, and counts no bytes of its own.
A blob that travels in parts has `upload` until the whole was checked (`uploads/store.py`), unless it comes
in one piece before: then whoever finds it there ends the upload. Not once the upload is `claimed`; wholes
that were wrong and are deleted are counted in `discards`.
A blob that is being removed has `removing_time`; nobody may count on it then.
"""

from collections.abc import Mapping
from typing import Any

from stellwerk_platform.errors import Unavailable
from stellwerk_registry.workspaces.domain import DEFAULT_DATASTORE


def id_of(workspace: str, digest: str) -> str:
    """`_id` of a blob."""
    return f"{workspace}/{digest}"


def digest_of(key: str) -> str:
    """The digest in an `_id`."""
    return key.rpartition("/")[2]


def datastore_of(document: Mapping[str, Any]) -> str:
    """The id of the datastore where a blob lies, or will."""
    return str(document.get("datastore", DEFAULT_DATASTORE))


def all_of(workspace: str) -> dict[str, str]:
    """What the `_id`s of a workspace's blobs are like."""
    return {"$gt": f"{workspace}/", "$lt": f"{workspace}0"}


def is_pack(document: Mapping[str, Any]) -> bool:
    """Whether a blob is nothing but a pack."""
    return "pack_bytes" in document


def is_claimed(document: Mapping[str, Any]) -> bool:
    """Whether what the object store has may be a whole of parts that nobody has checked."""
    return bool(document.get("upload", {}).get("claimed"))


def being_removed(count: int) -> Unavailable:
    """The error for whoever meets marks of removal."""
    return Unavailable(
        "BLOB_BEING_REMOVED", f"{count:,} of the blobs are being removed at this moment.", "Try again."
    )
