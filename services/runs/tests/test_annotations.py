"""What is kept of what a script logs of itself."""

from stellwerk_protos.runs.v1.runs_pb2 import Run
from stellwerk_runs.runs.annotations import PARAMS, TAGS, TOTAL_BYTES, annotate


def test_the_first_value_of_a_parameter_and_the_last_of_a_tag_stay() -> None:
    run = Run()
    first = annotate(run, {"lr": "0.1"}, {"stage": "dev"})
    assert first is not None
    assert (first.verb, first.code) == ("annotated", "LOGGED")
    assert annotate(run, {"lr": "0.1"}, {"stage": "dev"}) is None
    second = annotate(run, {"lr": "0.2"}, {"stage": "prod"})
    assert second is not None
    assert (second.code, "params.lr (it has a value already)" in second.message) == ("LOGGED_IN_PART", True)
    assert (dict(run.params), dict(run.tags)) == ({"lr": "0.1"}, {"stage": "prod"})
    assert annotate(run, {"lr": "0.3"}, {}) is None


def test_what_goes_over_a_bound_is_left_out_and_said() -> None:
    run = Run()
    fact = annotate(run, {f"p{n}": "1" for n in range(PARAMS + 7)}, {f"t{n}": "1" for n in range(TAGS + 1)})
    assert fact is not None
    assert (len(run.params), len(run.tags)) == (PARAMS, TAGS)
    assert fact.message.endswith("and 3 more.")
    bad = annotate(run, {"k" * 300: "1", "": "1"}, {"t0": "v" * 9_000, "t1": "new"})
    assert bad is not None
    assert (run.tags["t0"], run.tags["t1"]) == ("1", "new")


def test_all_of_it_fits_into_an_event() -> None:
    run = Run()
    annotate(run, {f"p{n}": "ü" * 8_000 for n in range(PARAMS)}, {})
    assert 0.9 * TOTAL_BYTES < run.ByteSize() < 1.1 * TOTAL_BYTES
