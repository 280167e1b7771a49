"""Tuning: knobs stay within what a config allows, the part that judges has no say, and the result is a config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector_processor.config import Config
from collector_processor.config_file import load as load_config
from collector_processor.evaluation import tune as tuning
from collector_processor.evaluation.cases import NS
from collector_processor.evaluation.labels import Fault, Labels, load
from collector_processor.evaluation.tune import KNOBS, Goal, Knob, Tuned, Worth, as_yaml, difference, tune, turned
from tests.collector_processor.evaluation.small_recording import START, write


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_every_knob_turns(knob: Knob) -> None:
    moved = [turned(Config(), knob, factor) for factor in knob.factors]
    changes = [difference(Config(), config) for config in moved if config is not None]
    assert changes, "no factor gives an allowed value"
    assert all(list(change) == [knob.name] for change in changes)


def test_a_value_that_is_not_allowed_is_not_tried() -> None:
    assert turned(Config(), Knob(("decide", "probability_max")), 1000.0) is None
    assert turned(Config(), Knob(("decide", "no_such_setting")), 2.0) is None
    assert turned(Config(), Knob(("decide", "history_min")), 1.0) is None


def labels(n: int) -> Labels:
    faults = [Fault(f"f{i}", i * 1000 * NS, (i * 1000 + 100) * NS, "a", "t") for i in range(1, n + 1)]
    return Labels({}, tuple(faults))


def test_the_cut_is_before_a_fault_and_leaves_some_on_both_sides() -> None:
    assert tuning._cut(labels(10)) == (7000 - 20) * NS
    assert tuning._cut(labels(2)) == (2000 - 20) * NS
    with pytest.raises(ValueError, match="at least two"):
        tuning._cut(labels(1))


def outcome(config: Config, gain: float) -> Tuned:
    worth = Worth(1.5, 0.8, 0.9, 0.02, 3, 4, 1)
    after = Worth(1.5 + gain, 0.8, 0.9, 0.02, 4, 4, 0)
    return Tuned(config, difference(Config(), config), 7, (worth, after), (worth, after), 5)


def test_the_config_says_what_changed_and_why_and_loads(tmp_path: Path) -> None:
    config = turned(Config(), Knob(("decide", "weights", "rec")), 0.5)
    assert config is not None
    config = turned(config, Knob(("detectors", "online", "learn_min")), 2.0)
    assert config is not None
    text = as_yaml(outcome(config, 0.1), [Path("x/traces.jsonl")])
    assert "on traces.jsonl" in text
    assert "# decide.weights.rec: 0.5 -> 0.25" in text
    assert "NOT pay" not in text
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    assert load_config(path) == config


def test_a_change_that_does_not_pay_says_so() -> None:
    config = turned(Config(), Knob(("decide", "weights", "rec")), 0.5)
    assert config is not None
    assert "does NOT pay" in as_yaml(outcome(config, -0.1), [])
    nothing = as_yaml(outcome(Config(), 0.0), [])
    assert "Nothing that was tried did better." in nothing
    assert all(line.startswith("#") for line in nothing.splitlines())


def measured(pair: tuple[Worth, Worth]) -> list[tuple[float, ...]]:
    """All but what the clock says."""
    return [(part.j, part.f1, part.recall, part.found, part.false) for part in pair]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tune")
    return write(folder, 1500, ((800, 900), (1250, 1350)), labelled_from_s=400)


@pytest.mark.slow
def test_only_what_comes_before_the_cut_chooses(recording: tuple[Path, Path]) -> None:
    """Labels after the cut may say anything: the same config is chosen."""
    told: list[int] = []
    truth = load([recording[1]])
    cut = tuning._cut(truth)
    assert cut == START + 1230 * NS
    turned_around = Labels(
        {trace: anomalous ^ (int(trace, 16) > 1230) for trace, anomalous in truth.chains.items()}, truth.faults
    )
    goal = Goal(gamma=0.0)  # the clock has no say either
    one = tune(
        [recording[0]], truth, Config(), trials=3, seed=4, goal=goal, progress=lambda done, *_: told.append(done)
    )
    two = tune([recording[0]], turned_around, Config(), trials=3, seed=4, goal=goal)
    assert told == [1, 2, 3]
    assert one.changed == two.changed
    assert measured(one.chosen_on) == measured(two.chosen_on)
    assert measured(one.judged_on) != measured(two.judged_on)
    assert one.chosen_on[1].j >= one.chosen_on[0].j
    assert (one.chosen_on[0].faults, one.judged_on[0].faults) == (1, 1)
