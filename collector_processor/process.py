"""The service as a process: memory, log and signals set up around `Service`, until somebody ends it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import threading
import time
from pathlib import Path

import structlog

from collector_processor.config import Config
from collector_processor.own_log import log_plainly
from collector_processor.runtime import Service, StartError

LOG = structlog.get_logger(__name__)
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of mallopt(3)
GIVE_BACK_S = 60.0  # between two times that free memory is given back


def run(config: Config, data: Path) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        StartError: it could not start.
    """
    os.umask(0o077)
    keep_memory_together()
    log_plainly(config.redaction)
    done = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: done.set())
    service = Service(config, data)
    service.start()
    gc.freeze()  # modules and kernels stay: a collection need not look at them
    gc.enable()
    LOG.info("serving", data=str(data), health=service.config.service.health.port)
    given_back = time.monotonic()
    while not done.wait(1.0):
        if service.failed:
            break
        if time.monotonic() - given_back >= GIVE_BACK_S:
            give_memory_back()
            given_back = time.monotonic()
    service.stop()
    if service.failed:
        raise StartError("the engine failed; see the log above")


def keep_memory_together() -> None:
    """Has glibc keep two arenas, and give large arrays back when they are freed; does nothing elsewhere.

    Requests are allocated in a receiver's thread and freed in the engine's: every thread's own arena would keep the
    holes, and memory grow for many minutes before they fit."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 1 << 20)


def give_memory_back() -> None:
    """Has glibc give the system the free pages inside of its arenas, which takes some 10 ms; does nothing elsewhere.

    By itself it gives back what is free at their ends. Chains wait out their quarantine in arrays of all sizes, so the
    holes between them would grow for half an hour before all new ones fit."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
