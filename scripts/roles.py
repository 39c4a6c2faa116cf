"""Writes the role table of docs/security.md from libs/platform/…/roles.py and the protos.

With `--check` nothing is written and a stale table is an error.
"""

import importlib
import pkgutil
import sys
from collections import defaultdict
from pathlib import Path

import stellwerk_protos
from stellwerk_platform.roles import (
    ADMINISTRATOR,
    ANY_PERSON,
    PUBLIC,
    SELF,
    TABLE,
    WORKSPACE_ROLES,
    Rule,
)
from stellwerk_protos.access.v1 import access_pb2

PAGE = Path(__file__).resolve().parent.parent / "docs" / "security.md"
BEGIN, END = "<!-- roles: written by scripts/roles.py -->", "<!-- end of roles -->"
HEADINGS = {"DataScientist": "Data scientist", "ComputeOperator": "Compute operator"}
WORDS = {
    ANY_PERSON: "every person",
    SELF: "the person themselves",
    ADMINISTRATOR: "administrators",
    "Node": "nodes",
    "Workload": "runs and replicas",
    "Invoker": "the gateway, for one endpoint",
    "TelemetryWriter": "exporters of spans",
}


def methods() -> dict[str, list[str]]:
    """`Service.Method` of all protos by permission."""
    found: dict[str, list[str]] = defaultdict(list)
    for module in pkgutil.walk_packages(stellwerk_protos.__path__, f"{stellwerk_protos.__name__}."):
        if not module.name.endswith("_pb2"):
            continue
        descriptor = importlib.import_module(module.name).DESCRIPTOR
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                permission = method.GetOptions().Extensions[access_pb2.permission]
                if permission:
                    found[permission].append(method.name)
    return found


def others(rule: Rule) -> str:
    """Who has a permission besides members, in words."""
    place = " for what lies in no workspace" if rule.workspace else ""
    outside = [WORDS[role] + place for role in sorted(rule.platform)]
    inside = [WORDS[ADMINISTRATOR]] if ADMINISTRATOR in rule.workspace else []
    return ", ".join(dict.fromkeys([*inside, *outside, *(WORDS[role] for role in sorted(rule.tokens))]))


def section() -> str:
    """The table with its markers."""
    rpcs = methods()
    head = ["permission", *(HEADINGS.get(role, role) for role in WORKSPACE_ROLES), "who else", "calls"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for permission, rule in TABLE.items():
        marks = ["yes" if role in rule.workspace else "" for role in WORKSPACE_ROLES]
        calls = ", ".join(f"`{name}`" for name in rpcs.get(permission, ()))
        lines.append(f"| `{permission}` | {' | '.join(marks)} | {others(rule)} | {calls} |")
    public = ", ".join(f"`{name}`" for name in rpcs[PUBLIC])
    return "\n".join([BEGIN, *lines, "", f"Everybody, without a key: {public}.", END])


def main() -> None:
    text = PAGE.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"docs/security.md has lost its marks {BEGIN} and {END}.")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + section() + after
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
    elif text != wanted:
        sys.exit("docs/security.md is not what roles.py and the protos say; run `make generate`.")


if __name__ == "__main__":
    main()
