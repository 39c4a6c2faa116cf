"""Keys of people on their machine.

No keyring runs where tests do, so one that remembers in this process stands in for it.
"""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import keyring
import pytest
from click.testing import CliRunner
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError

from stellwerk import logins
from stellwerk.cli.main import main
from stellwerk.errors import StellwerkError
from stellwerk.logins import Login
from stellwerk.settings import Flags, resolve

ADDRESS = "stellwerk.example:7000"
ADA = Login("users/ada", "users/ada/keys/k-1", "session", "swk_ada")


class Memory(KeyringBackend):
    """A keyring that can be locked."""

    priority = 5.0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.passwords: dict[tuple[str, str], str] = {}
        self.locked = False

    def _check(self) -> None:
        if self.locked:
            raise KeyringLocked("locked")

    def get_password(self, service: str, username: str) -> str | None:
        self._check()
        return self.passwords.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._check()
        self.passwords[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._check()
        if self.passwords.pop((service, username), None) is None:
            raise PasswordDeleteError("none")


@pytest.fixture
def memory() -> Iterator[Memory]:
    before, backend = keyring.get_keyring(), Memory()
    keyring.set_keyring(backend)
    yield backend
    keyring.set_keyring(before)


@pytest.fixture
def no_keyring() -> Iterator[None]:
    from keyring.backends import fail

    before = keyring.get_keyring()
    keyring.set_keyring(fail.Keyring())  # type: ignore[no-untyped-call]
    yield
    keyring.set_keyring(before)


def test_a_keyring_keeps_the_key_and_no_file_does(memory: Memory) -> None:
    assert logins.save(ADDRESS, ADA) == logins.KEYRING
    assert "swk_ada" not in logins.path().read_text()
    assert logins.find(ADDRESS) == ADA
    assert logins.find("elsewhere:1") is None
    logins.forget(ADDRESS)
    assert (logins.find(ADDRESS), memory.passwords) == (None, {})
    logins.forget(ADDRESS)


@pytest.mark.usefixtures("no_keyring")
def test_without_a_keyring_a_file_of_the_owner_alone_does() -> None:
    assert logins.save(ADDRESS, ADA) == str(logins.path())
    assert stat.S_IMODE(logins.path().stat().st_mode) == 0o600
    assert stat.S_IMODE(logins.path().parent.stat().st_mode) == 0o700
    assert logins.find(ADDRESS) == ADA
    logins.forget(ADDRESS)
    assert "swk_ada" not in logins.path().read_text()


def test_a_locked_keyring_is_named_and_a_new_login_goes_into_the_file(memory: Memory) -> None:
    logins.save(ADDRESS, ADA)
    memory.locked = True
    with pytest.raises(StellwerkError, match="KEYRING_UNAVAILABLE"):
        logins.find(ADDRESS)
    assert logins.save(ADDRESS, ADA) == str(logins.path())


@pytest.mark.usefixtures("no_keyring")
def test_a_login_comes_after_variables_and_before_the_stack(tmp_path: Path) -> None:
    stack = tmp_path / "stack"
    stack.mkdir()
    (stack / "owner.key").write_text("swk_owner")
    (stack / "stack.json").write_text(
        json.dumps({"grpc_address": ADDRESS, "owner_key_file": str(stack / "owner.key")})
    )
    environment = {"STELLWERK_DATA_DIR": str(stack), "XDG_CONFIG_HOME": str(tmp_path / "configuration")}
    assert resolve(environment=environment, folder=tmp_path).api_key == "swk_owner"
    logins.save(ADDRESS, ADA, environment)
    settings = resolve(environment=environment, folder=tmp_path)
    assert (settings.api_key, settings.origins["api_key"]) == ("swk_ada", "stellwerk login (users/ada)")
    # It is for its own address only.
    other = resolve(Flags(grpc_address="evil.example:1"), environment=environment, folder=tmp_path)
    assert other.api_key != "swk_ada"
    variable = environment | {"STELLWERK_API_KEY": "swk_variable"}
    assert resolve(environment=variable, folder=tmp_path).api_key == "swk_variable"
    assert resolve(Flags(data_dir=stack), environment=environment, folder=tmp_path).api_key == "swk_owner"
    assert resolve(Flags(anonymous=True), environment=environment, folder=tmp_path).api_key == ""


@pytest.mark.parametrize("way", [[], ["--key"], ["--invitation"]])
def test_nobody_signs_in_where_only_a_project_says(way: list[str]) -> None:
    Path(".stellwerk").mkdir()
    Path(".stellwerk/config.json").write_text('{"grpc_address": "evil.example:1"}')
    result = CliRunner().invoke(main, ["login", *way], input="swk_ada\n")
    assert (result.exit_code, "error[ADDRESS_UNTRUSTED]" in result.stderr) == (4, True)
    assert "stellwerk login --grpc-address evil.example:1" in result.stderr


def test_a_damaged_file_is_named() -> None:
    logins.path().parent.mkdir(parents=True)
    logins.path().write_text("[]")
    with pytest.raises(StellwerkError, match=r"credentials\.json"):
        logins.find(ADDRESS)
