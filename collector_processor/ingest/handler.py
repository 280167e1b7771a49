"""What happens to an export request, whichever way it came: limits, repair, arrival time, journal, answer.

How it works. A transport has authenticated the sender and hands over raw bytes. They are decompressed within bounds;
JSON becomes protobuf; `clean` counts what is inside before anything is built from it, and takes out what is damaged and
what is our own output. What remains goes to the sink, which returns once it is durable; only then is the request
acknowledged. No step works per record in Python.

What it composes with is injected, so that ingest knows neither the engine nor the journal.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from collector_processor.config import LimitsConfig
from collector_processor.ingest.answers import Answer, Code, Counters, RefusedError, RetryLaterError
from collector_processor.ingest.inflate import inflate
from collector_processor.model import Payload, Signal

LOG = structlog.get_logger(__name__)


class CleanedRequest(Protocol):
    """What `clean` gives; see `decode.repair.Cleaned`."""

    @property
    def data(self) -> bytes: ...
    @property
    def records(self) -> int: ...
    @property
    def own(self) -> int: ...
    @property
    def rejected(self) -> dict[str, int]: ...
    @property
    def repaired(self) -> dict[str, int]: ...


class Clean(Protocol):
    """`decode.repair.clean`. Errors: ValueError when there is more in the request than the limits allow."""

    def __call__(
        self, data: bytes, signal: Signal, *, records_max: int, elements_max: int, keep_damaged: bool
    ) -> CleanedRequest: ...


Sink = Callable[[Payload], None]
"""Takes a payload and returns once it is as durable as configured. Errors: RetryLaterError when it cannot now."""


class Handler:
    """One for all transports. `handle` may be called from any number of threads."""

    def __init__(
        self,
        limits: LimitsConfig,
        sink: Sink,
        clean: Clean,
        from_json: Callable[[bytes, Signal], bytes],
        clock: Callable[[], int],
        counters: Counters,
    ) -> None:
        """clock: nanoseconds since 1970. from_json: OTLP JSON to protobuf, ValueError when it is not."""
        self.limits = limits
        self.counters = counters
        self._sink = sink
        self._clean = clean
        self._from_json = from_json
        self._clock = clock
        self._lock = threading.Lock()
        self._inflight = 0

    def handle(
        self,
        signal: Signal,
        tenant: str,
        transport: str,
        body: bytes,
        *,
        encoding: str = "identity",
        is_json: bool = False,
    ) -> Answer:
        """The answer to one request. encoding: how `body` is compressed, a key of `inflate.PIECES` or `identity`."""
        try:
            with self.holding(len(body)):
                answer = self._taken(signal, tenant, transport, body, encoding, is_json)
        except RefusedError as refused:
            answer = self.refused(transport, refused)
        except Exception:
            LOG.exception("request not handled", signal=signal.name.lower(), transport=transport, bytes=len(body))
            answer = self.refused(transport, RetryLaterError("internal", "the service failed", 5))
        labels = {"signal": signal.name.lower(), "transport": transport, "code": answer.code.name.lower()}
        self.counters.add("requests_total", **labels)
        return answer

    def refused(self, transport: str, refused: RefusedError) -> Answer:
        """The answer to a request that is not taken; counted by its reason."""
        self.counters.add("requests_refused_total", transport=transport, reason=refused.reason)
        return refused.answer

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Accounts for `size` bytes in memory. Errors: RetryLaterError when all requests together hold too many."""
        with self._lock:
            if self._inflight + size > self.limits.inflight_bytes_max:
                raise RetryLaterError("inflight", "too many requests at once")
            self._inflight += size
        try:
            yield
        finally:
            with self._lock:
                self._inflight -= size

    def _taken(self, signal: Signal, tenant: str, transport: str, body: bytes, encoding: str, is_json: bool) -> Answer:
        if signal == Signal.METRICS:  # a Collector may send all signals to one exporter: no reason to refuse
            return Answer(Code.OK)
        data = inflate(body, encoding, self.limits.request_bytes_max)
        with self.holding(max(0, len(data) - len(body))):
            if is_json:
                try:
                    data = self._from_json(data, signal)
                except ValueError as error:
                    raise RefusedError(Code.INVALID, "bad_json", f"body is not OTLP JSON: {error}"[:500]) from error
            return self._cleaned_and_kept(signal, tenant, transport, data)

    def _cleaned_and_kept(self, signal: Signal, tenant: str, transport: str, data: bytes) -> Answer:
        limits = self.limits
        try:
            cleaned = self._clean(
                data,
                signal,
                records_max=limits.records_max,
                elements_max=limits.elements_max,
                keep_damaged=limits.damaged_records == "repair",
            )
        except ValueError as error:
            raise RefusedError(Code.TOO_LARGE, "too_many", str(error)) from error
        rejected = sum(cleaned.rejected.values())
        if data and not cleaned.data and cleaned.rejected and not cleaned.records:
            raise RefusedError(Code.INVALID, "malformed", "body is not an OTLP request")
        if cleaned.records:
            self._sink(Payload(signal, tenant, cleaned.data, self._clock()))
        self._count(signal, transport, cleaned, rejected)
        if not rejected:
            return Answer(Code.OK)
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(cleaned.rejected.items()))
        return Answer(Code.OK, f"records rejected ({reasons})", rejected)

    def _count(self, signal: Signal, transport: str, cleaned: CleanedRequest, rejected: int) -> None:
        name = signal.name.lower()
        add = self.counters.add
        add("records_received_total", cleaned.records + rejected + cleaned.own, signal=name, transport=transport)
        for reason, count in cleaned.rejected.items():
            add("records_rejected_total", count, signal=name, reason=reason)
        if cleaned.own:
            add("records_rejected_total", cleaned.own, signal=name, reason="own")
        for reason, count in cleaned.repaired.items():
            add("records_repaired_total", count, signal=name, reason=reason)
