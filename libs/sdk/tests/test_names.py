"""Ids that are made of names."""

import re

import pytest

from stellwerk import names

_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
RUN = "workspaces/demo/runs/amber-fox-k3m9x2"


def test_a_childs_id_says_whose_it_is() -> None:
    assert names.child_run(RUN, "fold-1") == "amber-fox-k3m9x2.fold-1"
    assert names.child_run("workspaces/demo/runs/other", "fold-1") == "other.fold-1"


@pytest.mark.parametrize("name", ["Fold 1", "fold.1", "a--b", "ü", "../etc", "x" * 400, "-"])
def test_any_name_makes_an_id_and_no_two_the_same(name: str) -> None:
    made = {names.child_run(RUN, name), names.child_run(RUN, name + "x"), names.child_run(f"{RUN}2", name)}
    assert len(made) == 3
    for run_id in (*made, *map(names.another, made)):
        assert _ID.fullmatch(run_id), run_id
        assert ".." not in run_id
        assert not run_id.endswith(".")


def test_the_child_of_a_child_is_not_taken_for_another() -> None:
    below = f"workspaces/demo/runs/{names.child_run(RUN, 'fold')}"
    assert names.child_run(below, "1") != names.child_run(RUN, "fold.1")
    deep = RUN
    for _ in range(20):
        deep = f"workspaces/demo/runs/{names.child_run(deep, 'fold')}"
        assert len(names.last(deep)) <= 55
