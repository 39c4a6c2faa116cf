"""Explanations of histories that were recorded on a real stack, whole and cut off after every event."""

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from stellwerk_platform.errors import InvalidArgument
from stellwerk_telemetry.explain import domain, words
from stellwerk_telemetry.explain.domain import Past

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("histories.json").read_text())
STATES = {
    "STARTING": "is Starting since",
    "QUEUED": "is Queued since",
    "PREPARING": "is Preparing since",
    "RUNNING": "is Running since",
    "FINALIZING": "is Finalizing since",
    "COMPLETED": "completed at",
    "FAILED": "failed (SCRIPT_FAILED) at",
    "CANCEL_REQUESTED": "is being canceled since",
    "CANCELED": "was canceled at",
    "NOT_RESPONDING": "is not responding since",
}


def history(label: str) -> tuple[str, list[Past]]:
    recorded = RECORDED[label]
    events = enumerate(recorded["events"])
    return recorded["name"], [domain.read(number, json.dumps(event).encode()) for number, event in events]


def explained(name: str, events: list[Past]) -> tuple[str, list[Past]]:
    chain = domain.chain(name, events)
    return words.summary(name, chain), chain


@pytest.mark.parametrize("label", RECORDED)
def test_every_state_on_the_way_has_an_explanation(label: str) -> None:
    name, events = history(label)
    first = next(index for index, event in enumerate(events) if event.resource == name)
    for end in range(first + 1, len(events) + 1):
        summary, chain = explained(name, events[:end])
        last = next(event for event in reversed(events[:end]) if event.resource == name)
        assert STATES[last.state] in summary
        assert summary.endswith(".")
        assert "\n" not in summary
        assert chain == sorted(chain, key=lambda event: event.sequence)
        assert len({event.id for event in chain}) == len(chain)
        assert [event for event in chain if event.resource == name][-1].state == last.state


def test_all_states_of_a_run_that_lives_on_a_node_were_recorded() -> None:
    seen = {event.state for label in RECORDED for event in history(label)[1] if event.kind == "run"}
    assert seen == set(STATES)


def test_a_completed_run_has_one_line_a_step() -> None:
    _, chain = explained(*history("completed"))
    assert [event.code for event in chain] == [
        "SUBMITTED",
        "NODE_CHOSEN",
        "PREPARING_ENVIRONMENT",
        "COMMAND_RUNNING",
        "COLLECTING_OUTPUTS",
        "COMPLETED",
    ]


def test_what_a_run_waits_for_and_what_would_end_it() -> None:
    summary, _ = explained(*history("queued"))
    assert "All 1 slots of pool 'local' are taken" in summary
    assert "it goes on when a run before it ends" in summary


def test_a_failure_has_its_code_and_its_cure() -> None:
    summary, _ = explained(*history("failed"))
    assert "The command exited with code 3: no such luck; see user_logs/std_log.txt" in summary


def test_the_node_that_fell_silent_is_the_cause() -> None:
    summary, chain = explained(*history("not_responding"))
    assert "the lease of nodes/local ran out" in summary
    assert [event.resource for event in chain[-2:]] == ["nodes/local", history("not_responding")[0]]


def test_an_allocation_whose_news_have_not_reached_the_run_are_told() -> None:
    name, events = history("queued")
    placed = next(event for event in reversed(events) if event.kind == "allocation")
    ahead = replace(
        placed, id=str(uuid.uuid4()), sequence=len(events), code="NODE_CHOSEN", message="x", cause=""
    )
    _, chain = explained(name, [*events, ahead])
    assert chain[-1] == ahead


def event(resource: str, verb: str, sequence: int, cause: str = "", **data: Any) -> Past:
    """An event of a run, one second after the other."""
    return Past(
        id=f"{sequence:036}",
        sequence=sequence,
        time=Timestamp(seconds=sequence * 10),
        resource=resource,
        type=f"stellwerk.runs.run.{verb}.v1",
        actor="users/ada",
        code=verb.upper(),
        message=f"{resource} {verb}.",
        cause=cause,
        data={"state": f"RUN_STATE_{verb.upper()}", **data},
    )


def test_a_child_that_ended_with_its_parent_says_so() -> None:
    parent, child = "workspaces/w/runs/parent", "workspaces/w/runs/child"
    asked = event(parent, "cancel_requested", 3)
    events = [
        event(parent, "running", 1),
        event(child, "running", 2),
        asked,
        event(child, "canceled", 4, cause=asked.id),
    ]
    summary, chain = explained(child, events)
    assert f"(with {parent})" in summary
    assert asked in chain


def test_a_loop_of_causes_ends() -> None:
    name = "workspaces/w/runs/r"
    one, two = event(name, "running", 1, cause=f"{2:036}"), event("nodes/n", "failed", 2, cause=f"{1:036}")
    assert {found.id for found in domain.chain(name, [one, two])} == {one.id, two.id}


def test_repeated_states_are_one_line_and_long_chains_are_cut() -> None:
    name = "workspaces/w/runs/r"
    assert len(domain.chain(name, [event(name, "running", number) for number in range(9)])) == 1
    verbs = ("running", "not_responding")
    chain = domain.chain(name, [event(name, verbs[number % 2], number) for number in range(999)])
    assert len(chain) == 999
    cut = domain.shortened(chain)
    assert len(cut) == domain.LINES
    assert (cut[0], cut[-1]) == (chain[0], chain[-1])


def test_an_archived_run_and_a_resource_without_states() -> None:
    name = "workspaces/w/runs/r"
    archived = replace(event(name, "completed", 2, archiveTime="2026-01-01T00:00:00Z"), code="ARCHIVED")
    summary, _ = explained(name, [event(name, "completed", 1), archived])
    assert summary.startswith("r (archived) completed at 1970-01-01 00:00:10 UTC")
    made = replace(event("workspaces/w/datasets/d/versions/1", "created", 1), data={})
    summary, _ = explained(made.resource, [made])
    assert summary.startswith("1 was created at 1970-01-01 00:00:10 UTC by users/ada")


@pytest.mark.parametrize("name", ["", "runs/x", "workspaces/w", "workspaces/demo/runs", "nodes/" + "x" * 700])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        domain.check_name(name)
