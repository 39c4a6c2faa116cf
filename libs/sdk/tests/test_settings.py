"""Where addresses and key come from."""

import json
from pathlib import Path

import pytest

from stellwerk import addresses
from stellwerk.errors import StellwerkError
from stellwerk.settings import Flags, Settings, require, resolve


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    folder = tmp_path / "stack"
    folder.mkdir()
    (folder / "owner.key").write_text("swk_owner\n")
    state = {
        "grpc_address": "stack:1",
        "gateway_url": "http://stack",
        "owner_key_file": str(folder / "owner.key"),
    }
    (folder / "stack.json").write_text(json.dumps(state))
    return folder


def test_each_place_wins_over_those_after_it(tmp_path: Path, stack: Path) -> None:
    environment = {"STELLWERK_DATA_DIR": str(stack)}
    project = tmp_path / "project" / "deep"
    project.mkdir(parents=True)
    assert resolve(environment=environment, folder=project).grpc_address == "stack:1"
    (project.parent / ".stellwerk").mkdir()
    (project.parent / ".stellwerk" / "config.json").write_text(
        '{"grpc_address": "config:1", "workspace": "c"}'
    )
    settings = resolve(environment=environment, folder=project)
    assert (settings.grpc_address, settings.workspace) == ("config:1", "c")
    assert settings.gateway_url == "http://stack"
    # A project's file may come from anybody: the stack's key is not for the address that it names.
    assert settings.api_key == ""
    environment |= {"STELLWERK_GRPC_ADDRESS": "variable:1", "STELLWERK_WORKSPACE": "workspaces/v"}
    settings = resolve(environment=environment, folder=project)
    assert (settings.grpc_address, settings.workspace) == ("variable:1", "v")
    flags = Flags(grpc_address="flag:1", workspace="f")
    settings = resolve(flags, environment=environment, folder=project)
    assert (settings.grpc_address, settings.workspace) == ("flag:1", "f")


@pytest.mark.parametrize(
    ("config", "door"),
    [
        ({"gateway_url": "http://evil"}, ""),
        ({"gateway_url": "http://stack"}, "http://stack"),
        ({"grpc_address": "https://far.example:1", "gateway_url": "https://evil@evil.example"}, ""),
        (
            {"grpc_address": "https://far.example:1", "gateway_url": "https://far.example/"},
            "https://far.example/",
        ),
    ],
)
def test_a_project_sends_no_kept_key_to_a_door_of_its_own(
    tmp_path: Path, stack: Path, config: dict[str, str], door: str
) -> None:
    environment = {"STELLWERK_DATA_DIR": str(stack), "XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "stellwerk").mkdir()
    kept = {"user": "users/ada", "key_name": "users/ada/keys/k", "origin": "session", "key": "swk_ada"}
    logins = {"logins": {"https://far.example:1": kept}}
    (tmp_path / "stellwerk" / "credentials.json").write_text(json.dumps(logins))
    (tmp_path / ".stellwerk").mkdir()
    (tmp_path / ".stellwerk" / "config.json").write_text(json.dumps(config))
    settings = resolve(environment=environment, folder=tmp_path)
    assert settings.gateway_url == door
    assert settings.api_key == ("swk_ada" if "grpc_address" in config else "swk_owner")
    named = resolve(Flags(gateway_url="http://named"), environment=environment, folder=tmp_path)
    assert named.gateway_url == "http://named"


HOSTILE = [
    "evil.example:443",
    "https://evil.example:443",
    "127.0.0.1.evil.example:443",
    "127.evil.example:443",
    "localhost@evil.example:443",
    "dns://127.0.0.1/evil.example:443",
    "127.0.0.1/x.evil.example:443",
    "https://127.0.0.1/x.evil.example:443",
]


def with_config(folder: Path, **config: str) -> Path:
    """A project that comes with a `config.json`."""
    (folder / ".stellwerk").mkdir(exist_ok=True)
    (folder / ".stellwerk" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("address", HOSTILE)
@pytest.mark.parametrize("variable", ["STELLWERK_API_KEY", "STELLWERK_API_KEY_FILE", "STELLWERK_TOKEN_FILE"])
def test_no_key_goes_to_an_address_that_only_a_project_names(
    tmp_path: Path, address: str, variable: str
) -> None:
    (tmp_path / "key").write_text("swk_mine")
    value = "swk_mine" if variable == "STELLWERK_API_KEY" else str(tmp_path / "key")
    environment = {variable: value, "XDG_CONFIG_HOME": str(tmp_path), "STELLWERK_DATA_DIR": str(tmp_path)}
    project = with_config(tmp_path, grpc_address=address)
    settings = resolve(environment=environment, folder=project)
    assert (settings.api_key, settings.token_file) == ("", None)
    with pytest.raises(StellwerkError, match="ADDRESS_UNTRUSTED") as refused:
        require(settings)
    assert refused.value.code == "UNAUTHENTICATED"
    assert "STELLWERK_GRPC_ADDRESS=" in refused.value.cure
    assert resolve(Flags(api_key="swk_flag"), environment=environment, folder=project).api_key == ""

    def sent(settings: Settings) -> bool:
        return require(settings).api_key == "swk_mine"

    named = environment | {"STELLWERK_GRPC_ADDRESS": address}
    assert sent(resolve(environment=named, folder=project))
    assert sent(resolve(Flags(grpc_address=address), environment=environment, folder=project))
    # Where somebody has signed in once, the project's file will do.
    kept = {"user": "users/ada", "key_name": "users/ada/keys/k", "origin": "session", "key": "swk_ada"}
    (tmp_path / "stellwerk").mkdir()
    (tmp_path / "stellwerk" / "credentials.json").write_text(json.dumps({"logins": {address: kept}}))
    assert sent(resolve(environment=environment, folder=project))


@pytest.mark.parametrize("address", ["127.0.0.1:7400", "localhost:7400", "[::1]:7400", "https://127.1.2.3:1"])
def test_this_machine_needs_no_word_of_its_own(tmp_path: Path, address: str) -> None:
    environment = {"STELLWERK_API_KEY": "swk_mine", "STELLWERK_DATA_DIR": str(tmp_path)}
    project = with_config(tmp_path, grpc_address=address)
    assert require(resolve(environment=environment, folder=project)).api_key == "swk_mine"
    assert not addresses.is_clear(address)


@pytest.mark.parametrize(
    ("url", "is_kept"),
    [
        ("https://evil.example", False),
        ("http://far.example:8080", False),
        ("https://far.example@evil.example", False),
        ("https://evil.example/x://far.example", False),
        ("https://evil.example?://far.example", False),
        ("https://evil.example#://far.example", False),
        ("https://evil.example\\@far.example", False),
        ("https://far.example\\@evil.example", False),
        ("https://far.example:8443@evil.example", False),
        ("https://far.example evil.example", False),
        ("https:far.example", False),
        ("https:///far.example", False),
        ("//far.example", False),
        ("https://127.0.0.1@evil.example", False),
        ("https://evil.example/x://127.0.0.1", False),
        ("https://[::1]@evil.example", False),
        ("https://[::1].evil.example", False),
        ("https://far.example:8443/x://evil.example", True),
        ("https://FAR.example", True),
        ("http://[::1]:8080/", True),
        ("https://far.example:8443/", True),
        ("http://127.0.0.1:8080", True),
    ],
)
def test_a_key_of_the_environment_goes_to_no_other_door(tmp_path: Path, url: str, is_kept: bool) -> None:
    environment = {
        "STELLWERK_API_KEY": "swk_mine",
        "STELLWERK_GRPC_ADDRESS": "https://far.example:7400",
        "STELLWERK_DATA_DIR": str(tmp_path),
    }
    settings = resolve(environment=environment, folder=with_config(tmp_path, gateway_url=url))
    assert (settings.api_key, settings.gateway_url) == ("swk_mine", url if is_kept else "")


def test_what_would_change_a_terminal_is_no_address(tmp_path: Path) -> None:
    project = with_config(tmp_path, grpc_address="\x1b[2Jevil:1")
    assert resolve(environment={"STELLWERK_DATA_DIR": str(tmp_path)}, folder=project).grpc_address == ""


@pytest.mark.parametrize("variable", ["STELLWERK_WORKSPACE", "STELLWERK_GRPC_ADDRESS"])
def test_what_a_variable_or_a_flag_says_is_never_passed_over(
    tmp_path: Path, stack: Path, variable: str
) -> None:
    key = variable.removeprefix("STELLWERK_").lower()
    project = with_config(tmp_path, workspace="other", grpc_address="127.0.0.1:1")
    environment = {"STELLWERK_DATA_DIR": str(stack), variable: "prod:1\n"}
    settings = resolve(environment=environment, folder=project)
    assert (getattr(settings, key), settings.origins[key]) == ("prod:1", variable)
    # Never another place's value, where what was meant cannot be said.
    for value in ("prod\nother", "prod\x1b[2J"):
        flag = Flags(workspace=value) if key == "workspace" else Flags(grpc_address=value)
        for flags, given in ((Flags(), {variable: value}), (flag, {})):
            with pytest.raises(StellwerkError, match="INVALID_SETTING") as refused:
                resolve(flags, environment=environment | given, folder=project)
            assert str(refused.value).isprintable()
            assert (variable if given else "flag") in str(refused.value)


def test_a_data_folder_that_is_named_wins_over_variables(stack: Path, tmp_path: Path) -> None:
    environment = {"STELLWERK_GRPC_ADDRESS": "variable:1", "STELLWERK_API_KEY": "swk_variable"}
    settings = resolve(Flags(data_dir=stack), environment=environment, folder=tmp_path)
    assert (settings.grpc_address, settings.api_key) == ("stack:1", "swk_owner")


def test_the_key_comes_from_variable_then_files(stack: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of-the-run")
    environment = {"STELLWERK_DATA_DIR": str(stack), "STELLWERK_TOKEN_FILE": str(token)}
    assert resolve(environment=environment, folder=tmp_path).api_key == "of-the-run"
    environment["STELLWERK_API_KEY"] = "swk_variable"
    assert resolve(environment=environment, folder=tmp_path).api_key == "swk_variable"
    flags = Flags(api_key_file=stack / "owner.key")
    assert resolve(flags, environment=environment, folder=tmp_path).api_key == "swk_owner"


def test_a_named_key_file_that_is_missing_is_an_error_and_a_key_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(StellwerkError, match="KEY_UNREADABLE"):
        resolve(Flags(api_key_file=tmp_path / "none"), environment={}, folder=tmp_path)
    assert "swk_secret" not in repr(resolve(Flags(api_key="swk_secret"), environment={}, folder=tmp_path))


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / ".stellwerk").mkdir()
    (tmp_path / ".stellwerk" / "config.json").write_text("{")
    with pytest.raises(StellwerkError, match=r"config\.json"):
        resolve(environment={}, folder=tmp_path)
