"""Every compiled kernel of the engine (numba). Short loops over bytes and columns; no policy, no I/O, no state of their
own.

A kernel that makes no array, nor copies one into another by slices, says `_nrt=False`: numba then counts no references
to the arrays that pass through it, which is half of what a call costs.

`NUMBA_DISABLE_JIT=1` runs them as plain Python, so that a debugger and coverage see them. `python -m
collector_processor.warmup` compiles all of them into numba's on-disk cache.
"""

from __future__ import annotations

import importlib
import sys


def _without_blas() -> None:
    """Loads numba's array functions without scipy's linear algebra: numba imports it only to see whether it is there,
    which takes as long as a third of all other imports, and no kernel multiplies matrices."""
    if "scipy.linalg" in sys.modules or "numba.np.arraymath" in sys.modules:
        return
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        del sys.modules["scipy.linalg"]


_without_blas()
importlib.import_module("collector_processor.kernels.cache").use()  # brings numba, so not before
