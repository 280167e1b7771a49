"""How a kernel is compiled: one decorator for each kind of it.

How it works. numba wraps what it compiles for a call from Python and for one from C, which takes as long as compiling
much of the function itself. Nothing here is called from C, and most functions are called by other kernels only, so each
kind gets the wrappers that it needs. It counts references to the arrays that pass through a function unless told not
to, which is half of what a call costs: only a kernel that makes an array, or copies one into another by slices, needs
that.
"""

from __future__ import annotations

from typing import Any

from numba import njit

_ALONE = {"no_cfunc_wrapper": True, "no_cpython_wrapper": True}
_KEPT: dict[str, Any] = {"cache": True, "nogil": True, "no_cfunc_wrapper": True}

kernel = njit(_nrt=False, **_KEPT)
"""Called from Python; makes no array."""

allocating_kernel = njit(**_KEPT)
"""Called from Python; may make arrays."""

summing_kernel = njit(_nrt=False, fastmath={"reassoc", "contract"}, **_KEPT)
"""Called from Python; may add floats in another order, as vector instructions do."""

helper = njit(cache=True, _nrt=False, **_ALONE)
"""Called by kernels only, from Python it ends the process; makes no array."""

allocating_helper = njit(cache=True, **_ALONE)
"""The same; may make arrays."""

inlined = njit(forceinline=True, _nrt=False, **_ALONE)
"""The same, and so short that it becomes a part of each that calls it."""

expanded = njit(inline="always")
"""As if written in each place that calls it: for a function that takes several types, or returns more than numbers."""
