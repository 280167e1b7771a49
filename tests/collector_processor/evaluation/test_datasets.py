"""Adapters of the public sets: what they say of the real files, and how cases without times are laid out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from collector_processor.evaluation.cases import NS, of_logs
from collector_processor.evaluation.datasets import DATASETS, START_NS, evenly


def test_cases_without_times_are_spread_evenly_normal_ones_first() -> None:
    given = [of_logs(f"n{i}", False, ["a"], "s", 5) for i in range(10)]
    given += [of_logs(f"x{i}", True, ["b"], "s", 5) for i in range(6)]
    cases = list(evenly(iter(given)))
    starts = [case.spans[0].start_ns for case in cases]
    assert starts == [START_NS + i * 60 * NS for i in range(16)]
    assert cases[3].logs[0].time_ns - starts[3] == given[0].logs[0].time_ns - 5
    assert [case.case_id for case in cases[:5]] == ["n0", "n1", "n2", "n3", "n4"]
    assert sum(case.anomalous for case in cases[5:]) == 6


def test_the_spread_does_not_depend_on_where_anomalies_stand_in_the_file() -> None:
    normal = [of_logs(f"n{i}", False, ["a"], "s", 5) for i in range(10)]
    odd = [of_logs(f"x{i}", True, ["b"], "s", 5) for i in range(6)]
    orders = [[case.case_id for case in evenly(iter(given))] for given in (normal + odd, odd + normal)]
    assert orders[0] == orders[1]


COUNTS = {  # cases, anomalous: as the sets' own description has them
    "hdfs": (22_421, 16_838),
    "hdfs_raw": (11_501, 350),
    "hdfs_live": (11_501, 350),
    "hadoop": (978, 811),
    "openstack": (2_069, 198),
    "p2p-1": (5_000, 1_442),
    "p2p-2": (5_000, 1_430),
    "p2p-3": (5_000, 1_563),
    "p2p-4": (5_000, 1_479),
    "robotshop": (2_416, 112),
    "nezha_tt": (1_171, 543),
}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_each_set_is_read_whole_and_in_order(data_dir: Path, name: str) -> None:
    if name in ("hdfs_raw", "hdfs_live"):
        pytest.importorskip("pyarrow", reason="the extra `evaluate` is not installed")
    dataset = DATASETS[name]
    assert dataset.present(data_dir)
    cases = dataset.read(data_dir)
    found = len(cases), sum(case.anomalous for case in cases)
    assert found == COUNTS[name] or (name.startswith("p2p") and abs(found[1] - COUNTS[name][1]) <= 2)
    starts = [case.spans[0].start_ns for case in cases]
    assert starts == sorted(starts)
    assert Counter(case.case_id for case in cases).most_common(1)[0][1] == 1
    for case in cases[:: max(1, len(cases) // 200)]:
        assert case.spans[0].parent is None
        assert all(0 <= log.span < len(case.spans) and log.time_ns > 0 for log in case.logs)
        assert all(span.parent is None or 0 <= span.parent < len(case.spans) for span in case.spans)
        assert len(case.trace_id) == 16
