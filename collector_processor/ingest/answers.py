"""What an ingest request is answered, independent of the transport, and the counters of ingest.

How it works. `Handler` gives an `Answer`; the gRPC and the HTTP server each turn it into their own words. Only `RETRY`
makes a Collector keep a batch and send it again; every other refusal makes it drop the batch.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

RETRY_AFTER_MAX_S = 30


class Code(Enum):
    """The kinds of answer, with their gRPC and HTTP status."""

    OK = (0, 200)
    INVALID = (3, 400)  # INVALID_ARGUMENT
    FORBIDDEN = (7, 403)  # PERMISSION_DENIED
    TOO_LARGE = (8, 413)  # RESOURCE_EXHAUSTED; without RetryInfo it is permanent
    RETRY = (14, 503)  # UNAVAILABLE
    UNAUTHENTICATED = (16, 401)

    @property
    def grpc(self) -> int:
        """Status code of gRPC, which is the `code` of google.rpc.Status as well."""
        return self.value[0]

    @property
    def http(self) -> int:
        """Status code of HTTP."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Answer:
    """rejected: records of an OK request that were not taken. retry_after_s: for RETRY only, whole seconds."""

    code: Code
    message: str = ""
    rejected: int = 0
    retry_after_s: int = 0


class RefusedError(Exception):
    """Why a request is not taken: raised inside ingest, answered at its edge.

    reason: a label for the counter. message: for the sender; it never holds a secret or what was sent.
    """

    def __init__(self, code: Code, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    @property
    def answer(self) -> Answer:
        return Answer(self.code, str(self))


class RetryLaterError(RefusedError):
    """Raised by a sink that cannot take the payload now: it is full, the disk is, or the service is stopping."""

    def __init__(self, reason: str, message: str, retry_after_s: int = 1) -> None:
        super().__init__(Code.RETRY, reason, message)
        self.retry_after_s = max(1, min(RETRY_AFTER_MAX_S, retry_after_s))

    @property
    def answer(self) -> Answer:
        return Answer(self.code, str(self), retry_after_s=self.retry_after_s)


class Counters:
    """Counts by (name, labels), for whoever exposes metrics. Labels are (key, value) pairs from small fixed sets.

    | name | labels | counts |
    |---|---|---|
    | records_received_total | signal, transport | records that arrived, rejected ones and our own included |
    | records_rejected_total | signal, reason | records left out; reason `own` is our own output, dropped by intention |
    | records_repaired_total | signal, reason | records and resources that were changed to be acceptable |
    | requests_total | signal, transport, code | answered requests |
    | requests_refused_total | transport, reason | requests that were not taken |
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def add(self, name: str, amount: int = 1, /, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + amount

    def get(self, name: str, /, **labels: str) -> int:
        return self._counts.get((name, tuple(labels.items())), 0)

    def snapshot(self) -> MappingProxyType[tuple[str, tuple[tuple[str, str], ...]], int]:
        """A copy of all counts."""
        with self._lock:
            return MappingProxyType(dict(self._counts))
