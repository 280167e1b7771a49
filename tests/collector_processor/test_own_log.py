"""What came in with the data cannot write lines of our own log, nor command the terminal that shows it."""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Iterator

import pytest
import structlog

from collector_processor.config import Config
from collector_processor.own_log import log_plainly

FORGED = "2026-01-01T00:00:00.000000Z [info     ] all is well"
HOSTILE = [
    "\n" + FORGED,
    "\r\n" + FORGED,
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\u202egnp.exe",
    "\x9b2J",
    "\u2028" + FORGED,
]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where the log goes while the test runs."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log_plainly(Config().redaction)
    yield stream
    structlog.reset_defaults()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_in_its_line_as_plain_characters(written: io.StringIO, hostile: str) -> None:
    log = structlog.get_logger("test")
    log.warning("a sink refuses", error=hostile)
    log.error("an exporter failed", exc_info=ValueError(hostile))
    text = written.getvalue()
    assert "a sink refuses" in text
    assert "ValueError" in text
    assert not any(line.startswith("2026-01-01") for line in text.splitlines())
    assert {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}} <= {"\n"}
