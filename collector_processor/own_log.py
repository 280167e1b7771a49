"""The service's own log: plain lines on standard error, in which nothing that came in with the data can do harm.

How it works. What is logged may quote what a sender or a backend said. So texts are redacted, and characters that end a
line, command a terminal or hide are written out, as Python would. A traceback has lines, and ends with the text of an
exception: they are indented, so that none passes for a line of the log.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from functools import partial
from typing import Any

import structlog

from collector_processor.config import RedactionConfig
from collector_processor.redact import Redactor, redacted_event


def log_plainly(redaction: RedactionConfig) -> None:
    """Log lines on standard error, `key=value` after a message; tracebacks without local variables, which hold data,
    and nothing of what `redaction` says must not be logged."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            partial(redacted_event, Redactor(redaction)),
            inert,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def inert(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """A step of structlog's: every text shown character by character, and every line of a traceback indented."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(f"    {_shown(line)}" for line in str(value).splitlines())
        elif isinstance(value, str):
            event[key] = _shown(value)
    return event


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
