"""What happens in two minutes, and with which settings."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from collector_processor.config import Config
from collector_processor.config_file import load
from collector_processor.demo.story import FIRST_S, LASTS_S, OPENING, SPEED, as_file, demo_config, merged, story
from collector_processor.simulator.faults import KINDS, SECOND_NS


def test_two_minutes_hold_the_opening(start_ns):
    faults = story(1, start_ns, 120.0)
    assert faults[0].start_ns == start_ns + int(FIRST_S * SECOND_NS)
    assert [(fault.kind, fault.place) for fault in faults] == list(OPENING[: len(faults)])
    assert len(faults) == 7
    assert faults[-1].end_ns <= start_ns + 120 * SECOND_NS


def test_neighbours_break_different_services_and_never_overlap(start_ns):
    faults = story(1, start_ns, 1200.0)
    assert {fault.kind for fault in faults} == set(KINDS)
    for earlier, later in pairwise(faults):
        assert earlier.service != later.service
        assert later.start_ns - earlier.end_ns >= 5 * SECOND_NS
        assert earlier.end_ns - earlier.start_ns == int(LASTS_S * SECOND_NS)
    assert len({fault.fault_id for fault in faults}) == len(faults)


def changes(before: dict, after: dict, path: str = "") -> dict[str, tuple[object, object]]:
    """Key path -> (before, after) of whatever differs."""
    out = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            out |= changes(old, new, f"{path}{key}.")
        elif old != new:
            out[path + key] = (old, new)
    return out


def test_only_time_is_changed_and_all_of_it_alike():
    """The rules by which the demo judges are the shipped ones, those for payments among them."""
    found = changes(Config().model_dump(), demo_config().model_dump())
    assert found.pop("detectors.context.rules") == ((), ("payments",))
    assert found.pop("join.attributes")[1] == ("payment.amount", "payment.debit.amount", "payment.credit.amount")
    assert {"engine.epoch_s", "decide.quarantine_s", "decide.resolve_s", "decide.alerts_per_day"} <= found.keys()
    for path, (old, new) in found.items():
        if path.startswith("join."):
            assert new < old
        elif path.endswith("_per_day"):
            assert new == old * SPEED
        else:
            assert path.endswith("_s"), path
            assert new == old / SPEED


def test_overrides_lie_on_top():
    assert demo_config({"engine": {"epoch_s": 3.0}}).engine.epoch_s == 3.0
    assert demo_config({"engine": {"epoch_s": 3.0}}).join == demo_config().join
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 5}, "d": 1}) == {"a": {"b": 5, "c": 2}, "d": 1}


def test_the_example_file_says_the_same(repository: Path):
    written = (repository / "configs" / "demo.yaml").read_text()
    assert written == as_file(), "it is stale: make docs"
    assert load(repository / "configs" / "demo.yaml") == demo_config()
