"""Who may do what at Vault: one AppRole, one policy and one kind of certificate for each service.

docs/security.md says the same in words. As a program it prints a policy, for a Vault of the user's own.
"""

import sys

from stellwerk_launcher.credentials import LAUNCHER, SERVICES

AGENT = "agent"
BLOB_STORE = "versitygw"
# Who has an identity at Vault; the blob store keeps its accounts there and has no certificate.
IDENTITIES = (*SERVICES, AGENT, LAUNCHER, BLOB_STORE)
TRANSIT_KEY = "stellwerk-tokens"
BLOB_ACCOUNTS = "blob-accounts"
# The longest life that a certificate may be asked for (STELLWERK_CERTIFICATE_SECONDS).
LONGEST_CERTIFICATE = "168h"

# It cannot sign tokens nor read what is kept for workspaces, but hand that right out: it is the operator.
LAUNCHER_POLICY = f"""
path "sys/policies/acl/stellwerk-*" {{ capabilities = ["create", "read", "update"] }}
path "auth/approle/role/*" {{ capabilities = ["create", "read", "update", "delete", "list"] }}
path "pki/roles/*" {{ capabilities = ["create", "read", "update"] }}
path "pki/issue/{LAUNCHER}" {{ capabilities = ["create", "update"] }}
path "secret/data/stellwerk/services/*" {{ capabilities = ["create", "read", "update"] }}
path "secret/data/stellwerk/{LAUNCHER}" {{ capabilities = ["create", "read", "update"] }}
path "secret/data/stellwerk/{BLOB_ACCOUNTS}/*" {{ capabilities = ["create", "read", "update"] }}
path "secret/metadata/stellwerk/{BLOB_ACCOUNTS}/*" {{ capabilities = ["delete"] }}
"""
_TOKEN = """
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
"""
_SECRETS = f"""
path "transit/sign/{TRANSIT_KEY}" {{ capabilities = ["update"] }}
path "transit/sign/{TRANSIT_KEY}/*" {{ capabilities = ["update"] }}
path "transit/verify/{TRANSIT_KEY}" {{ capabilities = ["update"] }}
path "transit/verify/{TRANSIT_KEY}/*" {{ capabilities = ["update"] }}
path "transit/keys/{TRANSIT_KEY}" {{ capabilities = ["read"] }}
path "transit/keys/{TRANSIT_KEY}/rotate" {{ capabilities = ["update"] }}
path "secret/data/stellwerk/workspaces/*" {{ capabilities = ["create", "read", "update", "delete"] }}
path "secret/metadata/stellwerk/workspaces/*" {{
  capabilities = ["create", "read", "update", "list", "delete"]
}}
path "secret/delete/stellwerk/workspaces/*" {{ capabilities = ["update"] }}
path "secret/undelete/stellwerk/workspaces/*" {{ capabilities = ["update"] }}
path "secret/destroy/stellwerk/workspaces/*" {{ capabilities = ["update"] }}
"""
_BLOB_STORE = f"""
path "secret/data/stellwerk/{BLOB_ACCOUNTS}/*" {{ capabilities = ["read"] }}
path "secret/metadata/stellwerk/{BLOB_ACCOUNTS}" {{ capabilities = ["list"] }}
path "secret/metadata/stellwerk/{BLOB_ACCOUNTS}/*" {{ capabilities = ["read", "list"] }}
"""


def policy_of(name: str) -> str:
    """What the AppRole of that name may do, as a Vault policy."""
    if name == LAUNCHER:
        return LAUNCHER_POLICY + _TOKEN
    if name == BLOB_STORE:
        return _BLOB_STORE + _TOKEN
    certificate = f'path "pki/issue/{name}" {{ capabilities = ["create", "update"] }}\n'
    if name == AGENT:
        return certificate + _TOKEN
    own = f'path "secret/data/stellwerk/services/{name}" {{ capabilities = ["read"] }}\n'
    return certificate + own + _TOKEN + (_SECRETS if name == "secrets" else "")


def certificate_role(name: str) -> dict[str, object] | None:
    """The PKI role under which one may ask for certificates in its own name; None for the blob store.

    A service is called `<name>.stellwerk` by the others wherever it runs; the agent and the launcher
    only call, and get no certificate that a server could show.
    """
    if name == BLOB_STORE:
        return None
    serves = name in SERVICES
    return {
        "allowed_domains": [f"{name}.stellwerk", *([name] if serves else [])],
        "allow_bare_domains": True,
        "allow_subdomains": False,
        "allow_localhost": serves,
        "allow_ip_sans": serves,
        "server_flag": serves,
        "client_flag": True,
        "key_type": "ec",
        "key_bits": 256,
        "ttl": "24h",
        "max_ttl": LONGEST_CERTIFICATE,
        # They are many and live shortly: no list of them grows in Vault.
        "no_store": True,
        "not_before_duration": "60s",
    }


if __name__ == "__main__":
    print(policy_of(sys.argv[1] if len(sys.argv) > 1 else LAUNCHER).strip())
