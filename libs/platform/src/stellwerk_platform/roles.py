"""Who has which permission: the one table, from which docs/security.md is generated.

A permission is named by the RPC in its proto (`stellwerk.access.v1.permission`). People have
roles in workspaces; services, nodes, workloads, endpoints and exporters have the role of their
token. `access.py` applies the table.
"""

import re
from dataclasses import dataclass

# The permission of what answers everybody, without a key.
PUBLIC = "public"

# Roles of a person in a workspace.
OWNER, CONTRIBUTOR, DATA_SCIENTIST = "Owner", "Contributor", "DataScientist"
COMPUTE_OPERATOR, READER = "ComputeOperator", "Reader"
WORKSPACE_ROLES = (OWNER, CONTRIBUTOR, DATA_SCIENTIST, COMPUTE_OPERATOR, READER)

# People outside workspaces: who administers, everybody, and whom a resource below `users/` belongs to.
ADMINISTRATOR, ANY_PERSON, SELF = "Administrator", "AnyPerson", "Self"
PLATFORM_ROLES = (ADMINISTRATOR, ANY_PERSON, SELF)

# Roles of tokens. A person's is `User`; `Service` has every permission.
USER, SERVICE, NODE, WORKLOAD = "User", "Service", "Node", "Workload"
INVOKER, TELEMETRY_WRITER = "Invoker", "TelemetryWriter"
TOKEN_ROLES = (NODE, WORKLOAD, INVOKER, TELEMETRY_WRITER)


def word(role: str) -> str:
    """As people write it: `data-scientist` for `DataScientist`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", role).lower()


@dataclass(frozen=True)
class Rule:
    """Who has one permission.

    `workspace`: for what lies in a workspace, by the person's role there; an administrator needs
    no role where `Administrator` is among them. `platform`: people, for what lies in none.
    `tokens`: not people. A workload is held to its own workspace, to itself where it writes, and
    to the secrets that its token names; an invoker to its endpoint.
    """

    workspace: frozenset[str]
    platform: frozenset[str]
    tokens: frozenset[str]


def _rule(workspace: str = "", platform: str = "", tokens: str = "") -> Rule:
    return Rule(frozenset(workspace.split()), frozenset(platform.split()), frozenset(tokens.split()))


_MANAGERS = "Owner Contributor"
_WRITERS = "Owner Contributor DataScientist"
_MEMBERS = "Owner Contributor DataScientist ComputeOperator Reader"

TABLE: dict[str, Rule] = {
    # Workspaces and their members.
    "workspace.create": _rule(platform="Administrator"),
    "workspace.list": _rule(platform="AnyPerson"),
    "workspace.read": _rule(_MEMBERS, tokens="Workload"),
    "workspace.write": _rule(_MANAGERS),
    "workspace.delete": _rule("Owner"),
    "member.read": _rule(_MEMBERS),
    "member.write": _rule("Owner"),
    "quota.read": _rule(f"{_MEMBERS} Administrator"),
    "quota.write": _rule("Administrator"),
    "datastore.read": _rule(_MEMBERS, tokens="Workload"),
    "datastore.write": _rule(_MANAGERS),
    # Data, environments, models and the bytes of all three.
    "dataset.read": _rule(_MEMBERS, tokens="Workload"),
    "dataset.write": _rule(_WRITERS),
    "environment.read": _rule(_MEMBERS, tokens="Workload"),
    "environment.write": _rule(_WRITERS),
    "environment.lock": _rule(tokens="Workload"),
    "model.read": _rule(_MEMBERS, tokens="Workload"),
    "model.write": _rule(_WRITERS),
    "blob.read": _rule(_MEMBERS, tokens="Workload"),
    "blob.write": _rule(_WRITERS, tokens="Workload"),
    # Runs.
    "run.read": _rule(_MEMBERS, tokens="Workload"),
    "run.write": _rule(_WRITERS),
    "run.append": _rule(_WRITERS, tokens="Workload"),
    "run.cancel": _rule(_WRITERS),
    "run.delete": _rule(_WRITERS),
    # Computes. Nodes lie in no workspace: everybody sees what there is to run on.
    "compute.read": _rule(_MEMBERS, platform="AnyPerson", tokens="Workload"),
    "node.connect": _rule(tokens="Node"),
    # Endpoints.
    "endpoint.read": _rule(_MEMBERS, tokens="Workload"),
    "endpoint.write": _rule(_WRITERS),
    "endpoint.invoke": _rule(_WRITERS, tokens="Invoker"),
    "collection.write": _rule(tokens="Workload"),
    "batch.work": _rule(tokens="Workload"),
    "monitor.read": _rule(_MEMBERS),
    "monitor.write": _rule(_WRITERS),
    # Secrets of a workspace, less and with their values.
    "secret.read": _rule(_WRITERS),
    "secret.write": _rule(_MANAGERS),
    "secret.access": _rule(_WRITERS, tokens="Workload"),
    # What happened. A trace lies in no workspace: `telemetry` looks whose it is.
    "event.read": _rule(_MEMBERS, tokens="Workload"),
    "event.admin": _rule(platform="Administrator"),
    "activity.read": _rule(_MANAGERS, platform="Administrator"),
    "telemetry.read": _rule(platform="AnyPerson"),
    "telemetry.write": _rule(platform="Administrator", tokens="TelemetryWriter"),
    # People, their keys and their subscriptions. Nobody makes a key in another's name; `secrets` shows
    # who is not an administrator only the names of others.
    "identity.read": _rule(platform="AnyPerson", tokens="Node Workload"),
    "user.read": _rule(platform="AnyPerson"),
    "user.write": _rule(platform="Administrator"),
    "key.create": _rule(platform="Self"),
    "key.read": _rule(platform="Self Administrator"),
    "key.write": _rule(platform="Self Administrator"),
    "subscription.create": _rule(platform="Self"),
    "subscription.read": _rule(platform="Self Administrator"),
    "subscription.write": _rule(platform="Self Administrator"),
    # The platform itself.
    "signing_key.rotate": _rule(platform="Administrator"),
    "platform.diagnose": _rule(platform="Administrator"),
    "internal": _rule(),
}
