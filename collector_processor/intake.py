"""What waits between the receivers, which have made it durable, and the engine, in the order of the journal.

How it works. A request is stamped with its arrival time before it is written, and handed on once it is durable; in
between it has a ticket. The engine takes all that waits at once, and with it the time up to which nothing else can
come: that of the earliest ticket, for what is being written now will be handed on with an older stamp.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from collector_processor.ingest.answers import RetryLaterError
from collector_processor.model import Payload


class Intake:
    """Requests between the receivers and the engine, in the order of the journal. Bounded by bytes."""

    def __init__(self, bytes_max: int, clock: Callable[[], int]) -> None:
        self._bytes_max = bytes_max
        self._clock = clock
        self._last_ns = 0
        self._changed = threading.Condition()
        self._arriving: dict[int, int] = {}  # ticket -> arrival time, of requests that are not durable yet
        self._tickets = 0
        self._waiting: list[tuple[int, Payload]] = []
        self._bytes = 0

    @contextmanager
    def arriving(self, payload: Payload) -> Iterator[Payload]:
        """The payload with its arrival time; until the block ends, engine time does not go past it.

        Raises:
            RetryLaterError: too much waits for the engine."""
        with self._changed:
            if self._bytes >= self._bytes_max:
                raise RetryLaterError("backlog", "the service is behind", 2)
            self._last_ns = max(self._last_ns, self._clock())
            self._tickets += 1
            ticket = self._tickets
            self._arriving[ticket] = self._last_ns
        try:
            yield replace(payload, arrival_ns=self._last_ns)
        finally:
            with self._changed:
                del self._arriving[ticket]

    def put(self, position: int, payload: Payload) -> None:
        """Adds a durable request; never blocks, for it is as good as acknowledged."""
        with self._changed:
            self._waiting.append((position, payload))
            self._bytes += len(payload.data)
            self._changed.notify()

    def take(self, wait_s: float) -> tuple[list[tuple[int, Payload]], int]:
        """(position, payload) of all that waits, after at most `wait_s` seconds of waiting for something; and the time
        up to which nothing else can come any more."""
        with self._changed:
            if not self._waiting:
                self._changed.wait(wait_s)
            taken, self._waiting, self._bytes = self._waiting, [], 0
            self._last_ns = max(self._last_ns, self._clock())
            return taken, min(self._arriving.values(), default=self._last_ns)
