"""Recorded files: every form that a Collector writes gives the same requests; damage costs nothing but itself."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.ingest import recording
from collector_processor.ingest.recording import Progress, open_recording
from collector_processor.model import Payload, Signal
from tests.otlp import MS, T0, log, logs, span, traces

S_NS = 1_000_000_000
HOUR_NS = 3600 * S_NS
BYTES_MAX = 1 << 22
CLASSES: dict[Signal, Any] = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}


def read(*paths: Path, bytes_max: int = BYTES_MAX) -> tuple[list[Payload], Progress]:
    stream = open_recording(paths, to_protobuf, tenant="acme", bytes_max=bytes_max)
    return [payload for payload, _ in stream], stream.progress


def as_json(data: bytes, signal: Signal) -> bytes:
    def hexed(value: Any) -> Any:
        if isinstance(value, list):
            return [hexed(item) for item in value]
        if not isinstance(value, dict):
            return value
        ids = ("traceId", "spanId", "parentSpanId")
        return {k: base64.b64decode(v).hex() if k in ids else hexed(v) for k, v in value.items()}

    message = CLASSES[signal].FromString(data)
    return json.dumps(hexed(json_format.MessageToDict(message, use_integers_for_enums=True))).encode()


def framed(requests: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(data)) + data for data in requests)


def at(second: float, trace: int = 1) -> bytes:
    """A trace request whose time is `second` after T0."""
    return traces(span(trace, 1, start_ms=second * 1000, ms=0), span(trace, 2, 1, start_ms=second * 1000, ms=0))


REQUESTS = [
    (Signal.TRACES, at(0)),
    (Signal.LOGS, logs(log("paid 5", 1, 1, at_ms=1000), log("settled", 1, 2, at_ms=1000))),
    (Signal.TRACES, at(2, 2)),
    (Signal.LOGS, logs(log("paid 6", 2, 1, at_ms=3000))),
]

zstd = zstandard.ZstdCompressor().compress
FORMS: dict[str, Callable[[list[tuple[Signal, bytes]]], bytes]] = {
    "json lines": lambda r: b"".join(as_json(d, s) + b"\n" for s, d in r),
    "json lines, no newline at the end": lambda r: b"\n".join(as_json(d, s) for s, d in r),
    "json lines, blank lines, carriage returns": lambda r: b"\r\n\r\n".join(as_json(d, s) for s, d in r) + b"\r\n\n",
    "json in frames": lambda r: framed(as_json(d, s) for s, d in r),
    "json, zstd in frames": lambda r: framed(zstd(as_json(d, s)) for s, d in r),
    "proto in frames": lambda r: framed(d for _, d in r),
    "proto, zstd in frames": lambda r: framed(zstd(d) for _, d in r),
    "proto in frames, an empty one between": lambda r: framed([r[0][1], b"", *(d for _, d in r[1:])]),
}
WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "zst": zstd,
    "gz": gzip.compress,
    "two zst frames": lambda data: zstd(data[:100]) + zstd(data[100:]),
    "two gz members": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
}


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_requests(tmp_path: Path, form: str, whole: str) -> None:
    path = tmp_path / "misleading.name.json.gz"
    path.write_bytes(WHOLE[whole](FORMS[form](REQUESTS)))
    payloads, progress = read(path)
    assert [p.signal for p in payloads] == [signal for signal, _ in REQUESTS]
    assert [CLASSES[p.signal].FromString(p.data) for p in payloads] == [CLASSES[s].FromString(d) for s, d in REQUESTS]
    assert [(p.arrival_ns - T0) // MS for p in payloads] == [0, 1000, 2000, 3000]
    assert {p.tenant for p in payloads} == {"acme"}
    assert not progress.rejected
    assert progress.bytes_read == progress.bytes_total == path.stat().st_size


def test_files_are_merged_by_event_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(framed(at(s) for s in (0, 3, 4, 9)))
    (tmp_path / "b").write_bytes(framed(at(s) for s in (1, 2, 8)))
    (tmp_path / "c").write_bytes(framed([at(5)]))
    payloads, progress = read(*(tmp_path / name for name in "abc"))
    assert [(p.arrival_ns - T0) // S_NS for p in payloads] == [0, 1, 2, 3, 4, 5, 8, 9]
    assert progress.requests == 8


def seconds(tmp_path: Path, *requests: bytes) -> list[int]:
    path = tmp_path / "file"
    path.write_bytes(framed(requests))
    return [(p.arrival_ns - T0) // S_NS for p in read(path)[0]]


def test_time_never_goes_back(tmp_path: Path) -> None:
    assert seconds(tmp_path, at(5), at(3), at(6), at(-7200), at(7)) == [5, 5, 6, 6, 7]


def test_a_crazy_clock_moves_nothing(tmp_path: Path) -> None:
    years = 10 * 365 * 86400
    assert seconds(tmp_path, at(1), at(years), at(2), at(-years), at(years), at(3)) == [1, 1, 2, 2, 2, 3]
    assert seconds(tmp_path, at(years), at(1), at(2), at(3)) == [1, 1, 2, 3]
    assert seconds(tmp_path, at(-T0 / S_NS), at(1), at(2), at(3)) == [1, 1, 2, 3]
    no_time = traces(("a", {"trace_id": b"t" * 16, "span_id": b"s" * 8}))
    assert seconds(tmp_path, at(1), no_time, at(2)) == [1, 1, 2]


def test_a_pause_that_the_following_requests_confirm_is_a_jump(tmp_path: Path) -> None:
    night = 10 * 3600
    assert seconds(tmp_path, at(1), at(night), at(night + 1)) == [1, night, night + 1]
    assert seconds(tmp_path, at(1), at(3000), at(6000)) == [1, 3000, 6000]
    crazy = at(1000 * night)
    assert seconds(tmp_path, at(1), crazy, at(night), at(night + 1))[1] <= night + 3601


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40))
def test_requests_in_order_keep_their_own_time(times: list[int]) -> None:
    made = [recording._Request(Signal.TRACES, b"", t * S_NS) for t in sorted(times)]
    steady = list(recording._steady(made))
    assert [request for _, request in steady] == made
    if max(times) <= 3600:
        assert [time_ns for time_ns, _ in steady] == [request.time_ns for request in made]


# ---- damage ------------------------------------------------------------------------------------------------------


def lines(*requests: bytes) -> bytes:
    return b"".join(as_json(r, Signal.TRACES) + b"\n" for r in requests)


@pytest.mark.parametrize(
    ("data", "kept", "rejected", "message"),
    [
        (
            lines(at(0)) + b'{"resourceSpans":[{]}\n' + lines(at(1)),
            2,
            {"unreadable": 1},
            "line 2: OTLP JSON: at byte 19",
        ),
        (lines(at(0)) + b'{"hello": 1}\n' + lines(at(1)), 2, {"unreadable": 1}, "line 2: not an OTLP request"),
        (lines(at(0), at(1))[:-9], 1, {"truncated": 1}, "line 2: "),
        (b"garbage first\n" + lines(at(0)), 1, {"unreadable": 1}, "line 1: "),
        (framed([at(0), at(1)])[:-5], 1, {"truncated": 1}, "bytes are there"),
        (framed([at(0)]) + b"\0\0", 1, {"truncated": 1}, "0 of 0 bytes"),
        (framed([at(0), b"\xff\xff\xff", at(1)]), 2, {"unreadable": 1}, "neither spans"),
        (framed([at(0), b"{]", at(1)]), 2, {"truncated": 1}, "at byte 1"),
        (framed([at(0), zstd(at(1))[:-4], at(2)]), 2, {"unreadable": 1}, "not valid zstd"),
        (framed([at(0)]) + b"\xff\xff\xff\xff" + at(1), 1, {"bad_length": 1}, "a length of 4294967295 bytes"),
        (gzip.compress(lines(at(0), at(1)))[:-4], 2, {"damaged": 1}, "cannot read on"),
        (b"", 0, {}, ""),
        (b"\n \n", 0, {}, ""),
    ],
)
def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(
    tmp_path: Path, data: bytes, kept: int, rejected: dict[str, int], message: str
) -> None:
    (tmp_path / "bad").write_bytes(data)
    (tmp_path / "good").write_bytes(framed([at(5, 7)]))
    payloads, progress = read(tmp_path / "bad", tmp_path / "good", bytes_max=9999)
    assert len(payloads) == kept + 1
    assert dict(progress.rejected) == rejected
    assert message in "".join(progress.messages)
    assert all(str(tmp_path / "bad") in line for line in progress.messages)
    assert progress.bytes_read == progress.bytes_total


@pytest.mark.parametrize("compress", [zstd, gzip.compress])
def test_what_stands_before_the_end_of_a_cut_off_file_is_read(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    random = Random(1)
    data = compress(framed(zstd(at(0, random.randrange(1 << 127)) + random.randbytes(900)) for _ in range(400)))
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    _, progress = read(tmp_path / "cut")
    assert 50 < progress.requests < 200
    assert sum(progress.rejected.values()) == 1


def test_a_request_above_the_limit_is_counted_and_passed_over(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(lines(at(0)) + b'{"x":"' + b"a" * 5_000_000 + b'"}\n' + lines(at(1)))
    payloads, progress = read(tmp_path / "long")
    assert len(payloads) == 2
    assert progress.rejected == {"too_large": 1}
    (tmp_path / "bomb").write_bytes(framed([at(0), zstd(b"\0" * 50_000_000), at(1)]))
    payloads, progress = read(tmp_path / "bomb")
    assert len(payloads) == 2
    assert progress.rejected == {"unreadable": 1}


def test_messages_are_bounded_and_the_count_is_not(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"{]\n" * 500 + lines(at(0)))
    _, progress = read(tmp_path / "bad")
    assert sum(progress.rejected.values()) == 500
    assert len(progress.messages) == recording.MESSAGES_MAX


def test_metrics_are_left_out_and_counted(tmp_path: Path) -> None:
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.add(name="m").sum.data_points.add(as_int=1)
    (tmp_path / "mixed").write_bytes(framed([at(0), request.SerializeToString()]))
    payloads, progress = read(tmp_path / "mixed")
    assert len(payloads) == progress.metrics == 1


def test_a_folder_stands_for_the_recordings_in_it(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_bytes(lines(at(0)))
    (tmp_path / "logs.binpb.zst").write_bytes(zstd(framed([REQUESTS[1][1]])))
    (tmp_path / "labels.jsonl").write_text('{"trace_id":"00","anomalous":true}\n')
    (tmp_path / "README").write_text("about it")
    assert len(read(tmp_path)[0]) == 2
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no recorded OTLP"):
        read(tmp_path / "empty")


def test_a_file_is_streamed(tmp_path: Path) -> None:
    request = lines(traces(*(span(1, n) for n in range(1, 400))))
    with (tmp_path / "big.zst").open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as writer:
        for _ in range(800):
            writer.write(request)
    stream = iter(open_recording([tmp_path / "big.zst"], to_protobuf, tenant="t", bytes_max=BYTES_MAX))
    next(stream)
    tracemalloc.start()
    count = sum(1 for _ in stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 799
    assert peak < 16 << 20 < 800 * len(request) / 2


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spans", "log_records"),
    [("nezha_tt_0130", 182_751, 96_623), ("nezha_tt_0129_part", 121_746, 64_217), ("tt_stream_0130", 553_251, 0)],
)
def test_the_real_recordings_are_read_whole(data_dir: Path, name: str, spans: int, log_records: int) -> None:
    counted = {Signal.TRACES: 0, Signal.LOGS: 0}
    last = 0
    stream = open_recording([data_dir / "recordings" / name], to_protobuf, tenant="t", bytes_max=1 << 26)
    for payload, _ in stream:
        request = CLASSES[payload.signal].FromString(payload.data)
        groups = request.resource_spans if payload.signal == Signal.TRACES else request.resource_logs
        for group in groups:
            for scoped in group.scope_spans if payload.signal == Signal.TRACES else group.scope_logs:
                counted[payload.signal] += len(scoped.spans if payload.signal == Signal.TRACES else scoped.log_records)
        assert payload.arrival_ns >= last
        last = payload.arrival_ns
    assert counted == {Signal.TRACES: spans, Signal.LOGS: log_records}
    assert not stream.progress.rejected
