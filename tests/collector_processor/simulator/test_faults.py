"""Each fault changes what it says, in the place it says, while it is on, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import median

import pytest

from collector_processor.simulator.faults import (
    KINDS,
    RECIPES,
    TRAFFIC_FAULTS,
    Fault,
    Recipe,
    Timeline,
    fault,
    rounds,
    schedule,
)
from collector_processor.simulator.platform import ENDPOINTS, ENTRIES
from collector_processor.simulator.traffic import SECOND_NS

pytestmark = pytest.mark.slow  # the platform runs once for each fault

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
FROM_S, TO_S = 1, 10


def own_ms(chain, row) -> float:
    """The time of a span that its children do not cover (they do not overlap where this is asked)."""
    return row.ms - sum(child.ms for child in chain.children(row) if child.span.kind != CONSUMER)


def entries(run, service):
    return [(chain, row) for chain in run.values() for row in chain.of(service, SERVER, CONSUMER)]


def edges(run, service):
    """(client span, server span) of every call into `service`."""
    found = ((chain.parent(row), row) for chain in run.values() for row in chain.of(service, SERVER))
    return [(caller, row) for caller, row in found if caller is not None]


def edge_ms(run, service):
    return median(caller.ms - row.ms for caller, row in edges(run, service))


def database_ms(run, service):
    return median(
        row.ms for chain in run.values() for row in chain.of(service, CLIENT) if "db.system.name" in row.values
    )


def operation(chain, key):
    """The spans of an endpoint in a chain."""
    shape = ENDPOINTS[key].entry[0]
    kinds = {SERVER, CONSUMER}
    return [
        row
        for row in chain.spans
        if row.span.kind in kinds and row.span.name.encode() in shape and row.service == key.partition(".")[0]
    ]


def cpu(before, after, place):
    slow = median(own_ms(chain, row) for chain, row in entries(after, place))
    usual = median(own_ms(chain, row) for chain, row in entries(before, place))
    assert slow > 3 * usual
    assert edge_ms(after, place) < 1.5 * edge_ms(before, place)


def network_delay(before, after, place):
    assert edge_ms(after, place) > edge_ms(before, place) + 100
    usual = median(own_ms(chain, row) for chain, row in entries(before, place))
    assert median(own_ms(chain, row) for chain, row in entries(after, place)) < 1.5 * usual


def network_loss(before, after, place):
    waits = [caller.ms - row.ms for caller, row in edges(after, place)]
    assert 0.2 < sum(wait > 150 for wait in waits) / len(waits) < 0.9  # of calls in chains that lost a packet at all
    assert not any(caller.ms - row.ms > 150 for caller, row in edges(before, place))


def exception_thrown(before, after, place):
    for chain in after.values():
        failed = [row for row in operation(chain, place) if row.span.status.code]
        assert failed
        assert failed[0].span.events[0].name == "exception"
        assert any(line.body.startswith("unhandled exception") for line in chain.logs)


def exception_swallowed(before, after, place):
    for trace_id, chain in after.items():
        (row,) = operation(chain, place)
        assert not row.span.status.code
        (whole,) = operation(before[trace_id], place)
        assert len(chain.children(row)) <= len(before[trace_id].children(whole))
        lines = [sum(line.log.span_id == own.span.span_id for line in many.logs) for many, own in
                 ((chain, row), (before[trace_id], whole))]  # fmt: skip
        assert lines[0] < lines[1]


def wrong_value(before, after, place):
    for chain in after.values():
        debited = {row.values[key] for row in chain.spans for key in row.values if key == "payment.debit.amount"}
        credited = {row.values[key] for row in chain.spans for key in row.values if key == "payment.credit.amount"}
        amount = {row.values["payment.amount"] for row in chain.spans if "payment.amount" in row.values}
        assert (debited | credited) - amount
        assert any("default tariff" in line.body for line in chain.logs)


def step_skipped(before, after, place):
    caller, _, callee = place.partition(">")
    for chain in after.values():
        assert operation(chain, caller)
        assert not operation(chain, callee)


def double_debit(before, after, place):
    assert all(len(operation(chain, "account.debit")) == 2 for chain in after.values())
    assert all(len(operation(chain, "account.debit")) <= 1 for chain in before.values())


def missing_log(before, after, place):
    for trace_id, chain in after.items():
        assert len(before[trace_id].logs) == len(chain.logs) + 1
        assert len(before[trace_id].spans) == len(chain.spans)


def new_path(before, after, place):
    caller, _, callee = place.partition(">")
    for trace_id, chain in after.items():
        assert len(operation(chain, callee)) > len(operation(before[trace_id], callee))
        assert any(
            chain.parent(chain.parent(row)).service == caller.partition(".")[0] for row in operation(chain, callee)
        )


def interrupted_chain(before, after, place):
    for trace_id, chain in after.items():
        assert not operation(chain, place)
        assert any(row.span.kind == PRODUCER for row in chain.spans)
        whole = {row.span.name for row in before[trace_id].spans}
        assert {row.span.name for row in chain.spans} < whole


def dependency_slow(before, after, place):
    assert database_ms(after, place) > 10 * database_ms(before, place)
    usual = median(own_ms(chain, row) for chain, row in entries(before, place))
    assert median(own_ms(chain, row) for chain, row in entries(after, place)) < 1.5 * usual


def bad_instance(before, after, place):
    usual, rows = (
        [(chain, row) for chain, row in entries(run, place.partition("-")[0]) if row.instance == place]
        for run in (before, after)
    )
    assert 0.1 < sum(row.span.status.code == 2 for _, row in rows) / len(rows) < 0.6
    slow = median(own_ms(chain, row) for chain, row in rows if not row.span.status.code)
    assert slow > 3 * median(own_ms(chain, row) for chain, row in usual)


def error_burst(before, after, place):
    for chain in after.values():
        assert any(row.values.get("http.response.status_code") == 503 for row in chain.of(place, SERVER))


CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
    for check in (
        cpu,
        network_delay,
        network_loss,
        exception_thrown,
        exception_swallowed,
        wrong_value,
        step_skipped,
        double_debit,
        missing_log,
        new_path,
        interrupted_chain,
        dependency_slow,
        bad_instance,
        error_burst,
    )
}


def injected(recipe: Recipe, start_ns: int) -> Fault:
    return fault(recipe, 1, start_ns + FROM_S * SECOND_NS, TO_S - FROM_S)


def test_every_kind_is_checked():
    assert set(CHECKS) | set(TRAFFIC_FAULTS) == set(KINDS)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.kind not in TRAFFIC_FAULTS], ids=lambda r: f"{r.kind}-{r.place}"
)
def test_fault_changes_what_it_says(recipe, start_ns, healthy, run_platform):
    broken = run_platform([injected(recipe, start_ns)])
    assert broken.chains.keys() == healthy.chains.keys()
    touched = {trace_id for trace_id in broken.chains if broken.touched[trace_id]}
    assert len(touched) >= 5
    window = (start_ns + FROM_S * SECOND_NS, start_ns + TO_S * SECOND_NS)
    for trace_id, chain in broken.chains.items():
        if trace_id in touched:
            assert broken.truth[trace_id] is True
            began = min(row.span.start_time_unix_nano for row in chain.spans)
            assert window[0] - SECOND_NS <= began < window[1] + SECOND_NS
        else:
            assert broken.truth[trace_id] is not True
            assert chain.fingerprint() == healthy.chains[trace_id].fingerprint()
    usual = [
        trace_id for trace_id in touched if not any(row.span.status.code for row in healthy.chains[trace_id].spans)
    ]
    before = {trace_id: healthy.chains[trace_id] for trace_id in usual}
    CHECKS[recipe.kind](before, {trace_id: broken.chains[trace_id] for trace_id in usual}, recipe.place)


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if r.kind in TRAFFIC_FAULTS], ids=lambda r: f"{r.kind}-{r.place}"
)
def test_traffic_faults_change_how_many(recipe, start_ns, healthy, run_platform):
    broken = run_platform([injected(recipe, start_ns)])
    name = next(key for key, entry in ENTRIES.items() if key == recipe.place)
    entry = ENTRIES[name].entry[0]

    def count(run, inside):
        found = Counter()
        for chain in run.chains.values():
            at_s = (chain.root.span.start_time_unix_nano - start_ns) / 1e9
            if (FROM_S <= at_s < TO_S) == inside:
                found[chain.root.span.name.encode() in entry] += 1
        return found

    usual, changed = count(healthy, inside=True), count(broken, inside=True)
    assert changed[True] == pytest.approx(recipe.size * usual[True], rel=0.5, abs=6)
    assert changed[False] == usual[False]
    assert count(healthy, inside=False) == count(broken, inside=False)
    assert not any(broken.touched.values())
    assert None in broken.truth.values()


def test_faults_touch_other_services_only_as_their_callers(start_ns, healthy, run_platform):
    """In the very chains that a starved service slows, the work of every other service takes as long as ever."""
    recipe = next(r for r in RECIPES if r.kind == "cpu" and r.place == "risk")
    broken = run_platform([injected(recipe, start_ns)])
    touched = [trace_id for trace_id in broken.chains if broken.touched[trace_id]]
    for service in ("account", "clearing", "ledger", "notification"):
        both = [
            median(own_ms(chain, row) for chain, row in entries({t: run.chains[t] for t in touched}, service))
            for run in (healthy, broken)
        ]
        assert both[1] == pytest.approx(both[0], rel=0.2)


def test_timeline_gives_what_is_on():
    first = fault(RECIPES[0], 1, 100, 2.0)
    second = fault(RECIPES[5], 2, 100 + SECOND_NS, 3.0)
    timeline = Timeline([second, first])
    assert timeline.faults == (first, second)
    assert not timeline.at(99)
    assert timeline.at(100).faults == (first,)
    assert timeline.at(100) is timeline.at(101)
    assert set(timeline.at(100 + SECOND_NS).faults) == {first, second}
    assert timeline.at(100 + 2 * SECOND_NS).faults == (second,)
    assert not timeline.at(100 + 4 * SECOND_NS)
    assert timeline.at(100).faults == (first,)  # time may go back


def test_schedule_holds_every_kind_once_a_round_and_ends_in_time():
    faults = schedule(7, 0, 10_000 * SECOND_NS, warmup_s=100.0, every_s=60.0, duration_s=30.0)
    assert faults[0].start_ns == 100 * SECOND_NS
    assert faults[-1].end_ns <= 10_000 * SECOND_NS
    for begin in range(0, len(faults) - len(KINDS), len(KINDS)):
        assert {found.kind for found in faults[begin : begin + len(KINDS)]} == set(KINDS)
    assert len({found.fault_id for found in faults}) == len(faults)
    places = {(found.kind, found.place) for found in faults}
    assert places == {(recipe.kind, recipe.place) for recipe in RECIPES}  # three rounds see every recipe
    assert schedule(7, 0, 10_000 * SECOND_NS, 100.0, 60.0, 30.0) == faults
    first_rounds = [next(generator) for generator in (rounds(1), rounds(2), rounds(3), rounds(4))]
    assert len({recipe.kind for recipe in first_rounds}) > 1


def test_a_fault_that_does_not_fit_waits():
    def by_day(recipe, at_ns):
        return recipe.service != "order" or at_ns >= 600 * SECOND_NS

    faults = schedule(7, 0, 3000 * SECOND_NS, 0.0, 60.0, 30.0, by_day)
    assert len(faults) == 50
    assert all(by_day(found, found.start_ns) for found in faults)
    assert faults[10].service == "order"  # the first that waited comes as soon as it fits
    assert {found.kind for found in faults} == set(KINDS)
    assert schedule(7, 0, 600 * SECOND_NS, 0.0, 60.0, 30.0, lambda *_: False) == ()


def test_label_is_what_evaluate_reads():
    label = fault(RECIPES[0], 3, 5, 1.0).label()
    assert label["fault_id"] == "003-cpu"
    assert (label["start_unix_nano"], label["end_unix_nano"]) == (5, 5 + SECOND_NS)
    assert (label["service"], label["type"]) == ("account", "cpu")
