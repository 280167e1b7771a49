"""`python -m tests.fuzz.decode SECONDS SEED`: the decode kernel against the official protobuf classes.

How it works. Real requests are mutated and given to both. The kernel may refuse what protobuf accepts (it then goes the
slow way) and accept what protobuf refuses (bytes that nobody reads). Where both accept, they must agree on how many
records there are, on their ids and times, and for a request in protobuf's own form on everything the kernel reads.
The decoder around the kernel must account for every record that protobuf sees. Run it with NUMBA_BOUNDSCHECK=1: then a
read outside the bytes is an IndexError here, not a wrong number. The last line of the output counts what was seen.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numba import njit
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.config import DecodeConfig, JoinConfig
from collector_processor.decode.decoder import LINK_KEYS, Decoder
from collector_processor.kernels import decode as kernel
from collector_processor.kernels import peek
from collector_processor.kernels.wire import CLASSES, hash_one
from collector_processor.model import Payload, Signal, Symbols
from collector_processor.simulator.simulator import Simulator
from tests.fuzz.mutate import Mutator
from tests.otlp import log, logs, span, traces

START_NS = 1_766_397_600_000_000_000
REQUESTS: dict[Signal, Any] = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}
SEED = np.uint64(0x9E3779B97F4A7C15)
HANG_S = 1.0
FRESH = 20_000  # inputs after which the decoder is replaced, so that its lists of names do not fill up
WANTED = ("payment.id", "payment.amount", "order.id")


STORM = 100  # copies of each input, changed at random, that the kernel alone is given
kernel_scan = kernel.scan


class Disagreement(AssertionError):
    """The kernel and protobuf read the same bytes differently."""


def corpus() -> tuple[list[Signal], list[bytes]]:
    """Requests of the simulated platform, and small ones that hold what those do not."""
    found: list[tuple[Signal, bytes]] = []
    for signal, data, _ in Simulator(5, START_NS, rate=4.0).payloads(START_NS + 8_000_000_000):
        if 100 < len(data) < 6000:
            found.append((Signal(signal), data))
    found = found[:40]
    found += [
        (Signal.TRACES, traces(span(1, 1, attributes={"payment.id": "PAY1", "payment.amount": 2.5, "x": {"y": "z"}}))),
        (Signal.TRACES, traces(span(1, 1), span(1, 2, 1, status=2), span(2, 3, service="other"))),
        (Signal.TRACES, traces(span(1, 1), scope="spanchain")),
        (Signal.LOGS, logs(log("paid PAY1 in 3 ms", 1, 1), log({"message": "m", "n": 1}), log(5), log("", severity=0))),
        (Signal.LOGS, logs(log("no trace", attributes={"trace_id": "0af7651916cd43dd8448eb211c80319c"}))),
        (Signal.LOGS, logs(log("x", attributes={"traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"}))),
        (Signal.LOGS, logs(log("trace 0af7651916cd43dd8448eb211c80319c of order-123456", event_name="settled"))),
    ]
    return [signal for signal, _ in found], [data for _, data in found]


class Fuzzer:
    """One run. `counts`: how many inputs there were, and who accepted them."""

    def __init__(self, seed: int) -> None:
        self.signals, requests = corpus()
        self.mutator = Mutator(requests, seed)
        self.counts: Counter[str] = Counter()
        self._rows = np.zeros((4096, kernel.COLUMNS), np.uint64)
        self._cells = np.zeros((4096, 4), np.int64)
        self._resources = np.zeros((1024, 2), np.int64)
        self._votes = np.zeros(3, np.int64)
        self._times = np.zeros((2, peek.SAMPLE), np.int64)
        self._keys = {
            Signal.TRACES: keys(WANTED),
            Signal.LOGS: keys((*LINK_KEYS, *WANTED)),
        }
        self._decoder = new_decoder()

    def run(self, seconds: float) -> None:
        """Mutates and compares for `seconds`. Errors: Disagreement, IndexError from a read outside."""
        for signal, data in zip(self.signals, self.mutator.corpus, strict=True):
            self.check(signal, data)  # as they are, and damaged: this compiles the kernels, too
            self.check(signal, data[:-3])
            self.check(signal, data.replace(b"a", b"\xff", 3))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number, data = self.mutator.next()
            started = time.process_time()
            try:
                self.check(self.signals[number], data)
            except Exception:
                print(f"{self.signals[number].name} {data.hex()}", flush=True)
                raise
            if time.process_time() - started > HANG_S:
                raise Disagreement(f"an input took {time.process_time() - started:.1f} s: {data.hex()}")

    def check(self, signal: Signal, data: bytes) -> None:
        """One input."""
        self.counts["inputs"] += 1
        buf = np.frombuffer(data, np.uint8)
        wanted, lengths = self._keys[signal]
        links = len(LINK_KEYS) if signal == Signal.LOGS else 0
        rows, cells, _, own = kernel.scan(
            *(buf, signal == Signal.LOGS, self._rows, SEED, wanted, lengths, links, self._cells, self._resources),
            *(CLASSES, kernel.OWN_SCOPE, 1024),
        )
        peek.peek(buf, self._votes, self._times)
        self.counts["kernel accepts"] += rows >= 0
        message = parsed(signal, data)
        self.counts["protobuf accepts"] += message is not None
        if message is not None and rows >= 0:
            self.counts["both accept"] += 1
            self.compare(signal, data, message, self._rows[:rows], own)
            for row, _, start, stop in self._cells[:cells].tolist():
                if not (0 <= row < rows and 0 <= start <= stop <= len(data)):
                    raise Disagreement("a cell lies outside the request")
        self.account(signal, data, message)
        if data:
            state = np.uint64(hash_one(buf, SEED) | np.uint64(1))
            rest = (SEED, wanted, lengths, links, self._cells, self._resources, CLASSES, kernel.OWN_SCOPE, 1024)
            self.counts["changed at random"] += STORM
            self.counts["of these the kernel accepts"] += storm(
                buf, STORM, state, (signal == Signal.LOGS, self._rows, *rest)
            )

    def compare(self, signal: Signal, data: bytes, message: Any, rows: Any, own: int) -> None:
        """What the kernel read against what protobuf read."""
        canonical = message.SerializeToString() == data
        ours, records = 0, []
        for scope_name, record in records_of(signal, message):
            if scope_name == "spanchain":
                ours += 1
            else:
                records.append(record)
        if canonical and ours != own:
            raise Disagreement(f"{own} records of our own scope, protobuf sees {ours}")
        if len(rows) + own != len(records) + ours:
            raise Disagreement(f"{len(rows)} + {own} records, protobuf sees {len(records)} + {ours}")
        if ours != own:
            return  # a scope given twice: protobuf merges, the kernel takes the last; which records are meant differs
        for row, record in zip(rows.tolist(), records, strict=True):
            (same_log if signal == Signal.LOGS else same_span)(data, row, record, canonical)

    def account(self, signal: Signal, data: bytes, message: Any) -> None:
        """The whole decoder: it raises nothing, and no record is lost without being counted."""
        if self.counts["inputs"] % FRESH == 0:
            self._decoder = new_decoder()
        before = self._decoder.own_records
        batch = self._decoder.decode(Payload(signal, "t", data, 0))
        if message is None:
            return
        seen = len(batch.rows) + sum(batch.rejected.values()) + self._decoder.own_records - before
        there = sum(1 for _ in records_of(signal, message))
        # A resource or scope that is damaged itself (a group in it) is one rejection, whatever it held.
        if seen != there and not batch.rejected.get("malformed"):
            raise Disagreement(f"{seen} records accounted for, protobuf sees {there}")


def new_decoder() -> Decoder:
    return Decoder(DecodeConfig(), JoinConfig(attributes=WANTED), Symbols(), 7)


def keys(names: tuple[str, ...]) -> tuple[Any, Any]:
    """As `Decoder` makes them."""
    lengths = 0
    for name in names:
        lengths |= 1 << len(name)
    hashes = [hash_one(np.frombuffer(name.encode(), np.uint8), SEED) for name in names]
    return np.array(hashes, np.uint64), np.uint64(lengths)


def parsed(signal: Signal, data: bytes) -> Any:
    try:
        return REQUESTS[signal].FromString(data)
    except DecodeError:
        return None


def records_of(signal: Signal, message: Any) -> Any:
    """(name of the scope, record) in the order of the request."""
    if signal == Signal.LOGS:
        return ((s.scope.name, r) for g in message.resource_logs for s in g.scope_logs for r in s.log_records)
    return ((s.scope.name, r) for g in message.resource_spans for s in g.scope_spans for r in s.spans)


def agree(what: str, read: int, expected: int) -> None:
    if read != expected:
        raise Disagreement(f"{what} is {read:#x}, protobuf reads {expected:#x}")


def same_span(data: bytes, row: list[int], span: Any, canonical: bool) -> None:
    number = int.from_bytes
    agree("trace id", row[kernel.TRACE_HI] << 64 | row[kernel.TRACE_LO], number(span.trace_id, "big"))
    agree("span id", row[kernel.SPAN], number(span.span_id, "big"))
    agree("parent", row[kernel.PARENT], number(span.parent_span_id, "big"))
    agree("start", row[kernel.TIME], span.start_time_unix_nano)
    agree("end", row[kernel.END], span.end_time_unix_nano)
    if canonical:
        agree("kind", row[kernel.KIND], 1 + (span.kind if 0 <= span.kind < 6 else 0))
        agree("status", row[kernel.STATUS], span.status.code & 255)
        same_text(data, row, span.name.encode())


def same_log(data: bytes, row: list[int], log: Any, canonical: bool) -> None:
    number = int.from_bytes
    if len(log.trace_id) == 16 and any(log.trace_id):  # else it may be found elsewhere in the record
        agree("trace id", row[kernel.TRACE_HI] << 64 | row[kernel.TRACE_LO], number(log.trace_id, "big"))
        if len(log.span_id) == 8:
            agree("span id", row[kernel.SPAN], number(log.span_id, "big"))
    agree("time", row[kernel.TIME], log.time_unix_nano or log.observed_time_unix_nano)
    if canonical:
        agree("severity", row[kernel.STATUS], log.severity_number if 0 <= log.severity_number < 25 else 0)
        if log.event_name:
            same_text(data, row, log.event_name.encode())
        elif log.body.WhichOneof("value") == "string_value":
            same_text(data, row, log.body.string_value.encode())


def same_text(data: bytes, row: list[int], expected: bytes) -> None:
    start, stop = row[kernel.TEXT] >> 32, row[kernel.TEXT] & 0xFFFFFFFF
    if data[start:stop] != expected:
        raise Disagreement(f"the text is {data[start:stop]!r}, protobuf reads {expected!r}")


@njit
def storm(buf: Any, times: int, state: Any, scan: Any) -> Any:
    """Scans `times` copies of `buf`, each with some bytes changed; returns how many the kernel accepts. Nothing is
    compared: this looks for reads outside (bounds are checked) and for loops that do not end, in great numbers."""
    is_log, rows, seed, wanted, lengths, links, cells, resources, classes, own, body_max = scan
    accepted = 0
    work = buf.copy()
    for _ in range(times):
        work[:] = buf
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        for i in range(1 + int(state & np.uint64(3))):
            place = int((state >> np.uint64(8 * i)) % np.uint64(buf.size))
            work[place] ^= np.uint8((state >> np.uint64(40 - 5 * i)) & np.uint64(255))
        accepted += (
            kernel_scan(work, is_log, rows, seed, wanted, lengths, links, cells, resources, classes, own, body_max)[0]
            >= 0
        )
    return accepted


@njit(_nrt=False)
def beyond(buf: Any) -> Any:
    return buf[np.uint64(buf.size)]


def replay(fuzzer: Fuzzer, path: Path) -> int:
    """Checks the inputs in the file `path`: a line each, signal and bytes in hexadecimal. Returns how many."""
    lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
    for name, data in lines:
        fuzzer.check(Signal[name], bytes.fromhex(data))
    return len(lines)


def main() -> None:
    """Runs for the seconds and with the seed given."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
        try:
            beyond(np.zeros(3, np.uint8))
        except IndexError:
            pass
        else:
            raise SystemExit("bounds are not checked")
    fuzzer = Fuzzer(seed)
    for path in sys.argv[3:]:
        replay(fuzzer, Path(path))
    fuzzer.run(seconds)
    print(", ".join(f"{count} {name}" for name, count in fuzzer.counts.items()))


if __name__ == "__main__":
    main()
