"""The queue between the engine and a sink: bounded, counted, patient, and never in the engine's way."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sinks import eventually

from collector_processor.config import QueueConfig
from exporters.backlog import DiskBacklog, Item
from exporters.prometheus.telemetry import Telemetry
from exporters.queue import Refused, RetryLater, WorkerQueue

FAST = QueueConfig(retry_initial_s=0.01, retry_max_s=0.05)
Make = Callable[..., WorkerQueue]


class Sink:
    """Takes items; `failing` is raised instead while it is set, `gate` makes it wait."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.batches: list[int] = []
        self.failing: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.attempts: list[float] = []

    def deliver(self, items: list[Item]) -> int:
        self.attempts.append(time.monotonic())
        self.gate.wait(30)
        if self.failing is not None:
            raise self.failing
        self.batches.append(len(items))
        self.taken += [bytes(item.payload).decode() for item in items]
        return 0


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.gate.set()


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry("1")


@pytest.fixture
def make(sink: Sink, telemetry: Telemetry) -> Iterator[Make]:
    """Makes started queues in front of `sink`."""
    made: list[WorkerQueue] = []

    def start(config: QueueConfig = FAST, **options: Any) -> WorkerQueue:
        queue = WorkerQueue("q", config, telemetry, sink.deliver, **options)
        queue.start()
        made.append(queue)
        return queue

    yield start
    sink.gate.set()
    for queue in made:
        queue.shutdown(5)


def item(number: int, size: int = 0) -> Item:
    payload = f"{number}".encode()
    return Item(payload, size or len(payload), key=f"{number}")


def items(*numbers: int) -> list[Item]:
    return [item(number) for number in numbers]


def names(*numbers: int) -> list[str]:
    return [f"{number}" for number in numbers]


def dropped(telemetry: Telemetry, reason: str) -> float:
    return telemetry.value("exporter_dropped_total", exporter="q", reason=reason)


@pytest.fixture(params=["memory", "disk"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Options of a queue in memory, and of one on disk."""
    return {"path": tmp_path / "q.queue"} if request.param == "disk" else {}


def test_items_arrive_once_and_in_order(make: Make, sink: Sink, telemetry: Telemetry, where: dict[str, Any]) -> None:
    queue = make(batch_items=7, **where)
    for start in range(0, 100, 10):
        queue.put(items(*range(start, start + 10)))
    assert eventually(lambda: len(sink.taken) == 100)
    assert sink.taken == names(*range(100))
    assert max(sink.batches) <= 7
    assert eventually(lambda: telemetry.value("exporter_sent_total", exporter="q") == 100)
    assert eventually(lambda: telemetry.value("exporter_queue_length", exporter="q") == 0)


def test_what_does_not_fit_is_dropped_at_once_and_counted(make: Make, sink: Sink, telemetry: Telemetry) -> None:
    sink.gate.clear()
    by_items = make(QueueConfig(items_max=10))
    started = time.monotonic()
    by_items.put(items(*range(25)))
    assert time.monotonic() - started < 1
    assert dropped(telemetry, "queue_full") == 15
    by_bytes = make(QueueConfig(bytes_max=1000))
    by_bytes.put([item(number, size=300) for number in range(5)])
    assert dropped(telemetry, "queue_full") == 15 + 2
    sink.gate.set()
    assert eventually(lambda: len(sink.taken) == 13)


def test_on_disk_the_bound_is_that_of_the_disk(make: Make, sink: Sink, telemetry: Telemetry, tmp_path: Path) -> None:
    sink.failing = RetryLater("down")
    queue = make(
        QueueConfig(items_max=10, disk_bytes_max=500, retry_initial_s=0.01, retry_max_s=0.02), path=tmp_path / "q.queue"
    )
    for start in range(0, 1000, 10):
        queue.put([Item(b"%010d" % number, 10, f"{number}") for number in range(start, start + 10)])
        assert queue.flush(5)
    assert len(queue) == 50
    assert dropped(telemetry, "queue_full") == 950
    sink.failing = None
    assert eventually(lambda: len(sink.taken) == 50)


def test_a_sink_that_fails_is_asked_again_with_growing_pauses(
    make: Make, sink: Sink, telemetry: Telemetry, where: dict[str, Any]
) -> None:
    sink.failing = RetryLater("http_503")
    queue = make(QueueConfig(retry_initial_s=0.1, retry_max_s=0.4), **where)
    queue.put(items(1))
    assert eventually(lambda: len(sink.attempts) == 5)
    sink.failing = None
    assert eventually(lambda: sink.taken == ["1"])
    pauses = [b - a for a, b in zip(sink.attempts, sink.attempts[1:], strict=False)]
    for pause, longest in zip(pauses, (0.1, 0.2, 0.4, 0.4), strict=False):
        assert pause >= longest / 2 * 0.98
    assert telemetry.value("exporter_retries_total", exporter="q", reason="http_503") == 5
    assert dropped(telemetry, "error") == 0


def test_pauses_differ_between_queues(sink: Sink, telemetry: Telemetry) -> None:
    """Many instances must not come back in step."""
    waits = set()
    for _ in range(20):
        queue = WorkerQueue("q", QueueConfig(retry_initial_s=1.0), telemetry, sink.deliver)
        now = time.monotonic()
        queue._retry("down", 0)
        waits.add(round(queue._try_at - now, 3))
    assert len(waits) > 10
    assert all(0.5 <= wait <= 1.01 for wait in waits)


def test_the_sink_says_how_long_to_wait(make: Make, sink: Sink) -> None:
    sink.failing = RetryLater("http_429", after_s=0.5)
    queue = make()
    queue.put(items(1))
    assert eventually(lambda: len(sink.attempts) == 1)
    sink.failing = None
    queue.put(items(2))
    assert eventually(lambda: len(sink.taken) == 2)
    assert sink.attempts[1] - sink.attempts[0] >= 0.5


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(Refused(), "refused"), (Refused("too_large"), "too_large"), (ValueError("a mistake of ours"), "error")],
)
def test_what_will_never_be_taken_is_counted_and_the_rest_goes_on(
    make: Make, sink: Sink, telemetry: Telemetry, where: dict[str, Any], failure: Exception, reason: str
) -> None:
    sink.failing = failure
    queue = make(**where)
    queue.put(items(1, 2))
    assert eventually(lambda: dropped(telemetry, reason) == 2)
    sink.failing = None
    queue.put(items(3))
    assert eventually(lambda: sink.taken == ["3"])


def test_what_the_sink_rejects_in_part_is_counted(telemetry: Telemetry) -> None:
    queue = WorkerQueue("q", FAST, telemetry, lambda items: 1)
    queue.start()
    queue.put(items(1, 2, 3))
    assert eventually(lambda: dropped(telemetry, "rejected") >= 1)
    assert queue.flush(5)
    sent = telemetry.value("exporter_sent_total", exporter="q")
    assert sent + dropped(telemetry, "rejected") == 3
    queue.shutdown(5)


def test_flush_waits_for_delivery_in_memory(make: Make, sink: Sink) -> None:
    queue = make()
    sink.gate.clear()
    queue.put(items(1))
    assert not queue.flush(0.2)
    threading.Timer(0.2, sink.gate.set).start()
    assert queue.flush(10)
    assert sink.taken == ["1"]


def test_flush_waits_only_for_the_disk_where_there_is_one(make: Make, sink: Sink, tmp_path: Path) -> None:
    queue = make(path=tmp_path / "q.queue")
    sink.gate.clear()
    queue.put(items(1))
    assert eventually(lambda: len(sink.attempts) == 1)
    queue.put(items(2))
    assert queue.flush(10)
    with sqlite3.connect(tmp_path / "q.queue") as db:
        assert db.execute("SELECT count(*) FROM item WHERE payload IS NOT NULL").fetchone() == (2,)
    db.close()


def test_shutdown_delivers_what_waits(make: Make, sink: Sink, where: dict[str, Any]) -> None:
    queue = make(batch_items=1, **where)
    queue.put(items(*range(30)))
    queue.shutdown(10)
    assert sink.taken == names(*range(30))


def test_shutdown_keeps_its_deadline_and_counts_what_is_lost(make: Make, sink: Sink, telemetry: Telemetry) -> None:
    sink.gate.clear()
    queue = make(batch_items=2)
    queue.put(items(1, 2, 3))
    started = time.monotonic()
    queue.shutdown(0.3)
    queue.shutdown(0.3)
    assert 0.3 <= time.monotonic() - started < 10, "the sink would keep it for ever"
    assert dropped(telemetry, "shutdown") == 3
    queue.put(items(4))
    assert dropped(telemetry, "shutdown") == 4, "what comes after the end is counted too"


def test_shutdown_tries_again_in_memory_until_the_deadline(make: Make, sink: Sink) -> None:
    sink.failing = RetryLater("down")
    queue = make()
    queue.put(items(1))
    threading.Timer(0.3, lambda: setattr(sink, "failing", None)).start()
    queue.shutdown(10)
    assert sink.taken == ["1"]


def test_what_is_on_disk_survives_a_shutdown_that_does_not_wait_for_a_dead_sink(
    make: Make, sink: Sink, telemetry: Telemetry, tmp_path: Path
) -> None:
    sink.failing = RetryLater("down")
    queue = make(path=tmp_path / "q.queue")
    queue.put(items(1, 2))
    started = time.monotonic()
    queue.shutdown(20)
    assert time.monotonic() - started < 5
    assert dropped(telemetry, "shutdown") == 0
    sink.failing = None
    make(path=tmp_path / "q.queue")
    assert eventually(lambda: sink.taken == ["1", "2"])


def test_the_delay_is_told_from_when_an_item_was_made_also_after_a_restart(
    make: Make, sink: Sink, telemetry: Telemetry, tmp_path: Path
) -> None:
    sink.failing = RetryLater("down")
    queue = make(path=tmp_path / "q.queue")
    queue.put([Item(b"1", 1, "1", made_at=time.time() - 40.0), *items(2)])
    queue.shutdown(20)
    assert telemetry.value("exporter_delay_seconds", exporter="q") == 0
    sink.failing = None
    make(path=tmp_path / "q.queue")
    assert eventually(lambda: telemetry.value("exporter_delay_seconds", exporter="q") == 2)
    [histogram] = [metric for metric in telemetry.collect() if metric.name == "spanchain_exporter_delay_seconds"]
    below = {sample.labels["le"]: sample.value for sample in histogram.samples if sample.name.endswith("_bucket")}
    assert (below["30.0"], below["60.0"]) == (1, 2)


def test_without_start_shutdown_returns_at_once(sink: Sink, telemetry: Telemetry, where: dict[str, Any]) -> None:
    queue = WorkerQueue("q", FAST, telemetry, sink.deliver, **where)
    queue.put(items(1))
    queue.shutdown(10)
    queue.shutdown(10)
    assert dropped(telemetry, "shutdown") == 1
    queue.start()
    assert sink.taken == []


def test_what_is_given_again_after_a_kill_is_not_sent_again(make: Make, sink: Sink, tmp_path: Path) -> None:
    killed = make(path=tmp_path / "q.queue")
    killed.put(items(1, 2))
    assert eventually(lambda: len(sink.taken) == 2)
    assert eventually(lambda: len(killed) == 0)
    after = make(path=tmp_path / "q.queue")
    after.put(items(1, 2, 3))
    assert eventually(lambda: len(sink.taken) == 3)
    assert after.flush(5)
    assert sink.taken == ["1", "2", "3"]


def test_a_disk_that_fails_costs_the_sink_nothing(
    make: Make, sink: Sink, telemetry: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make(path=tmp_path / "q.queue")

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(DiskBacklog, "append", full)
        queue.put(items(1, 2))
        assert eventually(lambda: sink.taken == ["1", "2"])
        sink.gate.clear()
        queue.put(items(3))
        assert eventually(lambda: len(sink.attempts) == 2)
        assert not queue.flush(0.2), "what is in memory only is not safe"
    sink.gate.set()
    queue.put(items(4))
    assert eventually(lambda: sink.taken == ["1", "2", "3", "4"])
    assert queue.flush(5)


def test_a_queue_that_waits_drops_nothing(sink: Sink, telemetry: Telemetry) -> None:
    queue = WorkerQueue("q", QueueConfig(items_max=3, bytes_max=10), telemetry, sink.deliver, wait_when_full=True)
    queue.start()
    for number in range(200):
        queue.put([item(number), item(number + 1000, size=50)])
    queue.shutdown(10)
    assert len(sink.taken) == 400
    assert telemetry.value("exporter_sent_total", exporter="q") == 400


def test_many_threads_put(make: Make, sink: Sink, where: dict[str, Any]) -> None:
    queue = make(**where)
    threads = [
        threading.Thread(target=lambda worker=worker: [queue.put([item(worker * 1000 + n)]) for n in range(100)])
        for worker in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eventually(lambda: len(sink.taken) == 400)
    assert len(set(sink.taken)) == 400
