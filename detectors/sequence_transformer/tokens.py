"""Events -> the feature vectors that the Transformer reads: text and flags, no ids, so that it works on unseen systems.

| columns | meaning |
|---|---|
| 0-63 | hashed n-grams of the text |
| 64 | the event is a log line |
| 65 | the head: the span in which the lane runs |
| 66 | (head) the lane is of calls, else of logs |
| 67 | the end of the lane |
"""

from __future__ import annotations

import numpy as np

from collector_processor.kernels.lanes import CALLS
from collector_processor.model import F32, Symbols
from detectors.familiarity import grown
from detectors.hashing import folded, ngrams

TEXT = 64
IS_LOG, IS_HEAD, OF_CALLS, IS_END = 64, 65, 66, 67
FEATURES = 68
LENGTH = 48  # positions that the model sees at once, the head included
OVERLAP = 16  # positions of the part before that a further part of a long lane sees again


def text_features(text: str, *, is_log: bool) -> F32:
    """float32[FEATURES] of an event."""
    out = np.zeros(FEATURES, np.float32)
    out[:TEXT] = folded(*ngrams(text), TEXT)
    out[IS_LOG] = is_log
    return out


def head_features(event: F32 | None, kind: int) -> F32:
    """float32[FEATURES] of the head of a lane of `kind`; None: the top of a chain."""
    out = np.zeros(FEATURES, np.float32) if event is None else event.copy()
    out[IS_HEAD] = 1.0
    out[OF_CALLS] = kind == CALLS
    return out


def end_features() -> F32:
    """float32[FEATURES] of the end."""
    out = np.zeros(FEATURES, np.float32)
    out[IS_END] = 1.0
    return out


class EventFeatures:
    """Features of the events of `symbols`, each made once."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.rows = np.zeros((64, FEATURES), np.float32)  # with room for more
        self.made = 0

    def all(self) -> F32:
        """float32[events, FEATURES]: of every event so far."""
        events = len(self.symbols.events)
        if events > self.made:
            self.rows, is_log = grown(self.rows, events), self.symbols.events.column("is_log")
            for event in range(self.made, events):
                self.rows[event] = text_features(self.symbols.events.text[event], is_log=bool(is_log[event] > 0))
            self.made = events
        return self.rows[:events]
