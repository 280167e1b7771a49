"""The command as a person calls it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import gc
import json
import struct
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp import log, logs, span, traces
from typer.testing import CliRunner
from verdicts import incident

from collector_processor.cli import app
from collector_processor.decide.verdicts import incident_row
from collector_processor.replay import Summary

RUN = CliRunner()


def requests(count: int = 40) -> list[tuple[bytes, bytes]]:
    """(traces, logs) of `count` seconds with five payments each, one of which has a copy of a span."""
    out = []
    for second in range(count):
        spans, lines = [], []
        for n in range(5):
            trace, at = 1 + second * 5 + n, second * 1000 + n * 100
            spans += [
                span(trace, 1, name="pay", start_ms=at, ms=50),
                span(trace, 2, 1, service="risk", start_ms=at + 1),
            ]
            lines.append(log(f"checked {trace}", trace, 2, service="risk", at_ms=at + 2))
        out.append((traces(*spans, spans[0]), logs(*lines, log("of nobody", at_ms=second * 1000))))
    return out


def hex_ids(value: object) -> object:
    """OTLP JSON has ids in hex, protobuf's own JSON in base64."""
    import base64

    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).hex() if key in {"traceId", "spanId", "parentSpanId"} else hex_ids(inner)
            for key, inner in value.items()
        }
    return [hex_ids(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture
def recordings(tmp_path: Path) -> tuple[Path, list[Path]]:
    """The same traffic as one file of JSON lines, and as two of length-prefixed protobuf."""
    lines, framed = [], {"traces": b"", "logs": b""}
    for spans, records in requests():
        for name, kind, data in (
            ("traces", ExportTraceServiceRequest, spans),
            ("logs", ExportLogsServiceRequest, records),
        ):
            lines.append(json.dumps(hex_ids(MessageToDict(kind.FromString(data), use_integers_for_enums=True))))
            framed[name] += struct.pack(">I", len(data)) + data
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n")
    for name, data in framed.items():
        (tmp_path / f"{name}.binpb").write_bytes(data)
    return tmp_path / "all.jsonl", [tmp_path / "traces.binpb", tmp_path / "logs.binpb"]


def replay(paths: list[Path], out: Path) -> dict[str, object]:
    result = RUN.invoke(app, ["replay", *map(str, paths), "--out", str(out), "--verdicts", "all"])
    assert result.exit_code == 0, result.output
    assert "Every record is accounted for" in result.output
    return dict(json.loads((out / "summary.json").read_text()))


def ids(folder: Path) -> list[str]:
    return sorted(json.loads(line)["verdict_id"] for line in (folder / "verdicts.jsonl").read_text().splitlines())


def test_json_and_protobuf_give_the_same_verdicts(recordings: tuple[Path, list[Path]], tmp_path: Path) -> None:
    as_json, as_protobuf = recordings
    first = replay([as_json], tmp_path / "a")
    second = replay(as_protobuf, tmp_path / "b")
    assert ids(tmp_path / "a") == ids(tmp_path / "b")
    assert len(set(ids(tmp_path / "a"))) == 200
    for summary in (first, second):
        assert summary["records"] == 40 * (11 + 6)
        assert summary["duplicates"] == 40
        assert summary["orphans"] == 40
        assert summary["chain_records"] == 40 * 15


def test_a_torn_line_is_counted_and_costs_nothing_else(recordings: tuple[Path, list[Path]], tmp_path: Path) -> None:
    as_json, _ = recordings
    with as_json.open("a") as file:
        file.write('{"resourceSpans": [{"scopeSp')
    summary = replay([as_json], tmp_path / "a")
    assert len(ids(tmp_path / "a")) == 200
    assert summary["rejected"] == {"truncated": 1}
    assert "all.jsonl, line 81: " in str(summary["unread"])


def test_the_page_names_every_key_of_what_is_written(
    recordings: tuple[Path, list[Path]], tmp_path: Path, repository: Path
) -> None:
    summary = replay([recordings[0]], tmp_path / "a")
    verdict = json.loads((tmp_path / "a" / "verdicts.jsonl").read_text().splitlines()[0])
    page = (repository / "docs" / "replay.md").read_text()
    assert [key for key in (*summary, *verdict, *incident_row(incident(1))) if f"`{key}`" not in page] == []


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["replay", str(tmp_path / "no.jsonl")])
    assert result.exit_code == 1
    assert "no.jsonl" in result.stderr
    result = RUN.invoke(app, ["evaluate", str(tmp_path / "no.jsonl"), "--labels", str(tmp_path / "labels.jsonl")])
    assert result.exit_code == 2
    assert "labels.jsonl: No such file" in result.stderr
    (tmp_path / "taken").touch()
    result = RUN.invoke(app, ["replay", str(tmp_path / "taken"), "--out", str(tmp_path / "taken")])
    assert result.exit_code == 1
    assert "taken: File exists" in result.stderr


def test_a_recording_of_which_nothing_can_be_read_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    """Else it would be a clean summary of nothing, or an evaluation in which everything was missed."""
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "labels.jsonl").write_text('{"trace_id": "01", "anomalous": true}\n')
    recording, labels = str(tmp_path / "notes.txt"), str(tmp_path / "labels.jsonl")
    for command in (["replay", recording, "--out", str(tmp_path / "out")], ["evaluate", recording, "--labels", labels]):
        result = RUN.invoke(app, command)
        assert result.exit_code == 1
        assert "notes.txt, line 1: " in result.stderr


@pytest.mark.parametrize(
    ("label", "status", "told"),
    [
        ('{"trace_id": "00"}', 2, "labels.jsonl:1"),
        ('{"fault_id": "f", "start_unix_nano": 1, "end_unix_nano": 2, "service": "risk"}', 1, "no label is about"),
    ],
    ids=["no label", "of another recording"],
)
def test_a_label_that_cannot_be_used_is_an_error(
    recordings: tuple[Path, list[Path]], tmp_path: Path, label: str, status: int, told: str
) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text(label + "\n")
    result = RUN.invoke(app, ["evaluate", str(recordings[0]), "--labels", str(labels)])
    assert result.exit_code == status
    assert told in result.stderr


def test_a_broken_promotion_is_named_by_every_command(recordings: tuple[Path, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    promotion = tmp_path / "models" / "promoted.json"
    promotion.write_text("{")
    config = tmp_path / "config.yaml"
    config.write_text(f"detectors: {{sequence_transformer: {{model: {tmp_path / 'models'}}}}}\n")
    for command in (
        ["validate", str(config)],
        ["replay", str(recordings[0]), "--config", str(config)],
        ["models", "list", "--models", str(tmp_path / "models")],
    ):
        result = RUN.invoke(app, command)
        assert result.exit_code in {1, 2}
        assert str(promotion) in result.stderr.replace("\n", "")


def test_records_that_went_missing_would_be_an_error(
    recordings: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Summary.__init__

    def one_lost(self: Summary, **values: object) -> None:
        real(self, **(values | {"accounted": False}))  # type: ignore[arg-type]

    monkeypatch.setattr(Summary, "__init__", one_lost)
    result = RUN.invoke(app, ["replay", str(recordings[0]), "--out", str(tmp_path / "a")])
    assert result.exit_code == 1
    assert "RECORDS ARE MISSING" in result.output


def test_a_typo_in_a_config_names_line_and_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "spanchain.yaml"
    path.write_text("join:\n  idle_s: 10\n  chain_max: 5\n")
    for command in (["validate", str(path)], ["serve", "--config", str(path)]):
        result = RUN.invoke(app, command)
        assert result.exit_code == 2
        assert "chain_max" in result.stderr
        assert "chains_max" in result.stderr
        assert "3" in result.stderr
    assert gc.isenabled()  # a start goes without it


def test_a_good_config_is_said_to_be_valid(repository: Path) -> None:
    result = RUN.invoke(app, ["validate", str(repository / "configs" / "spanchain.yaml")])
    assert result.exit_code == 0, result.output


def test_evaluate_measures_a_labelled_recording(recordings: tuple[Path, list[Path]], tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps({"trace_id": f"{n:032x}", "anomalous": n == 7}) + "\n" for n in range(1, 201)))
    result = RUN.invoke(app, ["evaluate", str(recordings[0]), "--labels", str(labels), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)


def test_without_trained_models_the_shipped_one_is_in_use(tmp_path: Path) -> None:
    result = RUN.invoke(app, ["models", "list", "--models", str(tmp_path)])
    assert "ships with spanchain" in result.output
    assert RUN.invoke(app, ["models", "rollback", "--models", str(tmp_path)]).exit_code == 1
    assert RUN.invoke(app, ["models", "promote", "no-such", "--models", str(tmp_path)]).exit_code == 1


@pytest.mark.slow
def test_doctor_finds_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "spanchain.yaml"
    path.write_text("exporters:\n  alertmanager:\n    enabled: true\n    url: http://127.0.0.1:1\n")
    result = RUN.invoke(app, ["doctor", "--config", str(path), "--data", str(tmp_path / "data")])
    assert "✓ engine" in result.output
    assert "✗ Alertmanager" in result.output
    assert result.exit_code == 1
    assert not (tmp_path / "data").exists(), "it changes nothing"


def test_a_bad_rule_is_refused_with_its_place_by_every_command(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n  - {name: r, category: system, severity: info, text: x, require: [{presant: a}]}\n")
    path = tmp_path / "config.yaml"
    path.write_text(f"detectors: {{context: {{rules: [{rules}]}}}}\n")
    recording = tmp_path / "empty.jsonl"
    recording.touch()
    for command in (["validate", str(path)], ["replay", str(recording), "--config", str(path)]):
        result = RUN.invoke(app, command)
        assert result.exit_code == 2
        assert f"{rules}:2: rule r: require.0.presant" in result.stderr.replace("\n", "")
