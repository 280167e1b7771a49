"""Comparing engines by what they know: a hash of a snapshot, all of it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def digest(state: dict[str, Any]) -> str:
    """The hash. `state` is put in order meanwhile, where the order says nothing."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            value = [item for pair in value.items() for item in pair]
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, (list, tuple)):
            found.update(f"{len(value)} ".encode())
            for item in value:
                add(item)
        else:
            found.update(f"{value!r} ".encode())

    # Which template was asked for last depends on what a restart asks for anew, and matters where there are too many.
    state["decoder"]["templates"]["clusters"].sort(key=lambda cluster: cluster["number"])
    state["joiner"]["closed"]["entries"].sort()  # a set
    add(state)
    return found.hexdigest()
