"""A recording is what the Collector's file exporter writes, with the truth beside it."""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path

import cramjam
import pytest
from typer.testing import CliRunner

from collector_processor.model import Signal
from collector_processor.simulator.__main__ import app
from collector_processor.simulator.faults import KINDS, RECIPES, fault
from collector_processor.simulator.recording import HOLIDAYS, OPENING, day_faults, record
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import SECOND_NS

pytestmark = pytest.mark.slow  # a day is recorded

START_NS = int(OPENING.timestamp()) * SECOND_NS
MINUTES_5 = 1 / 12


def requests(path: Path, compressed: bool) -> list[bytes]:
    """The requests of a file: length prefix, body."""
    data = path.read_bytes()
    out, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 4 + size]
        assert len(body) == size
        out.append(bytes(cramjam.zstd.decompress(body)) if compressed else body)
        at += 4 + size
    return out


@pytest.mark.parametrize("compress", [True, False])
def test_recording_holds_the_payloads_in_order(tmp_path, compress):
    faults = (fault(RECIPES[0], 1, START_NS + 60 * SECOND_NS, 60.0),)
    done = record(tmp_path / "day", MINUTES_5, seed=3, faults=faults, compress=compress)
    simulator = Simulator(3, START_NS, faults=faults, rate=3.0, opening=OPENING, holidays=HOLIDAYS)
    expected = list(simulator.payloads(START_NS + 300 * SECOND_NS))
    suffix = ".zst" if compress else ""
    for signal, name in ((Signal.TRACES, "traces"), (Signal.LOGS, "logs")):
        found = requests(tmp_path / "day" / f"{name}.binpb{suffix}", compress)
        assert found == [data for kind, data, _ in expected if kind == signal]
    assert done.requests == len(expected)
    assert done.data_bytes == sum(len(data) for _, data, _ in expected)


def test_labels_agree_with_the_chains(tmp_path):
    faults = (fault(RECIPES[0], 1, START_NS + 60 * SECOND_NS, 60.0),)
    done = record(tmp_path, MINUTES_5, faults=faults)
    labels = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    chains = {label["trace_id"]: label["anomalous"] for label in labels if "trace_id" in label}
    (injected,) = [label for label in labels if "fault_id" in label]
    assert injected["service"] == RECIPES[0].service
    assert injected["chains"] == sum(chains.values()) == done.anomalous > 5
    assert len(chains) <= done.chains
    assert all(len(trace_id) == 32 for trace_id in chains)


def test_a_day_has_all_kinds_after_a_quiet_hour_and_leaves_gaps():
    faults = day_faults(1, 24.0)
    assert {found.kind for found in faults} == set(KINDS)
    assert faults[0].start_ns == START_NS + 3600 * SECOND_NS
    assert all(later.start_ns - earlier.end_ns >= 20 * 60 * SECOND_NS for earlier, later in pairwise(faults))


def test_no_fault_where_hardly_anybody_would_run_into_it():
    """Transfers rest at night and on holidays, and so do the faults in them."""
    places = [found.place for found in day_faults(1, 24.0) if found.start_ns > START_NS + 13 * 3600 * SECOND_NS]
    assert len(places) > 15
    assert not any("create_transfer" in place for place in places)
    assert any("create_transfer" in found.place for found in day_faults(1, 24.0))


def test_command_records(tmp_path):
    result = CliRunner().invoke(app, ["record", str(tmp_path / "out"), "--hours", "0.05", "--no-compress"])
    assert result.exit_code == 0, result.output
    assert "chains" in result.output
    assert (tmp_path / "out" / "traces.binpb").stat().st_size > 10_000
