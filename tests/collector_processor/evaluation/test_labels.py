"""Labels are read in both forms, and what is neither is an error with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector_processor.evaluation.labels import NS, LabelsError, load

FAULT = '{"fault_id":"f1","start_unix_nano":100000000000,"end_unix_nano":160000000000,"service":"a","type":"delay"}'


def test_both_forms_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        f'{FAULT}\n\n{{"trace_id":"AB","anomalous":true,"root":"x"}}\n{{"trace_id":"cd","anomalous":false}}\n'
    )
    found = load([path])
    assert found.chains == {"ab": True, "cd": False}
    assert [fault.fault_id for fault in found.faults] == ["f1"]
    assert found.faults[0].early_s == 20


def test_faults_are_in_order_and_found_by_time(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    second = FAULT.replace("f1", "f2").replace("100000", "150000").replace("160000", "200000")
    path.write_text(f"{second}\n{FAULT}\n")
    found = load([path])
    assert [fault.fault_id for fault in found.faults] == ["f1", "f2"]
    at = {seconds: found.fault_at(seconds * NS) for seconds in (99, 100, 155, 201)}
    assert [fault and fault.fault_id for fault in at.values()] == [None, "f1", "f2", None]


def test_the_windows_of_a_fault() -> None:
    fault = load_one(FAULT.replace('"type"', '"early_s":5,"type"'))
    assert [fault.detects(s * NS) for s in (94, 95, 220, 221)] == [False, True, True, False]
    assert [fault.excuses(s * NS) for s in (94, 95, 280, 281)] == [False, True, True, False]


def load_one(line: str):  # type: ignore[no-untyped-def]
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.jsonl"
        path.write_text(line)
        return load([path]).faults[0]


@pytest.mark.parametrize("line", ["{", "[]", '{"trace_id":"x"}', '{"fault_id":"f","start_unix_nano":"soon"}', "7"])
def test_what_is_no_label_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{FAULT}\n{line}\n")
    with pytest.raises(LabelsError, match=r"labels\.jsonl:2: "):
        load([path])
