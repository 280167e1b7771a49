"""What the display gets to see of verdicts and incidents."""

from __future__ import annotations

from verdicts import verdicts

from collector_processor.demo.watcher import LAST, Watcher


def test_counts_and_keeps_the_newest_unusual_chains():
    watcher = Watcher()
    watcher.export(verdicts(5, 2), [])
    watcher.export(verdicts(4, 0, first_trace=10), [])
    watcher.export(verdicts(20, LAST + 3, first_trace=20), [])
    view = watcher.view()
    assert (view.chains, view.unusual) == (29, LAST + 5)
    assert view.records == 29 * 4
    assert [int(unusual.trace_id, 16) for unusual in view.last] == list(range(40 - LAST, 40))
    newest = view.last[-1]
    assert (newest.flow, newest.kind, newest.severity) == ("gateway pay", "slow_operation", "critical")
    assert newest.score > 0.99


def test_incidents_are_given_once(incident):
    watcher = Watcher()
    first, second = incident("a", 1, "risk"), incident("b", 2, "risk")
    watcher.export(verdicts(0, 0), [first])
    watcher.export(verdicts(0, 0), [second])
    assert watcher.view().incidents == (first, second)
    assert watcher.view().incidents == ()
    assert watcher.view().chains == 0


def test_nothing_ever_waits():
    watcher = Watcher()
    watcher.start()
    assert watcher.flush(0.0)
    watcher.checkpointed()
    watcher.shutdown(0.0)
    watcher.shutdown(0.0)
