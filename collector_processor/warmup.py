"""`python -m collector_processor.warmup`: compiles every kernel into numba's cache, and every module that a start
imports into Python's, so that the first start takes no longer than any other.

How it works. A kernel is compiled for the types that it is called with, so the surest list of those is a run of the
real thing: some minutes of simulated payments, as protobuf and as JSON, with a damaged record, through an engine with
all detectors. Modules need no run, but many environments tell Python to keep no bytecode: then each start would compile
a thousand of them again, which takes longer than all else that a start does.
"""

from __future__ import annotations

import compileall
import gc
import importlib
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import zstandard
from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector_processor.config import Config, RedactionConfig
from collector_processor.decide.budget import Budget
from collector_processor.decide.incidents import SEEN
from collector_processor.decide.repeats import KINDS
from collector_processor.decode.otlp_json import to_protobuf
from collector_processor.decode.repair import clean, repair
from collector_processor.engine import Engine
from collector_processor.ingest.inflate import inflate
from collector_processor.kernels import closed, elements, peek, sequence, spans, variants
from collector_processor.kernels.calibrate import goes_through
from collector_processor.kernels.incidents import about, note
from collector_processor.kernels.rules import matches
from collector_processor.kernels.table import move
from collector_processor.kernels.windows import patient
from collector_processor.model import ChainBatch, Payload, Signal, Symbols, no_findings
from collector_processor.redact import Masker, Redactor
from collector_processor.simulator.simulator import Simulator
from detectors.registry import DETECTORS

START_NS = 1_700_000_000_000_000_000
SECONDS = 180  # longer than the quarantine, so that detectors learn
DAMAGED = b"\x0a\x09\x12\x07\x12\x05\x2a\x03\x0a\x01\xff"  # a request with one log whose text is not UTF-8
FIRST_HALF = ("chain_sequence", "sequence_transformer")  # detectors, by what there is to compile
SECOND_HALF = ("retrieval", "context", "online")
AMOUNTS = ("payment.amount", "payment.debit.amount", "payment.credit.amount")
REQUESTS = {Signal.TRACES: ExportTraceServiceRequest, Signal.LOGS: ExportLogsServiceRequest}


def config(detectors: Iterable[str]) -> Config:
    """Those detectors, with rules."""
    sections: dict[str, Any] = {name: {"enabled": name in detectors} for name in DETECTORS}
    sections["context"]["rules"] = ["payments"]
    return Config.model_validate({"join": {"attributes": AMOUNTS}, "detectors": sections})


def payments() -> Iterator[Payload]:
    """What the simulated platform sends."""
    for signal, data, time_ns in Simulator(seed=1, start_ns=START_NS).payloads(START_NS + SECONDS * 1_000_000_000):
        yield Payload(Signal(signal), "default", data, time_ns)


def warm_up() -> int:
    """Runs everything once; gives the number of chains that came of it."""
    receive()
    receive_json()
    seldom_needed()
    return judge()


def first_half() -> int:
    """What one of two processes compiles, and then what is left: most of it is in the cache by then."""
    judge(FIRST_HALF)
    return judge()


def second_half() -> None:
    """What the other compiles meanwhile. The engine comes late, so that its first stages are in the cache by then."""
    receive()
    receive_json()
    seldom_needed()
    judge(SECOND_HALF)


def receive() -> None:
    """What happens to a request before it reaches the engine, and on its way past it."""
    for payload in islice(payments(), 4):
        buffer = np.frombuffer(payload.data, np.uint8)
        clean(payload.data, payload.signal)
        peek.peek(buffer, np.zeros(3, np.int64), np.zeros((2, peek.SAMPLE), np.int64))
        spans.rows_of(payload.data)
    for signal in REQUESTS:
        Masker(RedactionConfig())(DAMAGED, signal)
    Redactor(RedactionConfig())("4111 1111 1111 1111")
    repair(DAMAGED, Signal.LOGS)
    inflate(zstandard.compress(DAMAGED), "zstd", 1024)


def receive_json() -> None:
    """The same of a request in JSON."""
    for signal, request in REQUESTS.items():
        to_protobuf(MessageToJson(request()).encode(), signal)


def judge(detectors: Iterable[str] = DETECTORS) -> int:
    """The engine; the number of chains."""
    engine = Engine(config(detectors))
    chains = 0
    for payload in payments():
        chains += sum(map(len, engine.process((payload,), payload.arrival_ns).verdicts))
    engine.restore(engine.snapshot())
    return chains + sum(map(len, engine.flush().verdicts))


def seldom_needed() -> None:
    """Calls the kernels for unusual chains, open incidents and full tables, which the payments do not come to."""
    symbols = Symbols()
    batch, service = ChainBatch.empty(symbols), symbols.events.column("service")
    goes_through(batch.offsets, batch.event, service, np.zeros(1, np.int32), np.zeros(len(batch), np.bool_))
    Budget(1.0, 1.0).clear(batch.outcome, batch.flow, np.zeros(0), 1.0, np.zeros(0, np.bool_))
    patient(0, 0, 1)
    seen, rows = np.zeros(0, SEEN), np.zeros(0, np.int64)
    note(no_findings(), batch.outcome, KINDS, 1.0, batch.flow, batch.trace_hi, batch.trace_lo, seen, rows)
    about(seen, np.zeros(1, np.int32), 0, rows, rows, rows)
    none, number, numbers = np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(1)
    ids, hashes, shares = np.zeros(1, np.int32), np.zeros(1, np.uint64), np.zeros(1, np.float32)
    sequence.nearest(0, none, ids, number, number, hashes, numbers)
    of_rows, of_steps = (ids, numbers, numbers, numbers), (number, number, ids, numbers, ids, numbers)
    sequence.judge(0, ids, number, number, hashes, hashes, none, 0.0, *of_rows, *of_steps)
    variants.describe(none, number, batch.kind, batch.status, ids, ids, ids, ids, ids[None])
    variants.novelty_rate(np.zeros(2))
    of_variants = (ids, ids, shares, shares, shares, shares, 0.0, 1.0, shares[0], shares[0])
    variants.refresh(none, *of_variants, shares, shares, shares)
    keys, values = np.zeros(2, np.uint64), np.zeros(2, np.int32)
    rings = (values[None], values[None], numbers[None], numbers[None])
    elements.say_windows(none, keys, values, values, values, numbers, *rings, none[None], no_findings())
    move(keys, values, keys, values)
    matches(0, np.uint8(0), np.uint8(0), number, number)
    closed.move(keys, keys)
    closed.forget(keys, 1)


def keep_bytecode() -> None:
    """Has the bytecode of all modules kept that the service loads: of those that are loaded now, and of later ones."""
    for name in ("collector_processor.cli", "collector_processor.runtime"):
        importlib.import_module(name)
    sys.dont_write_bytecode = False  # what a detector imports in its first minutes comes in `judge`
    for module in list(sys.modules.values()):
        source = getattr(module, "__file__", None)
        if source and source.endswith(".py"):
            compileall.compile_file(source, quiet=2)


def main() -> None:
    """Compiles, in two processes, and says how long it took."""
    started = time.monotonic()
    keep_bytecode()
    # Nothing is let go of that collecting garbage would find, and looking for it takes an eighth of the time.
    with ProcessPoolExecutor(2, initializer=gc.disable) as pool:
        halves: list[Future[Any]] = [pool.submit(first_half), pool.submit(second_half)]
        for half in halves:
            half.result()
    print(f"kernels ready after {time.monotonic() - started:.0f} s")  # noqa: T201 (a command's output)


if __name__ == "__main__":
    main()
