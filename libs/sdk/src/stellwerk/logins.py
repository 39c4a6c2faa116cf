"""Keys of the person at this machine, one for each Stellwerk: in the keyring of the system where
there is one, else in a file that nobody else can read.

The file says for which addresses there is a login; the keyring is asked only for those, so that
commands stay quick and no dialogue appears where nobody has signed in.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from stellwerk.errors import StellwerkError

_SERVICE = "stellwerk"
KEYRING = "keyring"


@dataclass(frozen=True)
class Login:
    """Who has signed in where. `key` is empty while it lies in the keyring.

    `origin` is how the key was got: "session", "invitation", or "key": that one is the person's own and
    outlives the login.
    """

    user: str
    key_name: str
    origin: str
    key: str = ""


def path(environment: Mapping[str, str] = os.environ) -> Path:
    """`credentials.json` in the user's configuration folder (XDG Base Directory Specification)."""
    home = environment.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "stellwerk" / "credentials.json"


def find(address: str, environment: Mapping[str, str] = os.environ) -> Login | None:
    """The login for an address, with its key; raises `StellwerkError` when the keyring does not give it."""
    login = _read(environment).get(address)
    if login is None or login.key:
        return login
    import keyring
    from keyring.errors import KeyringError

    try:
        key = keyring.get_password(_SERVICE, address)
    except (KeyringError, OSError, RuntimeError) as error:
        raise _unavailable(str(error)) from error
    if not key:
        raise _unavailable(f"it has no key for {address}")
    return replace(login, key=key)


def is_known(address: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody has signed in at an address; no keyring is asked."""
    return address in _read(environment)


def save(address: str, login: Login, environment: Mapping[str, str] = os.environ) -> str:
    """Keeps a login in place of an earlier one; returns where its key lies."""
    kept = _keep_in_keyring(address, login.key)
    logins = _read(environment) | {address: replace(login, key="") if kept else login}
    _write(logins, environment)
    return KEYRING if kept else str(path(environment))


def forget(address: str, environment: Mapping[str, str] = os.environ) -> None:
    """Removes the login for an address; without one nothing happens."""
    logins = _read(environment)
    login = logins.pop(address, None)
    if login is None:
        return
    if not login.key:
        import keyring
        from keyring.errors import KeyringError

        try:
            keyring.delete_password(_SERVICE, address)
        except (KeyringError, OSError, RuntimeError) as error:
            raise _unavailable(str(error)) from error
    _write(logins, environment)


def _keep_in_keyring(address: str, key: str) -> bool:
    """False where there is no keyring, or it does not open."""
    import keyring
    from keyring.errors import KeyringError

    try:
        if keyring.get_keyring().priority <= 0:
            return False
        keyring.set_password(_SERVICE, address, key)
        return keyring.get_password(_SERVICE, address) == key
    except (KeyringError, OSError, RuntimeError):
        return False


def _read(environment: Mapping[str, str]) -> dict[str, Login]:
    place = path(environment)
    try:
        found = json.loads(place.read_text(encoding="utf-8"))["logins"]
        return {address: Login(**login) for address, login in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StellwerkError(
            "CREDENTIALS_UNREADABLE",
            f"{place} cannot be read: {error}.",
            "Delete it and sign in again: stellwerk login.",
            code="UNAUTHENTICATED",
        ) from error


def _write(logins: Mapping[str, Login], environment: Mapping[str, str]) -> None:
    """Replaces the file in one step; its mode is 0600 from the first moment."""
    place = path(environment)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"logins": {address: asdict(login) for address, login in logins.items()}}, file, indent=2)
    temporary.replace(place)


def _unavailable(why: str) -> StellwerkError:
    return StellwerkError(
        "KEYRING_UNAVAILABLE",
        f"The keyring does not give the key: {why}.",
        "Unlock it, sign in again with `stellwerk login`, or set STELLWERK_API_KEY_FILE.",
        code="UNAUTHENTICATED",
    )
