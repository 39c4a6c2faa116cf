"""The variables of each service: exactly those of docs/interfaces.md, and no secret of another."""

from pathlib import Path

import pytest

from stellwerk_launcher import services
from stellwerk_launcher.context import PORT_NAMES, Context, external_servers, host_and_port
from stellwerk_launcher.credentials import Credentials, sha256_of


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(
        data_dir=tmp_path,
        namespace="stellwerk",
        ports={name: 20_000 + index for index, name in enumerate(PORT_NAMES)},
        credentials=Credentials.load_or_create(tmp_path / "credentials.json"),
        external={},
    )


def _environment(context: Context, name: str) -> dict[str, str]:
    return dict(services.specify(context, name).environment)


def test_only_secrets_speaks_to_vault_and_knows_the_first_keys(context: Context) -> None:
    environment = _environment(context, "secrets")
    assert environment["STELLWERK_VAULT_URL"] == context.vault_url
    owner_key = (context.data_dir / "owner.key").read_text().strip()
    assert environment["STELLWERK_OWNER_KEY_SHA256"] == sha256_of(owner_key)
    assert owner_key not in environment.values()
    for name in ("registry", "runs", "compute", "inference", "telemetry", "gateway", "agent"):
        assert "STELLWERK_VAULT_URL" not in _environment(context, name)


def test_only_services_with_blobs_get_the_keys_of_the_blob_store(context: Context) -> None:
    having = {
        name
        for group in services.START_ORDER
        for name in group
        if "STELLWERK_S3_SECRET_KEY" in _environment(context, name)
    }
    assert having == {"registry", "runs"}


def test_a_service_gets_its_own_users_only(context: Context) -> None:
    environment = _environment(context, "runs")
    passwords = context.credentials
    assert passwords.mongodb["runs"] in environment["STELLWERK_MONGODB_URI"]
    assert passwords.nats["runs"] in environment["STELLWERK_NATS_URL"]
    others = {
        secret for group in (passwords.mongodb, passwords.nats, passwords.vault) for secret in group.values()
    }
    others -= {passwords.mongodb["runs"], passwords.nats["runs"], passwords.vault["runs"]}
    assert not any(secret in value for secret in others for value in environment.values())


def test_the_agent_knows_the_door_and_no_server(context: Context) -> None:
    environment = _environment(context, "agent")
    assert environment["STELLWERK_GRPC_ADDRESS"] == context.address("gateway")
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


def test_servers_of_the_user_by_uri() -> None:
    uri = "mongodb://a:b@db1.example:27018,db2.example/?replicaSet=x"
    assert external_servers({"STELLWERK_MONGODB_URI": uri, "STELLWERK_NATS_URL": ""}) == {"mongod": uri}
    assert host_and_port(uri) == ("db1.example", 27018)
    assert host_and_port("https://s3.example") == ("s3.example", 443)
