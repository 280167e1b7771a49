"""The file exporter: which verdicts it writes, what a restart and a full disk leave, and that replay waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from sinks import eventually
from verdicts import incident, rows, verdict_ids, verdicts

from collector_processor.config import FileExportConfig, QueueConfig
from exporters.file.exporter import FileExporter
from exporters.file.jsonl import VerdictFile
from exporters.prometheus.telemetry import Telemetry

Which = Literal["all", "unusual", "none"]
NOTHING = verdicts(0, 0)


def start(folder: Path, which: Which = "all", telemetry: Telemetry | None = None, **options: Any) -> FileExporter:
    queue = options.pop("queue", QueueConfig(retry_initial_s=0.05, retry_max_s=0.1))
    config = FileExportConfig(verdicts=which, queue=queue)
    exporter = FileExporter(config, folder, rows(), telemetry or Telemetry("1"), **options)
    exporter.start()
    return exporter


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder: Path) -> list[str]:
    return [row["verdict_id"] for row in lines(folder / "verdicts.jsonl")]


@pytest.mark.parametrize("which", ["all", "unusual", "none"])
def test_the_verdicts_that_were_asked_for_in_order(tmp_path: Path, which: Which) -> None:
    exporter = start(tmp_path, which)
    batches = [verdicts(5, 2, first_trace=1), verdicts(5, 0, first_trace=100), verdicts(4, 4, first_trace=200)]
    for batch in batches:
        exporter.export(batch, [])
    exporter.shutdown(5)
    expected = {
        "all": [each for batch in batches for each in verdict_ids(batch)],
        "unusual": [each for batch in batches for each in verdict_ids(batch, unusual=True)],
        "none": [],
    }
    assert written(tmp_path) == expected[which]


def test_rows_have_the_keys_of_the_contract_and_explain_only_the_unusual(tmp_path: Path) -> None:
    exporter = start(tmp_path)
    exporter.export(verdicts(2, 1), [incident(1)])
    exporter.shutdown(5)
    normal, unusual = lines(tmp_path / "verdicts.jsonl")
    assert "explanation" not in normal
    assert set(unusual["explanation"]) == {"trigger", "context", "affected", "actions"}
    [opened] = lines(tmp_path / "incidents.jsonl")
    assert opened["resolved_unix_nano"] is None


def test_a_restart_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    first, second = verdicts(5, 1, first_trace=1), verdicts(5, 1, first_trace=50)
    exporter = start(tmp_path)
    exporter.export(first, [incident(1)])
    assert exporter.flush(5)
    exporter.checkpointed()
    exporter.export(second, [incident(2), incident(1, "resolved")])
    assert eventually(lambda: len(written(tmp_path)) == 10)
    assert eventually(lambda: len(lines(tmp_path / "incidents.jsonl")) == 2)
    # Killed here; the journal gives again what came after the checkpoint.
    again = start(tmp_path)
    again.export(second, [incident(2), incident(1, "resolved")])
    again.export(verdicts(1, 1, first_trace=90), [])
    again.shutdown(5)
    exporter.shutdown(5)
    assert written(tmp_path) == [
        *verdict_ids(first),
        *verdict_ids(second),
        *verdict_ids(verdicts(1, 1, first_trace=90)),
    ]
    states = {row["incident_id"]: row["resolved_unix_nano"] for row in lines(tmp_path / "incidents.jsonl")}
    assert states == {
        incident(1).incident_id: incident(1, "resolved").resolved_unix_nano,
        incident(2).incident_id: None,
    }


def test_replay_starts_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        exporter = start(tmp_path, fresh=True)
        exporter.export(verdicts(3, 1), [])
        exporter.shutdown(5)
    assert len(written(tmp_path)) == 3
    assert (tmp_path / "incidents.jsonl").read_text() == ""


def test_verdicts_are_bounded_for_a_service_and_whole_for_a_replay(tmp_path: Path) -> None:
    for fresh in (False, True):
        config = FileExportConfig(verdicts="all", bytes_max=3000, files_kept=2)
        exporter = FileExporter(config, tmp_path, rows(), Telemetry("1"), fresh=fresh)
        exporter.start()
        for number in range(30):
            exporter.export(verdicts(3, 1, first_trace=1 + 10 * number), [])
            assert exporter.flush(5)
        exporter.shutdown(5)
        files = sorted(path.name for path in tmp_path.glob("verdicts.jsonl*") if path.suffix != ".marks")
        if fresh:
            assert files == ["verdicts.jsonl"]
            assert len(written(tmp_path)) == 90
        else:
            assert files == ["verdicts.jsonl", "verdicts.jsonl.1", "verdicts.jsonl.2"]
            assert sum((tmp_path / name).stat().st_size for name in files) < 4 * 3000


def test_replay_waits_for_the_disk_instead_of_dropping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry("1")
    slow = VerdictFile.append

    def append(self: VerdictFile, rows: Any) -> None:
        import time

        time.sleep(0.01)
        slow(self, rows)

    monkeypatch.setattr(VerdictFile, "append", append)
    exporter = start(tmp_path, telemetry=telemetry, queue=QueueConfig(items_max=2), wait=True)
    for number in range(40):
        exporter.export(verdicts(3, 1, first_trace=1 + 10 * number), [])
    exporter.shutdown(30)
    assert len(written(tmp_path)) == 120
    assert telemetry.value("exporter_sent_total", exporter="file") == 120


def test_a_full_disk_is_waited_out_and_costs_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry("1")
    exporter = start(tmp_path, telemetry=telemetry)
    exporter.export(verdicts(3, 1, first_trace=1), [])
    assert exporter.flush(5)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(VerdictFile, "append", full)
        exporter.export(verdicts(3, 1, first_trace=10), [incident(1)])
        assert eventually(lambda: telemetry.value("exporter_retries_total", exporter="file", reason="disk") > 1)
        assert not exporter.flush(0.1)
    assert exporter.flush(10)
    exporter.shutdown(5)
    assert len(written(tmp_path)) == len(set(written(tmp_path))) == 6
    assert len(lines(tmp_path / "incidents.jsonl")) == 1


def test_drops_are_counted_in_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry("1")
    monkeypatch.setattr(VerdictFile, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    exporter = start(tmp_path, telemetry=telemetry, queue=QueueConfig(items_max=3))
    for number in range(10):
        exporter.export(verdicts(5, 0, first_trace=1 + number * 10), [])
    assert telemetry.value("exporter_dropped_total", exporter="file", reason="queue_full") == 35
    exporter.shutdown(0.2)
    assert telemetry.value("exporter_dropped_total", exporter="file", reason="shutdown") == 15


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        start(tmp_path / "file" / "data")
