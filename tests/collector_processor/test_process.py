"""Memory that the service has freed goes back to the system, also from between what it still holds."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from collector_processor.process import give_memory_back, keep_memory_together

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

keep_memory_together()
blocks = [bytes(200_000) for _ in range(1000)]
for block in blocks:
    assert not any(block[::4096])
kept = blocks[::2]
del blocks
with_holes = resident()
give_memory_back()
print(with_holes - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_holes_between_what_is_held_are_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert float(told.stdout) > 60  # MiB, of 95 that were freed
