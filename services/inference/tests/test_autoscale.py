"""How many replicas a load wants: the rules, and what a simulation makes of them."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellwerk_inference.autoscale import domain
from stellwerk_inference.autoscale.domain import Observation, Scaler, Settings
from stellwerk_inference.autoscale.loads import Loads, batch_quantile, quantile_ms
from stellwerk_inference.autoscale.simulation import Load, simulate
from stellwerk_platform.errors import InvalidArgument
from stellwerk_protos.inference.v1 import endpoints_pb2 as endpoints
from stellwerk_protos.inference.v1 import loads_pb2 as pb

SETTINGS = st.builds(
    lambda low, more, target, up, down: Settings(low, max(low + more, 1), target, 0.5, up, down),
    low=st.integers(0, 5),
    more=st.integers(0, 20),
    target=st.floats(0.5, 50),
    up=st.integers(1, 10),
    down=st.integers(1, 30),
)
SECONDS = st.lists(st.tuples(st.floats(0, 200) | st.just(0.0), st.floats(0, 3)), min_size=1, max_size=80)


def play(settings: Settings, load: list[tuple[float, float]], replicas: int) -> list[int]:
    """The counts after each second of concurrency and queue time; what is decided answers at once."""
    scaler, counts = Scaler(settings), []
    for second, (concurrency, queue) in enumerate(load):
        replicas = scaler.decide(replicas, Observation(second, concurrency, queue, replicas))
        counts.append(replicas)
    return counts


@given(settings=SETTINGS, load=SECONDS, first=st.integers(0, 30))
def test_the_bounds_hold(settings: Settings, load: list[tuple[float, float]], first: int) -> None:
    for count in play(settings, load, first):
        assert settings.min_replicas <= count <= settings.max_replicas


@given(settings=SETTINGS, load=SECONDS, first=st.integers(0, 30))
def test_nothing_moves_before_its_delay(
    settings: Settings, load: list[tuple[float, float]], first: int
) -> None:
    first = settings.clamp(first)
    before = first
    for second, count in enumerate(play(settings, load, first)):
        concurrency = [load[index][0] for index in range(second + 1)]
        needed = [
            settings.clamp(math.ceil(value / settings.target_concurrency - 1e-6)) for value in concurrency
        ]
        if count < before:
            assert second >= settings.down_delay_seconds
            assert max(needed[-int(settings.down_delay_seconds) - 1 :]) <= count
        if count > before > 0:
            assert second >= settings.up_delay_seconds
        before = count


@given(settings=SETTINGS, concurrency=st.floats(0, 300))
def test_a_steady_load_gets_what_it_needs_and_keeps_it(settings: Settings, concurrency: float) -> None:
    counts = play(settings, [(concurrency, 0.0)] * 80, settings.clamp(3))
    needed = settings.clamp(max(math.ceil(concurrency / settings.target_concurrency - 1e-6), concurrency > 0))
    assert set(counts[45:]) == {needed}


def test_the_first_request_starts_one_at_once() -> None:
    assert play(Settings(0, 5, 1, up_delay_seconds=3), [(40.0, 0)] * 5, 0) == [1, 1, 1, 5, 5]


def test_waiting_starts_one_more_but_not_while_replicas_start() -> None:
    settings = Settings(1, 9, 100, 0.5, up_delay_seconds=1)
    scaler = Scaler(settings)
    counts = [scaler.decide(1, Observation(second, 5, 2.0, 1)) for second in range(3)]
    assert counts == [1, 2, 2]
    starting = Scaler(settings)
    assert {starting.decide(2, Observation(second, 5, 2.0, 1)) for second in range(9)} == {2}


def test_what_was_before_a_silence_does_not_count() -> None:
    scaler = Scaler(Settings(0, 5, 1, down_delay_seconds=10))
    for second in range(10):
        assert scaler.decide(5, Observation(second, 0, 0, 5)) == 5
    assert scaler.decide(5, Observation(30, 0, 0, 5)) == 5


@pytest.mark.parametrize(
    "settings",
    [
        endpoints.ScaleSettings(min_replicas=3, max_replicas=2),
        endpoints.ScaleSettings(),
        endpoints.ScaleSettings(max_replicas=101),
        endpoints.ScaleSettings(max_replicas=1, target_concurrency=float("nan")),
        endpoints.ScaleSettings(max_replicas=1, target_concurrency=-1),
        endpoints.ScaleSettings(max_replicas=1, scale_down_delay_seconds=4_000),
    ],
)
def test_settings_that_cannot_be(settings: endpoints.ScaleSettings) -> None:
    with pytest.raises(InvalidArgument):
        domain.check_settings(settings)


def test_a_simulation_shows_what_settings_cost_and_save() -> None:
    # Ten minutes of silence, then ten of 20 requests a second that take 200 ms each: four at a time.
    load = Load([0] * 600 + [20] * 600, service_seconds=0.2)
    always = simulate(Settings(8, 8), load, start_seconds=5)
    assert (always.longest_queue_seconds, always.replica_seconds) == (0, 8 * 1200)
    scaled = simulate(Settings(0, 8, 0.8, 0.5, 1, 30), load, start_seconds=5)
    assert scaled.replica_seconds < 0.6 * always.replica_seconds
    assert 4 < scaled.longest_queue_seconds < 15
    assert scaled.seconds[500].replicas == 0
    assert scaled.seconds[-1].replicas == 5
    assert scaled.seconds[-1].queued == 0
    short = simulate(Settings(1, 2, 1), load, start_seconds=5)
    assert short.seconds[-1].queued == pytest.approx(20 * 600 - 2 * 5 * 600, rel=0.05)


@given(arrivals=st.lists(st.integers(0, 50), min_size=1, max_size=120), settings=SETTINGS)
def test_no_request_is_lost_in_a_simulation(arrivals: list[int], settings: Settings) -> None:
    outcome = simulate(settings, Load(arrivals, service_seconds=0.1), start_seconds=2)
    assert len(outcome.seconds) == len(arrivals)
    assert 0 <= outcome.seconds[-1].queued <= sum(arrivals) + 1e-6
    assert outcome.queue_seconds >= 0


def report(process: str, **counts: float) -> pb.ReportLoadRequest:
    load = pb.GatewayLoad(deployment="d", buckets=[0] * 17, **counts)  # type: ignore[arg-type]
    return pb.ReportLoadRequest(process=process, loads=[load])


def test_reports_add_up_whatever_is_lost() -> None:
    loads = Loads()
    loads.report(report("one", arrived=500, answered=500), now=0)
    loads.report(report("two", arrived=0), now=0)
    loads.tick(now=0.5)
    assert loads.last("d").arrived == 0  # counted before this process looked
    loads.report(report("one", arrived=510, answered=505, in_flight=4), now=1)
    loads.report(report("one", arrived=520, answered=515, in_flight=4), now=1)
    loads.report(report("two", arrived=3, answered=1, in_flight=1, queued=1, queue_ms=700), now=1)
    loads.tick(now=1.5)
    second = loads.last("d")
    assert (second.arrived, second.answered) == (23, 16)
    assert (second.in_flight, second.queued, second.queue_seconds) == (5, 1, 0.7)
    assert loads.gateways(now=1.5) == 2
    # A gateway that is silent has no requests any more.
    loads.report(report("one", arrived=521, answered=521), now=6)
    loads.tick(now=6)
    assert (loads.gateways(now=6), loads.last("d").queued, loads.last("d").arrived) == (1, 0, 1)
    assert loads.history("d", 10)[0] == [0, 23, 1]


def test_quantiles_are_read_from_buckets() -> None:
    buckets = [0] * 17
    buckets[3] = 99  # 5 to 10 ms
    buckets[9] = 1  # 250 to 500 ms
    assert 5 < quantile_ms(buckets, 0.5) < 10
    assert quantile_ms(buckets, 1.0) == 500
    assert quantile_ms([0] * 17, 0.5) == 0


def test_batches_are_told_by_the_most_that_a_share_of_the_calls_had() -> None:
    batches = {1: 50, 16: 0, 8: 45, 48: 5}
    assert [batch_quantile(batches, share) for share in (0.5, 0.95, 1.0)] == [1, 8, 48]
    assert batch_quantile({2: 1}, 0.95) == 2
    assert batch_quantile({}, 0.5) == 0


def test_what_replicas_use_is_counted_once_however_many_gateways_tell_of_it() -> None:
    loads = Loads()
    name = "workspaces/demo/endpoints/e/deployments/d"
    for second in range(11):
        for gateway in ("one", "two"):
            # The second gateway asked a moment earlier.
            used = max(second - (gateway == "two"), 0)
            usages = [
                pb.ReplicaUsage(
                    replica=replica,
                    cpu_seconds=used / 2,
                    memory_bytes=500,
                    calls=used,
                    requests=3 * used,
                    batches={2: used // 2, 4: used - used // 2},
                )
                for replica in ("r1", "r2")
            ]
            cold = int(second > 5 and gateway == "one")
            load = pb.GatewayLoad(deployment=name, usages=usages, cold_starts=cold, cold_start_ms=800 * cold)
            loads.report(pb.ReportLoadRequest(process=gateway, loads=[load]), now=float(second))
        loads.tick(now=float(second))
    recent = loads.recent(name)
    assert sum(second.cpu_seconds for second in recent) == 10
    assert sum(second.called_requests for second in recent) == 3 * sum(second.calls for second in recent) > 0
    batches = sum((second.batches for second in recent), Counter[int]())
    assert batches.total() == sum(second.calls for second in recent)
    assert batches.keys() == {2, 4}
    assert loads.memory_bytes(name) == 1_000
    assert loads.cold_starts(name, now=11.0) == (1, 800.0)
    assert loads.cold_starts(name, now=3_700.0) == (0, 0.0)
