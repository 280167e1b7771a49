"""The numbers behind `/metrics`: arrays that many threads add to, in bulk, and that a scrape reads.

How it works. Each metric of the table is a `Series`: label values -> row, and an array of values a row (a histogram:
counts a row and bucket). prometheus_client has no call that adds a whole batch, so this class is a collector of its
own: it keeps the arrays, and hands prometheus_client finished families, whose escaping and formats are used as they
are. Families made this way have no `_created` samples. A row once given is never taken back, so counters never fall;
when a metric has reached its bound, new label values share rows under `other` (see `metrics.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from collector_processor.model import F64, I64, U64
from exporters.prometheus.metrics import METRICS, OTHER, PREFIX, Metric

LABEL_MAX = 120  # characters of a label value; longer names that agree so far share a row


def label_value(text: str) -> str:
    """`text` as it may stand in a label: nothing that a terminal or a page obeys, bounded in length, valid UTF-8."""
    if len(text) <= LABEL_MAX and text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text[:LABEL_MAX])


@dataclass(frozen=True, slots=True)
class Sightings:
    """Where exemplars come from: one trace an observation. Those with a trace id of 0 make none."""

    trace_hi: U64  # [n]
    trace_lo: U64  # [n]
    span_id: U64  # [n]
    time_ns: I64  # [n] ascending


class Series:
    """All rows of one metric. Not thread-safe: `Telemetry` holds the lock."""

    def __init__(self, metric: Metric, series_max: int) -> None:
        self.metric = metric
        self.rows_max = max(series_max // metric.lines, len(metric.open_labels) + 2)
        self.rows: dict[tuple[str, ...], int] = {}
        self.shared: set[int] = set()  # the rows under `other`
        self.cells = len(metric.buckets) + 1
        self._bounds = np.array(metric.buckets)
        self.values = np.zeros((4, self.cells))  # a histogram: observations a bucket, not cumulated
        self.sums = np.zeros(4)
        self.exemplar = np.zeros((4, self.cells), np.dtype("u8, u8, u8, f8, i8")) if metric.exemplars else None
        for labels in metric.starts_at:
            self.row(labels)

    def row(self, labels: tuple[str, ...]) -> int:
        """The row of these label values, in the order of `metric.labels`; a shared one when the metric is full."""
        found = self.rows.get(labels)
        if found is not None:
            return found
        for step, (used_max, candidate) in enumerate(self._candidates(labels)):
            found = self.rows.get(candidate)
            if found is None and len(self.rows) < used_max:
                found = self._new(candidate)
            if found is not None:
                if step:
                    self.shared.add(found)
                return found
        raise AssertionError("the last candidate always has room")

    def _candidates(self, labels: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(rows in use below which it may become a row, label values), from the exact ones to `other` throughout.

        Each step keeps some rows free for the next, so that the coarse rows are there when the fine ones run out.
        """
        yield self.rows_max * 8 // 10, tuple(label_value(label) for label in labels)
        values = dict(zip(self.metric.labels, (label_value(label) for label in labels), strict=True))
        for label in reversed(self.metric.open_labels):
            values[label] = OTHER
            last = label == self.metric.open_labels[0]
            yield self.rows_max - 1 if last else self.rows_max * 9 // 10, tuple(values.values())
        yield self.rows_max, (OTHER,) * len(labels)

    def _new(self, labels: tuple[str, ...]) -> int:
        new = len(self.rows)
        if new == len(self.sums):
            self.values = np.concatenate([self.values, np.zeros_like(self.values)])
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)])
            if self.exemplar is not None:
                self.exemplar = np.concatenate([self.exemplar, np.zeros_like(self.exemplar)])
        self.rows[labels] = new
        return new

    def observe(self, rows: I64, values: F64, seen: Sightings | None = None) -> None:
        """Adds observations to a histogram; `rows` and `values` are [n]."""
        buckets = np.searchsorted(self._bounds, values, side="left")
        flat = rows * self.cells + buckets
        used = len(self.sums)
        self.values += np.bincount(flat, minlength=used * self.cells).reshape(used, self.cells)
        self.sums += np.bincount(rows, weights=values, minlength=used)
        if seen is not None:
            self.see(flat, values, seen)

    def see(self, flat: I64, values: F64, seen: Sightings) -> None:
        """Keeps the last trace of each cell (row * cells + bucket) as its exemplar."""
        assert self.exemplar is not None
        known = np.flatnonzero(seen.trace_hi | seen.trace_lo)
        last = {cell: index for index, cell in zip(known.tolist(), flat[known].tolist(), strict=True)}
        exemplars = self.exemplar.reshape(-1)
        for cell, index in last.items():
            trace_hi, trace_lo, span_id = seen.trace_hi[index], seen.trace_lo[index], seen.span_id[index]
            exemplars[cell] = (trace_hi, trace_lo, span_id, values[index], seen.time_ns[index])

    def clear(self) -> None:
        """Forgets every row: only for a gauge whose label values come and go."""
        self.rows.clear()
        self.values[:] = 0

    def copy(self) -> tuple[list[tuple[str, ...]], F64, F64, npt.NDArray[np.void] | None]:
        """Labels, values, sums and exemplars, in step with each other."""
        exemplar = None if self.exemplar is None else self.exemplar.copy()
        return list(self.rows), self.values.copy(), self.sums.copy(), exemplar


class Telemetry(Collector):
    """Every metric of the table, thread-safe; `registry` is what a scrape reads."""

    def __init__(self, version: str, series_max: int = 2000) -> None:
        self._lock = threading.Lock()
        self._series = {name: Series(metric, series_max) for name, metric in METRICS.items()}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)
        self.set("build_info", 1, version=version)

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Adds `amount` (>= 0) to the counter `name`."""
        with self._lock:
            self._add(name, labels, amount)

    def set(self, name: str, value: float, /, **labels: str) -> None:
        """Sets the gauge `name`."""
        with self._lock:
            row = self._row(name, labels, 1)
            self._series[name].values[row, 0] = value

    def add(self, name: str, amount: float, /, **labels: str) -> None:
        """Adds `amount`, also a negative one, to the gauge `name`."""
        with self._lock:
            self._add(name, labels, amount)

    def replace(self, name: str, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Makes the gauge `name` exist with these label values only."""
        with self._lock:
            self._series[name].clear()
            for labels, value in values:
                self._add(name, labels, value)  # several may share a row

    def observe(self, name: str, values: npt.ArrayLike, /, **labels: str) -> None:
        """Adds one or many observations to the histogram `name`."""
        observed = np.atleast_1d(np.asarray(values, np.float64))
        with self._lock:
            row = self._row(name, labels, observed.size)
            self._series[name].observe(np.full(observed.size, row, np.int64), observed)

    def value(self, name: str, /, **labels: str) -> float:
        """What a counter or gauge stands at; a histogram's number of observations. 0 when it was never touched."""
        series = self._series[name]
        with self._lock:
            row = series.rows.get(tuple(labels[label] for label in series.metric.labels))
            return 0.0 if row is None else float(series.values[row].sum())

    def rows(self, name: str, labels: Iterable[tuple[str, ...]]) -> I64:
        """The rows of several combinations of label values, for `count_rows` and `observe_rows`. They stay valid."""
        with self._lock:
            return np.array([self._series[name].row(values) for values in labels], np.int64)

    def count_rows(self, name: str, rows: I64, seen: Sightings | None = None, values: F64 | None = None) -> None:
        """Adds 1 to a counter for each of `rows` [n]; `values` are shown beside the exemplars."""
        series = self._series[name]
        with self._lock:
            series.values[:, 0] += np.bincount(rows, minlength=len(series.sums))
            self._note_shared(name, rows)
            if seen is not None and values is not None:
                series.see(rows, values, seen)

    def observe_rows(self, name: str, rows: I64, values: F64, seen: Sightings | None = None) -> None:
        """Adds the observation `values` [n] to the histogram rows `rows` [n]."""
        with self._lock:
            self._series[name].observe(rows, values, seen)
            self._note_shared(name, rows)

    def _add(self, name: str, labels: Mapping[str, str], amount: float) -> None:
        row = self._row(name, labels, amount)  # first, for a new row may replace the array
        self._series[name].values[row, 0] += amount

    def _row(self, name: str, labels: Mapping[str, str], amount: float) -> int:
        series = self._series[name]
        if len(labels) != len(series.metric.labels):
            raise ValueError(f"{name} has the labels {series.metric.labels}, not {tuple(labels)}")
        row = series.row(tuple(labels[label] for label in series.metric.labels))
        if row in series.shared:
            self._overflow(name, amount)
        return row

    def _note_shared(self, name: str, rows: I64) -> None:
        shared = self._series[name].shared
        if shared:
            self._overflow(name, int(np.isin(rows, np.fromiter(shared, np.int64)).sum()))

    def _overflow(self, name: str, amount: float) -> None:
        overflow = self._series["label_overflow_total"]
        row = overflow.row((name,))
        overflow.values[row, 0] += abs(amount)

    def collect(self) -> Iterator[Family]:
        """One family a metric, whether it has rows or not."""
        for name, series in self._series.items():
            with self._lock:
                labels, values, sums, exemplars = series.copy()
            if series.metric.kind == "histogram":
                yield _histogram(PREFIX + name, series.metric, labels, values, sums, exemplars)
            elif series.metric.kind == "counter":
                yield _counter(PREFIX + name, series.metric, labels, values, exemplars)
            else:
                gauge = GaugeMetricFamily(PREFIX + name, series.metric.help, labels=series.metric.labels)
                for row, key in enumerate(labels):
                    gauge.add_metric(key, values[row, 0])
                yield gauge


def _exemplar(cell: np.void) -> Exemplar | None:
    trace_hi, trace_lo, span_id, value, time_ns = cell.tolist()
    if not time_ns:
        return None
    labels = {"trace_id": f"{trace_hi:016x}{trace_lo:016x}"}
    if span_id:
        labels["span_id"] = f"{span_id:016x}"
    return Exemplar(labels, value, time_ns / 1e9)


def _counter(
    name: str, metric: Metric, labels: list[tuple[str, ...]], values: F64, exemplars: npt.NDArray[np.void] | None
) -> Family:
    family = CounterMetricFamily(name, metric.help, labels=metric.labels)
    for row, key in enumerate(labels):
        family.add_metric(key, values[row, 0], exemplar=None if exemplars is None else _exemplar(exemplars[row, 0]))
    return family


def _histogram(
    name: str,
    metric: Metric,
    labels: list[tuple[str, ...]],
    values: F64,
    sums: F64,
    exemplars: npt.NDArray[np.void] | None,
) -> Family:
    family = HistogramMetricFamily(name, metric.help, labels=metric.labels)
    bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
    for row, key in enumerate(labels):
        cumulated = np.cumsum(values[row]).tolist()
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        for cell, (bound, count) in enumerate(zip(bounds, cumulated, strict=True)):
            exemplar = None if exemplars is None else _exemplar(exemplars[row, cell])
            buckets.append((bound, count) if exemplar is None else (bound, count, exemplar))
        family.add_metric(key, buckets, float(sums[row]))
    return family
