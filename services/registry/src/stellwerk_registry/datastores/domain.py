"""Rules of datastores."""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from stellwerk_platform import names
from stellwerk_platform.checks import check_description
from stellwerk_platform.content import check_path
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.registry.v1.datastores_pb2 import CreateDatastoreRequest, Datastore

PATTERN = "workspaces/*/datastores/*"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX_LENGTH = 200
_URL_LENGTH = 1_000
# Where AWS answers over IPv6, Alibaba Cloud, Oracle Cloud: not link-local ones.
_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200", "192.0.0.192"})
_OWN = ("bucket", "access_key_secret", "secret_key_secret")


def new(request: CreateDatastoreRequest, creator: str) -> Datastore:
    """The datastore that a request describes; raises `InvalidArgument`."""
    (workspace,) = names.parse("workspaces/*", request.parent)
    names.check_id("datastores", request.datastore_id)
    check_description(request.description)
    prefix = request.prefix.strip("/")
    if prefix:
        check_path(prefix)
    if len(prefix) > _PREFIX_LENGTH:
        raise _invalid(f"The prefix has {len(prefix)} characters.", f"Use up to {_PREFIX_LENGTH}.")
    datastore = Datastore(
        name=f"{request.parent}/datastores/{request.datastore_id}",
        creator=creator,
        prefix=prefix,
        description=request.description,
    )
    if request.endpoint:
        _add_own_store(datastore, request, workspace)
    else:
        if any(getattr(request, field) for field in _OWN):
            raise _invalid(
                "A bucket or keys are given, but no endpoint.",
                "Give the URL of your S3 endpoint, or leave bucket and keys out.",
            )
        # On the platform's own store nobody leaves the prefix of the workspace.
        datastore.prefix = f"{workspace}/{prefix or request.datastore_id}"
    return datastore


def _add_own_store(datastore: Datastore, request: CreateDatastoreRequest, workspace: str) -> None:
    _check_endpoint(request.endpoint)
    if not _BUCKET.fullmatch(request.bucket):
        raise _invalid(f"{request.bucket[:80]!r} is no name of a bucket.", "Give an existing bucket.")
    for secret in (request.access_key_secret, request.secret_key_secret):
        (of, _) = names.parse("workspaces/*/secrets/*", secret)
        if of != workspace:
            raise _invalid(f"{secret} lies in another workspace.", "Name secrets of the workspace itself.")
    datastore.endpoint = request.endpoint.rstrip("/")
    datastore.bucket = request.bucket
    datastore.access_key_secret = request.access_key_secret
    datastore.secret_key_secret = request.secret_key_secret
    # Workspaces that share a bucket stay apart.
    datastore.prefix = datastore.prefix or workspace


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        raise _invalid(f"{endpoint[:200]!r} is no URL.", "Give a URL like https://s3.example.com.") from None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not port_is_right
        or not plain
        or len(endpoint) > _URL_LENGTH
    ):
        raise _invalid(
            f"{endpoint[:200]!r} is no URL of an S3 endpoint.",
            "Give scheme, host and port only, as in https://s3.example.com; keys belong into secrets.",
        )
    check_address(parts.hostname)


def check_address(host: str) -> None:
    """Raises `InvalidArgument` for an address at which clouds answer with the credentials of the machine."""
    try:
        # Also of one that is written as a single number, in octal or in hexadecimal digits.
        address = ipaddress.ip_address(host if ":" in host else socket.inet_aton(host))
    except (OSError, ValueError):
        return
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_link_local or str(address) in _METADATA:
        raise _invalid(f"{host} is a link-local address.", "Give the address of an S3 server.")


def without_place(datastore: Datastore) -> Datastore:
    """What a Reader sees of it: no endpoint, bucket, prefix and secrets."""
    shown = Datastore()
    shown.CopyFrom(datastore)
    for field in ("endpoint", "prefix", *_OWN):
        shown.ClearField(field)  # type: ignore[arg-type]  # names of fields
    return shown


def _invalid(message: str, cure: str) -> InvalidArgument:
    return InvalidArgument("INVALID_DATASTORE", message, cure)
