"""Members from the command line: let in, changed, listed, taken out; refusals are clear."""

from typing import Any

import pytest

from tests.system.support import Cli

FAILED, USAGE, NOT_FOUND, DENIED = 1, 2, 3, 4


@pytest.fixture(scope="module")
def cli(stack: dict[str, Any]) -> Cli:
    cli = Cli.of(stack, "members")
    cli.ok("workspace", "create", "members")
    cli.ok("user", "create", "mia")
    return cli


def test_a_person_is_let_in_changed_and_taken_out(cli: Cli) -> None:
    added = cli.json("member", "add", "mia", "--role", "data-scientist")
    assert (added["user"], added["role"]) == ("users/mia", "ROLE_DATA_SCIENTIST")
    cli.ok("member", "role", "mia", "compute-operator")
    assert "compute-operator" in cli.ok("member", "list")
    assert {each["user"] for each in cli.json("member", "list")} == {"users/owner", "users/mia"}
    cli.run("member", "remove", "mia").check_clear("CONFIRMATION_MISSING", USAGE, "compute-operator", "--yes")
    cli.ok("member", "remove", "mia", "--yes")
    assert {each["user"] for each in cli.json("member", "list")} == {"users/owner"}
    cli.run("member", "role", "mia", "reader").check_clear("MEMBER_NOT_FOUND", NOT_FOUND, "mia")


def test_what_cannot_be_is_said(cli: Cli) -> None:
    cli.run("member", "remove", "owner", "--yes").check_clear("LAST_OWNER", FAILED, "owner")
    cli.run("member", "add", "owner").check_clear("ALREADY_MEMBER", FAILED, "member role owner")
    cli.run("member", "add", "nobody-here").check_clear("USER_NOT_FOUND", NOT_FOUND, "nobody-here")
    assert cli.run("member", "add", "mia", "--role", "king").code == USAGE
    elsewhere = cli.run("member", "list", "-w", "not-mine")
    elsewhere.check_clear("PERMISSION_DENIED", DENIED, "not-mine")
