"""The variables of each service: exactly those of docs/interfaces.md, and no secret of another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stellwerk_launcher import services
from stellwerk_launcher.context import PORT_NAMES, Context, Secrets, external_servers, host_and_port
from stellwerk_launcher.credentials import SERVICES, Credentials, sha256_of
from stellwerk_launcher.errors import LauncherError


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        data_dir=tmp_path,
        namespace="stellwerk",
        ports={name: 20_000 + index for index, name in enumerate(PORT_NAMES)},
        credentials=Credentials.load_or_create(tmp_path / "credentials.json"),
        external={},
        secrets=Secrets(
            launcher={"otlp_key": "swk_spans", "mongodb_password": "hidden-mongodb"},
            services={name: {"mongodb_uri": f"hidden-uri-{name}", "nats_seed": "x"} for name in SERVICES},
            secret_ids={name: f"secret-id-{name}" for name in (*SERVICES, "agent", "versitygw")},
        ),
    )


def _environment(context: Context, name: str) -> dict[str, str]:
    return dict(services.specify(context, name).environment)


EVERYBODY = [name for group in services.START_ORDER for name in group]


def test_only_secrets_knows_the_first_keys_and_only_their_digests(context: Context) -> None:
    environment = _environment(context, "secrets")
    owner_key = (context.data_dir / "owner.key").read_text().strip()
    assert environment["STELLWERK_OWNER_KEY_SHA256"] == sha256_of(owner_key)
    assert owner_key not in environment.values()
    others = [name for name in EVERYBODY if name != "secrets"]
    assert not any("STELLWERK_OWNER_KEY_SHA256" in _environment(context, name) for name in others)


def test_everybody_gets_a_login_at_vault_and_no_password_of_a_server(context: Context) -> None:
    for name in EVERYBODY:
        environment = _environment(context, name)
        assert environment["STELLWERK_VAULT_URL"] == context.vault_url
        assert environment["STELLWERK_VAULT_SECRET_ID"] == f"secret-id-{name}"
        text = "\n".join(environment.values())
        assert "hidden" not in text
        assert [other for other in EVERYBODY if f"secret-id-{other}" in text] == [name]


def test_servers_of_the_users_own_are_told_by_variables(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STELLWERK_S3_ACCESS_KEY", "mine")
    external = {"nats": "nats://a:b@n:1", "mongod": "mongodb://a:b@m:1", "versitygw": "http://s:1"}
    own = replace(context, external=external)
    environment = _environment(own, "registry")
    assert environment["STELLWERK_NATS_URL"] == "nats://a:b@n:1"
    assert environment["STELLWERK_MONGODB_URI"] == "mongodb://a:b@m:1"
    assert environment["STELLWERK_S3_ACCESS_KEY"] == "mine"
    having_blobs = [name for name in EVERYBODY if "STELLWERK_S3_URL" in _environment(own, name)]
    assert having_blobs == ["registry"]


def test_the_agent_knows_the_door_and_no_server(context: Context) -> None:
    environment = _environment(context, "agent")
    assert environment["STELLWERK_GRPC_ADDRESS"] == context.address("gateway")
    assert environment["STELLWERK_AGENT_ADDRESS"] == context.address("gateway_agents")
    assert environment["STELLWERK_AGENT_DIR"] == str(context.data_dir / "agent")
    assert not {"STELLWERK_NATS_URL", "STELLWERK_MONGODB_URI", "STELLWERK_S3_URL"} & set(environment)


def test_variables_of_the_person_do_not_reach_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STELLWERK_API_KEY", "swk_mine")
    monkeypatch.setenv("STELLWERK_LEASE_SECONDS", "5")
    environment = services.inherited_environment()
    assert "STELLWERK_API_KEY" not in environment
    assert environment["STELLWERK_LEASE_SECONDS"] == "5"


def test_credentials_stay_and_grow(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = Credentials.load_or_create(path)
    second = Credentials.load_or_create(path, extra_nats_users=("test",))
    assert second.mongodb == first.mongodb
    assert set(second.nats) - set(first.nats) == {"test"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_with_passwords_of_services_in_a_file_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps({"vault": {"runs": "x"}, "mongodb": {"admin": "y"}}))
    with pytest.raises(LauncherError, match="--data-dir") as caught:
        Credentials.load_or_create(path)
    assert caught.value.reason == "DATA_DIR_OUTDATED"


def test_servers_of_the_user_by_uri() -> None:
    uri = "mongodb://a:b@db1.example:27018,db2.example/?replicaSet=x"
    assert external_servers({"STELLWERK_MONGODB_URI": uri, "STELLWERK_NATS_URL": ""}) == {"mongod": uri}
    assert host_and_port(uri) == ("db1.example", 27018)
    assert host_and_port("https://s3.example") == ("s3.example", 443)
