"""The service as a process: memory, logging and signals set up around `Service`, until somebody ends it."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import structlog

from collector_processor.config import Config, RedactionConfig
from collector_processor.redact import Redactor, redacted_event
from collector_processor.runtime import Service, StartError

LOG = structlog.get_logger(__name__)
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of mallopt(3)


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
    while not done.wait(1.0):
        if service.failed:
            break
    service.stop()
    if service.failed:
        raise StartError("the engine failed; see the log above")


def log_plainly(redaction: RedactionConfig) -> None:
    """Log lines on standard error, `key=value` after a message; tracebacks without local variables, which hold data,
    and nothing of what `redaction` says must not be logged."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            partial(redacted_event, Redactor(redaction)),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def keep_memory_together() -> None:
    """Has glibc keep two arenas, and give large arrays back when they are freed; does nothing elsewhere.

    Requests are allocated in a receiver's thread and freed in the engine's: every thread's own arena would keep the
    holes, and memory grow for many minutes before they fit."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
