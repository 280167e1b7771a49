"""Every compiled kernel of the engine (numba). Short loops over bytes and columns; no policy, no I/O, no state of their
own.

`NUMBA_DISABLE_JIT=1` runs them as plain Python, so that a debugger and coverage see them. `python -m
collector_processor.warmup` compiles all of them into numba's on-disk cache.
"""
