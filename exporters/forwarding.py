"""What an exporter needs that forwards the originals: the journal, as something to read, and the engine's time.

How it works. The runtime hands the journal in before the exporter starts, and says after each turn how far the engine
has come, so that the exporter knows which verdicts cannot come any more. What it has not passed stays in the journal.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from collector_processor.model import Payload
from exporters.protocol import Exporter


class Reader(Protocol):
    """Follows what was acknowledged."""

    def read(self, bytes_max: int) -> list[tuple[int, Payload]]:
        """(position, payload) of about `bytes_max` bytes more, in order; nothing when there is nothing by now. Raises
        `OSError` when it should be tried again."""
        ...

    def pass_to(self, position: int) -> None:
        """What is before `position` is not needed any more."""
        ...


class Source(Protocol):
    """What was acknowledged, in the order in which the engine has it."""

    @property
    def durable(self) -> int:
        """The position behind the last."""
        ...

    def tail(self, position: int) -> Reader:
        """A reader from `position` on."""
        ...


@runtime_checkable
class Forwarding(Exporter, Protocol):
    """An exporter that forwards the originals."""

    def attach(self, source: Source) -> None:
        """Before `start`: what to forward."""
        ...

    def advance(self, now_ns: int) -> None:
        """Every verdict that was due by `now_ns` has been given. Engine's thread; never blocks."""
        ...
