"""The service's clock: the machine's time, except that it never goes back and never stands still.

How it works. A machine's clock can be set back, by hours, while the service runs or between two runs. Engine time must
not go back, and if it waited until the clock has come by again no chain would be complete for hours. So the time given
is the greater of two: the machine's, and the last one given plus what a clock that nobody can set has counted since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class ForwardClock:
    """Nanoseconds since 1970. Callable from any thread."""

    def __init__(self, wall: Callable[[], int] = time.time_ns) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._last_ns = 0
        self._steady_ns = time.monotonic_ns()

    def __call__(self) -> int:
        with self._lock:
            steady_ns = time.monotonic_ns()
            self._last_ns = max(self._wall(), self._last_ns + steady_ns - self._steady_ns)
            self._steady_ns = steady_ns
            return self._last_ns

    def not_before(self, now_ns: int) -> None:
        """It is later than this: an earlier run has said so."""
        with self._lock:
            self._last_ns = max(self._last_ns, now_ns)
