"""Card numbers and secrets that a sender writes wherever it can are in nothing that is kept, sent or logged.

How it works. Payments run for minutes of engine time, break, and make incidents; their records carry card numbers and a
token in every place that takes text, spelled in many ways. Then all that comes out is searched: verdicts, incidents,
pages, metrics, files of the store and of checkpoints, log lines. The journal alone holds what was sent, and not even
that when requests are masked before.
"""

from __future__ import annotations

import random
import re
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import structlog
from otlp import MS, T0, log, logs, span, traces
from sinks import Behaviour, HttpSink
from verdicts import incident, rows, verdicts

from collector_processor.config import AlertmanagerConfig, Config
from collector_processor.decide.verdicts import incident_row, verdict_rows
from collector_processor.engine import Engine
from collector_processor.ingest.auth import Authenticator, UnauthenticatedError
from collector_processor.journal.checkpoint import write_checkpoint
from collector_processor.model import Incident, Payload, Signal
from collector_processor.redact import Redactor, redacted_event
from collector_processor.runtime import Service
from exporters.alertmanager.alerts import alert
from exporters.prometheus.telemetry import Telemetry
from exporters.registry import Surroundings, build
from tests.e2e.processes import http_get

SECOND = 1_000_000_000
SERVICES = ("gateway", "order", "risk", "ledger")
TOKEN = "sQuEaMiShOsSiFrAgE"  # no digit in it: nothing masks it as a number


def card(chance: random.Random) -> str:
    """A card number of 16 digits."""
    digits = chance.choice(("4", "51", "37", "6011", "2221"))
    digits += "".join(chance.choices("0123456789", k=15 - len(digits)))
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if index % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


class Sender:
    """Payments that leak. `planted` is what must be seen nowhere. wide: some of it in digits of another script, which
    masks of requests leave."""

    def __init__(self, seed: int, *, wide: bool = True) -> None:
        self.chance = random.Random(seed)
        self.wide = wide
        self.planted: set[str] = set()

    def spelled(self) -> tuple[str, str]:
        """A new card number, plain and as somebody might write it."""
        number = card(self.chance)
        self.planted.add(number)
        separator = self.chance.choice(("", " ", "-", ".", "\u00a0", "%20", "\u200b"))
        return number, separator.join(number[i : i + 4] for i in range(0, 16, 4))

    def payment(self, trace: int, at_ms: float, steps: int) -> tuple[list[Any], list[Any]]:
        """Spans and logs of a payment through `steps` services."""
        spans, lines = [], []
        for step, service in enumerate(SERVICES[:steps]):
            number, text = self.spelled()
            seldom = trace % 50 == 7
            attributes = {
                "payment.id": text,
                "payment.amount": int(number),
                "fee": float(number),
                f"key {text}": text,
                "http.request.header.authorization": f"Bearer {TOKEN}",
            }
            name = f"{service} work"
            if step == 2:
                name = f"{service} work{text}" if trace % 3 else f"GET /cards/{text}?token={TOKEN}"
            spans.append(
                span(
                    *(trace, step + 1, step),
                    name=name,
                    service=f"{service} {text}" if seldom else service,
                    start_ms=at_ms + step,
                    ms=40 - 10 * step,
                    attributes=attributes,
                )
            )
            bodies = (
                f"{service} charged card {text} now",
                {"card": number, "message": f"paid with {text}", "password": TOKEN},
                f"Authorization: Bearer {TOKEN}",
                f"password={TOKEN} for x{text}",
                number.translate({ord(str(n)): 0xFF10 + n for n in range(10 * self.wide)}),
            )
            linked = trace if trace % 4 else 0
            at = at_ms + step + 0.5
            lines.append(log(bodies[trace % 5], linked, (step + 1) * bool(linked), service=service, at_ms=at))
            lines.append(log("booked", 0, 0, service=service, at_ms=at, attributes={"payment.id": text}))
        return spans, lines

    def second(self, second: int, broken: bool, now: int, at_ms: float) -> list[Payload]:
        """Four payments, of which three stop half way when `broken`."""
        spans, lines = [], []
        for n in range(4):
            more = self.payment(1 + second * 4 + n, at_ms + 200 * n, 2 if broken and n else 4)
            spans += more[0]
            lines += more[1]
        return [
            Payload(Signal.TRACES, "default", traces(*spans), now),
            Payload(Signal.LOGS, "default", logs(*lines), now),
        ]


def leaks(data: bytes, planted: Iterable[str]) -> list[str]:
    """The planted numbers and secrets that stand in `data`, as text, as an integer or as a float."""
    planted = set(planted)
    text = data.decode("utf-8", "replace")
    squeezed = re.sub(r"%20|[\s\u200b.\-]", "", text)
    runs = ("".join(str(int(digit)) for digit in run) for run in re.findall(r"\d{16,}", squeezed))
    found = {run[i : i + 16] for run in runs for i in range(len(run) - 15)} & planted
    numbers = np.array(sorted(map(int, planted)), np.int64)
    for offset in range(8):
        words = np.frombuffer(data[offset : offset + (len(data) - offset) // 8 * 8], np.int64)
        found |= {f"{number} in binary" for number in numbers[np.isin(numbers, words)].tolist()}
        found |= {
            f"{number} in binary" for number in numbers[np.isin(numbers.astype(float), words.view(float))].tolist()
        }
    return sorted(found) + [TOKEN] * (TOKEN in text)


def test_leaks_are_seen() -> None:
    number = "4111111111111111"
    for data in (f"x{number}x".encode(), b"4111 1111-1111.1111", struct.pack("<d", float(number))):
        assert leaks(data, [number])
    assert leaks(TOKEN.encode(), []) == [TOKEN]
    assert leaks(b"4111111111111112", [number]) == []


@pytest.mark.slow
def test_nothing_that_the_engine_says_or_keeps_holds_what_was_planted(tmp_path: Path) -> None:
    settings = {"attributes": ["payment.amount", "fee"], "chains_max": 5000, "records_max": 50_000}
    engine, sender = Engine(Config.model_validate({"join": settings})), Sender(1)
    said: list[bytes] = []
    incidents: list[Incident] = []
    for second in range(150):
        now = T0 + (second + 1) * SECOND
        for payload in sender.second(second, second >= 125, now, second * 1000):
            output = engine.process((payload,), now)
            said += [
                orjson.dumps(row) for batch in output.verdicts for row in verdict_rows(batch, np.arange(len(batch)))
            ]
            incidents += output.incidents
    write_checkpoint(tmp_path, 1, engine.snapshot())
    said += [path.read_bytes() for path in tmp_path.iterdir()]
    incidents += engine.flush().incidents
    pages = [incident_row(each) for each in incidents]
    said += [orjson.dumps(row) + orjson.dumps(alert(row, AlertmanagerConfig())) for row in pages]
    assert pages
    assert leaks(b"\n".join(said), sender.planted) == []
    # What is no card number is still there.
    assert {"gateway work", "ledger work"} <= set(engine.symbols.events.text)


@pytest.mark.slow
@pytest.mark.parametrize("before_journal", [False, True])
def test_nothing_that_the_service_writes_holds_what_was_planted(
    tmp_path: Path, before_journal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    waits = {"wait_initial_s": 0.5, "wait_min_s": 0.5, "wait_max_s": 0.5, "idle_s": 0.5, "chains_max": 5000}
    settings = Config.model_validate(
        {
            "receivers": {"grpc": {"enabled": False}, "http": {"enabled": False}},
            "join": {"attributes": ["payment.amount", "fee"], "records_max": 50_000, **waits},
            "exporters": {"prometheus": {"port": 0}, "store": {"normal_share": 1}},
            "service": {"health": {"port": 0}},
            "redaction": {"before_journal": before_journal},
        }
    ).with_verdicts("all")
    service, sender = Service(settings, tmp_path), Sender(2, wide=not before_journal)
    service.start()
    sent = []
    try:
        for second in range(20):
            for payload in sender.second(second, second > 10, T0 + second * MS, second * 1000):
                sent.append(payload)
                service._sink(payload)
        deadline = time.monotonic() + 60
        while not (tmp_path / "verdicts.jsonl").stat().st_size and time.monotonic() < deadline:
            time.sleep(0.05)
        host, port = service.exporters["prometheus"].address  # type: ignore[attr-defined]
        metrics = http_get(f"http://{host}:{port}/metrics")
    finally:
        service.stop()
    assert (tmp_path / "verdicts.jsonl").stat().st_size
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    journal = [path for path in files if path.parent.name == "journal"]
    others = [path for path in files if path not in journal or path.name.startswith("checkpoint")]
    for path in files if before_journal else others:
        assert leaks(path.read_bytes(), sender.planted) == [], path
    assert leaks(metrics.encode() + str(capsys.readouterr()).encode(), sender.planted) == []
    assert leaks(b"".join(payload.data for payload in sent), sender.planted)


def test_our_own_log_holds_no_secret_even_in_a_traceback() -> None:
    redact = Redactor(Config().redaction)
    try:
        int(f"cannot charge 4111 1111 1111 1111 with Bearer {TOKEN}")
    except ValueError as error:
        event = {"event": f"password={TOKEN}", "number": 3, "error": error, "exc_info": True, "at": Path("/x")}
        event = structlog.processors.format_exc_info(None, "error", event)
    shown = redacted_event(redact, None, "error", event)
    assert leaks(str(shown).encode(), ["4111111111111111"]) == []
    assert shown["number"] == 3
    assert "ValueError" in shown["exception"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("answer", [401, 500])
def test_no_secret_of_the_configuration_is_shown_when_sinks_and_senders_fail(
    tmp_path: Path, protocol: str, answer: int, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "hunter2 is no word"
    headers = {"authorization": f"Bearer {secret}", "x-api-key": secret}
    with HttpSink() as sink:
        sink.behave(then=Behaviour(status=answer, body=f"not good: Bearer {secret}".encode()))
        retry = {"retry_initial_s": 0.01, "retry_max_s": 0.02}
        settings = {
            "otlp": {
                "enabled": True,
                "endpoint": sink.address,
                "protocol": protocol,
                "headers": headers,
                "queue": retry,
            },
            "alertmanager": {"enabled": True, "url": sink.address, "headers": headers, "queue": retry},
        }
        config = Config.model_validate(
            {
                "receivers": {"auth": {"credentials": [{"token": secret}, {"username": "u", "password": secret}]}},
                "exporters": {"prometheus": {"enabled": False}, "store": {"enabled": False}} | settings,
            }
        )
        telemetry = Telemetry("1")
        with structlog.testing.capture_logs() as lines:
            made = build(Surroundings(config.exporters, rows(), telemetry, tmp_path, "1"))
            for exporter in made.values():
                exporter.start()
                exporter.export(verdicts(3, 2), [incident()])
            deadline = time.monotonic() + 30
            while not sink.tried and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.2)
            for exporter in made.values():
                exporter.shutdown(0.5)
            authenticator = Authenticator(config.receivers.auth)
            for presented in ("Bearer wrong", "Basic !!", f"Digest {secret}", None):
                with pytest.raises(UnauthenticatedError) as refused:
                    authenticator.tenant(presented, None, (), "127.0.0.1")
                assert secret not in repr(refused.value)
    redactor = Redactor(config.redaction)
    shown = repr(config) + config.model_dump_json() + str(capsys.readouterr()) + repr([vars(e) for e in made.values()])
    assert "hunter2" not in shown + str([redacted_event(redactor, None, "warning", dict(line)) for line in lines])
    assert all("hunter2" not in path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file())
