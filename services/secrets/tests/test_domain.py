"""Who gets which token: rules without any server."""

import pytest

from stellwerk_platform.errors import PlatformError
from stellwerk_platform.settings import SettingsError
from stellwerk_secrets import domain
from stellwerk_secrets.config import SecretsSettings


@pytest.mark.parametrize(
    ("role_id", "subject", "role"),
    [
        ("runs", "services/runs", "Service"),
        ("agent", "nodes/local", "Node"),
        ("agent-gpu-1", "nodes/gpu-1", "Node"),
    ],
)
def test_an_approle_is_a_service_or_a_node(role_id: str, subject: str, role: str) -> None:
    assert domain.identity_of_approle(role_id) == domain.Identity(subject, role)


@pytest.mark.parametrize("role_id", ["ci", "runs2", "", "agent-", "agent-../x", "agent-A"])
def test_an_approle_of_another_system_is_nobody(role_id: str) -> None:
    with pytest.raises(PlatformError):
        domain.identity_of_approle(role_id)


@pytest.mark.parametrize(
    "owner", ["workspaces/demo/runs/a-1", "workspaces/demo/endpoints/e/deployments/d/replicas/r"]
)
def test_runs_and_replicas_have_tokens(owner: str) -> None:
    assert domain.identity_of_workload(owner) == domain.Identity(owner, "Workload")


def test_an_endpoint_has_a_token_that_only_opens_its_scorers() -> None:
    owner = "workspaces/demo/endpoints/e"
    assert domain.identity_of_workload(owner) == domain.Identity(owner, "Invoker")


@pytest.mark.parametrize(
    "owner", ["", "users/owner", "workspaces/demo", "workspaces/demo/models/m", "a/b/c/d/e"]
)
def test_nothing_else_has(owner: str) -> None:
    with pytest.raises(PlatformError) as raised:
        domain.identity_of_workload(owner)
    assert raised.value.reason == "INVALID_NAME"


def test_a_key_in_place_of_its_digest_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="STELLWERK_OWNER_KEY_SHA256") as raised:
        SecretsSettings(
            mongodb_uri="",
            nats_url="",
            vault_url="",
            vault_role_id="",
            vault_secret_id="",
            registry_address="",
            owner_key_sha256="swk_abc",
        )
    assert "swk_abc" not in str(raised.value)
