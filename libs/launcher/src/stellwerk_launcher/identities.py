"""The secrets of a stack: made where they are missing, kept in Vault, known here only while it is up.

KV `secret/stellwerk/services/<service>` has what that service needs to reach its servers; KV
`secret/stellwerk/launcher` has the administrators' passwords, which only the launcher reads.
"""

import os
from collections.abc import Callable
from functools import partial
from secrets import token_hex
from urllib.parse import urlsplit

import nkeys

from stellwerk_launcher.context import Context
from stellwerk_launcher.credentials import (
    LAUNCHER,
    SERVICES,
    WITH_BLOBS,
    WITH_STORE,
    new_api_key,
    new_password,
)
from stellwerk_launcher.policies import AGENT, BLOB_STORE, IDENTITIES
from stellwerk_launcher.vault import Operator

Values = dict[str, str]
# What is made anew: all secrets of a document but the seed of the callout, which the server keeps.
_ROTATED = ("nats_seed", "mongodb_uri", "s3_access_key", "s3_secret_key")
USER, ACCOUNT = nkeys.PREFIX_BYTE_USER, nkeys.PREFIX_BYTE_ACCOUNT


def prepare(context: Context) -> None:
    """Brings identities and secrets at Vault up to date and fills `context.secrets`.

    Raises `LauncherError` when Vault refuses the launcher.
    """
    operator = context.operator()
    operator.log_in()
    try:
        for name in IDENTITIES:
            operator.put_identity(name)
        context.secrets.launcher = _kept(operator, LAUNCHER, _own)
        for name in SERVICES:
            context.secrets.services[name] = _kept(
                operator, f"services/{name}", partial(_document, context, name)
            )
        for name in WITH_BLOBS if "versitygw" not in context.external else ():
            document = context.secrets.services[name]
            operator.put_blob_account(document["s3_access_key"], document["s3_secret_key"])
        own_vault = "openbao" not in context.external
        for name in (*SERVICES, AGENT, BLOB_STORE):
            context.secrets.secret_ids[name] = operator.new_secret_id(name, only=own_vault)
        operator.issue(context.certificate_seconds).write(context.certificate_file)
    finally:
        operator.close()


def renew(context: Context, name: str) -> None:
    """Replaces the secrets of one service, and its secret id; raises what Vault raises."""
    operator = context.operator()
    operator.log_in()
    try:
        if name in SERVICES:
            found = operator.read(f"services/{name}")
            rest = {key: value for key, value in found.items() if key not in _ROTATED}
            document = context.secrets.services[name] = _document(context, name, rest)
            operator.write(f"services/{name}", document)
            if "s3_access_key" in document and "versitygw" not in context.external:
                operator.put_blob_account(document["s3_access_key"], document["s3_secret_key"])
                operator.drop_blob_account(found["s3_access_key"])
        own_vault = "openbao" not in context.external
        context.secrets.secret_ids[name] = operator.new_secret_id(name, only=own_vault)
    finally:
        operator.close()


def renew_certificate(context: Context) -> None:
    """Issues the launcher's certificate anew; raises what Vault raises."""
    operator = context.operator()
    operator.log_in()
    try:
        operator.issue(context.certificate_seconds).write(context.certificate_file)
    finally:
        operator.close()


def new_seed(kind: int = USER) -> str:
    """The secret half of a fresh NATS key."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), kind)
    return seed.decode()


def public_key(seed: str) -> str:
    """The half of a NATS key that the server knows."""
    public: bytes = nkeys.from_seed(bytearray(seed.encode())).public_key
    return public.decode()


def password_in(uri: str) -> str:
    """The password that a URI carries, empty without one."""
    return urlsplit(uri).password or ""


def _kept(operator: Operator, path: str, complete: Callable[[Values], Values]) -> Values:
    """Reads values, completes them, and writes them back where that changed anything."""
    found = operator.read(path)
    wanted = complete(found)
    if wanted != found:
        operator.write(path, wanted)
    return wanted


_OWN: dict[str, Callable[[], str]] = {
    "mongodb_password": new_password,
    "s3_access_key": new_password,
    "s3_secret_key": new_password,
    "otlp_key": new_api_key,
    "nats_system_seed": new_seed,
}


def _own(found: Values) -> Values:
    return found | {name: make() for name, make in _OWN.items() if name not in found}


def _document(context: Context, service: str, found: Values) -> Values:
    """What a service needs to reach the servers of this stack; for the user's own it gets variables."""
    document = dict(found)
    if "nats" not in context.external:
        document["nats_url"] = f"nats://{context.address('nats')}"
        document["nats_seed"] = found.get("nats_seed") or new_seed()
        if service == "secrets":
            document["nats_callout_seed"] = found.get("nats_callout_seed") or new_seed(ACCOUNT)
    if service in WITH_STORE and "mongod" not in context.external:
        password = password_in(found.get("mongodb_uri", "")) or new_password()
        document["mongodb_uri"] = context.mongodb_uri(service, password)
    if service in WITH_BLOBS and "versitygw" not in context.external:
        document["s3_url"] = context.s3_url
        document["s3_access_key"] = found.get("s3_access_key") or f"{service}-{token_hex(8)}"
        document["s3_secret_key"] = found.get("s3_secret_key") or new_password()
    return document
