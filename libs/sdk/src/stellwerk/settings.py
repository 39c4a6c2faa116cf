"""Where Stellwerk is and who calls: flag, then variable, then `.stellwerk/config.json`, then the stack.

The key is never in `.stellwerk/config.json`: in its place counts what `stellwerk login` has kept.

docs/interfaces.md ("Stack state") has the rule. Standard library only and cheap: the command line
reads it before anything else.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stellwerk import addresses, logins
from stellwerk.errors import StellwerkError

CONFIG_PATH = Path(".stellwerk") / "config.json"
CONFIG_KEYS = ("workspace", "grpc_address", "gateway_url")
_TOKEN_FILE = "STELLWERK_TOKEN_FILE"
_LOGIN = "stellwerk login"
_VARIABLES = {
    "workspace": "STELLWERK_WORKSPACE",
    "grpc_address": "STELLWERK_GRPC_ADDRESS",
    "gateway_url": "STELLWERK_GATEWAY_URL",
}


@dataclass(frozen=True)
class Flags:
    """What the caller gave explicitly; None means nothing."""

    grpc_address: str | None = None
    gateway_url: str | None = None
    api_key: str | None = None
    api_key_file: Path | None = None
    workspace: str | None = None
    data_dir: Path | None = None
    # Shows no key: for what a person without one asks.
    anonymous: bool = False


@dataclass(frozen=True)
class Settings:
    """Everything a client needs to know; empty text for what is not known."""

    grpc_address: str
    gateway_url: str
    workspace: str
    api_key: str = field(repr=False)
    # Key -> where its value came from, for `stellwerk config show`.
    origins: Mapping[str, str]
    # As it was named explicitly.
    data_dir: Path | None = None
    # Where the key is the token of the run that this process belongs to: its agent renews the file.
    token_file: Path | None = None
    # Whether no key is to be shown.
    anonymous: bool = False
    # Whether a key may go to `grpc_address`: not where only a project's file names it.
    is_trusted: bool = True


def default_data_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """`$STELLWERK_DATA_DIR`, else a folder of the user."""
    given = environment.get("STELLWERK_DATA_DIR")
    return Path(given) if given else Path.home() / ".local" / "share" / "stellwerk"


def find_config(folder: Path) -> Path | None:
    """The nearest `.stellwerk/config.json` in `folder` or above it."""
    for candidate in (folder, *folder.parents):
        if (candidate / CONFIG_PATH).is_file():
            return candidate / CONFIG_PATH
    return None


def read_json(path: Path | None) -> dict[str, object]:
    """An object from a file; empty without one. Raises `StellwerkError` for a file that cannot be read."""
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StellwerkError(
            "CONFIG_UNREADABLE",
            f"{path} cannot be read: {error}.",
            "Repair or delete it.",
            code="INVALID_ARGUMENT",
        ) from error
    return value if isinstance(value, dict) else {}


def resolve(
    flags: Flags | None = None, *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Settings:
    """Finds each value at the first place that has it; never fails for a value that is nowhere.

    Raises `StellwerkError` for a file that cannot be read, and a value with characters that nobody sees.
    """
    flags = flags or Flags()
    environment = os.environ if environment is None else environment
    config_path = find_config(folder or Path.cwd())
    stack_path = (flags.data_dir or default_data_dir(environment)) / "stack.json"
    config, stack = read_json(config_path), read_json(stack_path)
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for key in CONFIG_KEYS:
        places = [
            ("flag", getattr(flags, key)),
            (_VARIABLES[key], environment.get(_VARIABLES[key])),
            (str(config_path), config.get(key)),
        ]
        # A data folder that was named explicitly is a flag too.
        places.insert(1 if flags.data_dir else 3, (str(stack_path), stack.get(key)))
        values[key], origins[key] = _first(key, places, str(config_path))
    values["workspace"] = values["workspace"].removeprefix("workspaces/")
    address, is_named_here = values["grpc_address"], origins["grpc_address"] == str(config_path)
    is_stack = address == stack.get("grpc_address")
    is_trusted = not is_named_here or is_stack or addresses.is_loopback(address)
    is_trusted = is_trusted or logins.is_known(address, environment)
    # The key of the stack on this machine goes to no other address that a project's file names.
    owner = stack.get("owner_key_file") if is_stack or not is_named_here else None
    api_key, origins["api_key"] = "", ""
    if is_trusted and not flags.anonymous:
        api_key, origins["api_key"] = _api_key(flags, environment, owner, address)
    # Nor does a key go to another door than that of the address it is for.
    is_known = values["gateway_url"] == stack.get("gateway_url") or (
        origins["api_key"] != str(owner) and _is_fit(values["gateway_url"], address)
    )
    if api_key and origins["gateway_url"] == str(config_path) and not is_known:
        values["gateway_url"] = origins["gateway_url"] = ""
    token_file = Path(environment[_TOKEN_FILE]) if origins["api_key"] == _TOKEN_FILE else None
    return Settings(
        **values,
        api_key=api_key,
        origins=origins,
        data_dir=flags.data_dir,
        token_file=token_file,
        anonymous=flags.anonymous,
        is_trusted=is_trusted,
    )


def _first(key: str, places: Sequence[tuple[str, object]], project: str) -> tuple[str, str]:
    """The value at the first place that has one, without white space around it, and its origin.

    What cannot be shown counts as nothing in the project's file, which may come from anybody. The person
    meant theirs: to go on with another place would be to work on another workspace.
    """
    for origin, given in places:
        value = given.strip() if isinstance(given, str) else ""
        if value.isprintable() and value:
            return value, origin
        if value and origin != project:
            raise StellwerkError(
                "INVALID_SETTING",
                f"The {key} {value[:80]!a} has characters that cannot be shown (from: {origin}).",
                "Give it without them; line breaks and control characters are often pasted along.",
                code="INVALID_ARGUMENT",
            )
    return "", ""


def _api_key(flags: Flags, environment: Mapping[str, str], owner: object, address: str) -> tuple[str, str]:
    """The key and where it came from. A named file that cannot be read is an error, not a reason to go on."""
    files = [
        ("flag", flags.api_key_file),
        ("STELLWERK_API_KEY_FILE", environment.get("STELLWERK_API_KEY_FILE")),
        (_TOKEN_FILE, environment.get(_TOKEN_FILE)),
        (str(owner), owner if isinstance(owner, str) else None),
    ]
    if flags.data_dir:
        files.insert(1, files.pop())
    if flags.api_key:
        return flags.api_key, "flag"
    variable = environment.get("STELLWERK_API_KEY", "").strip()
    for origin, path in files:
        if variable and origin == "STELLWERK_API_KEY_FILE":
            return variable, "STELLWERK_API_KEY"
        if origin == str(owner) and not flags.data_dir and (login := logins.find(address, environment)):
            return login.key, f"{_LOGIN} ({login.user})"
        if path:
            return _read_key(Path(path)), origin
    return "", ""


def _is_fit(gateway_url: str, address: str) -> bool:
    """Whether a door that only a project's file names may get a key that is for the address."""
    return addresses.is_loopback_url(gateway_url) or addresses.is_beside(gateway_url, address)


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise StellwerkError(
            "KEY_UNREADABLE",
            f"The key file {path} cannot be read: {error}.",
            "Name another one with --api-key-file or STELLWERK_API_KEY_FILE.",
            code="UNAUTHENTICATED",
        ) from error


def _data_dir_option(settings: Settings) -> str:
    """What has to be repeated so that a command looks at the same folder."""
    return f" --data-dir {shlex.quote(str(settings.data_dir))}" if settings.data_dir else ""


def require(settings: Settings) -> Settings:
    """Raises `StellwerkError` when the address is not known, or the key where one is needed."""
    if not settings.grpc_address:
        raise StellwerkError(
            "ADDRESS_MISSING",
            "No Stellwerk is known here.",
            f"Start Stellwerk with `stellwerk up{_data_dir_option(settings)}`, or name its folder "
            "(STELLWERK_DATA_DIR, --data-dir) or its address (--grpc-address).",
            code="UNAVAILABLE",
        )
    if not settings.anonymous:
        require_trusted(settings)
    if not settings.api_key and not settings.anonymous:
        raise StellwerkError(
            "KEY_MISSING",
            "There is no API key.",
            "Sign in with `stellwerk login`, or set STELLWERK_API_KEY_FILE; `stellwerk status"
            f"{_data_dir_option(settings)}` names the owner's key file.",
            code="UNAUTHENTICATED",
        )
    return settings


def require_trusted(settings: Settings) -> None:
    """Raises `StellwerkError` when no key may go to the address."""
    if settings.is_trusted:
        return
    address = shlex.quote(settings.grpc_address)
    raise StellwerkError(
        "ADDRESS_UNTRUSTED",
        f"No key goes to {address}: only {settings.origins['grpc_address']} names it, and a project may "
        "come from anybody.",
        f"If it is yours, set STELLWERK_GRPC_ADDRESS={address}, or sign in once: "
        f"stellwerk login --grpc-address {address}",
        code="UNAUTHENTICATED",
    )
