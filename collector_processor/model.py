"""What every room speaks: batches of columns, findings, verdicts, incidents, and the dictionaries behind their ids.

How it works. Nothing here exists once per record as a Python object. A batch is a set of numpy columns; names are int32
ids into `Symbols`, which holds each distinct name once and is filled on first sight. Every id has a *content hash*
beside it (blake2b of the name), so that two processes that number names differently still give the same verdict ids.

| batch | one row per | made by | read by |
|---|---|---|---|
| `Payload` | OTLP export request | ingest | decode |
| `RecordBatch` | record (span or log) | decode | join |
| `ChainBatch` | closed chain, ragged over its records | join | detect, decide |
| `FINDING` array | finding | detect | decide |
| `VerdictBatch` | closed chain | decide | export |
| `Incident` | incident (few: a plain object) | decide | export |

Units: `*_ns` and `*_unix_nano` are nanoseconds since 1970 (int64) unless the name says a duration; durations are
float32 nanoseconds. `p` is a calibrated p-value: the probability that a normal chain looks at least this unusual.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

NONE = -1  # "no such row / id" in every int column


class Signal(IntEnum):
    """Which OTLP request a payload is."""

    TRACES = 0
    LOGS = 1
    METRICS = 2


class Outcome(IntEnum):
    """Why a chain was closed."""

    COMPLETE = 0  # root seen, quiet for the learned wait
    TIMEOUT = 1  # no root within the idle limit, or older than the absolute age
    EVICTED = 2  # a cap was reached


class Severity(IntEnum):
    """Severity of a verdict or an incident; `NONE` means not unusual."""

    NONE = 0
    INFO = 1
    WARNING = 2
    CRITICAL = 3


class Category(IntEnum):
    """Who has to care. `NONE` is written as null."""

    NONE = 0
    SYSTEM = 1  # a machine, a network, a process
    OPERATIONAL = 2  # the flow of business: steps, volumes, times
    COMPLIANCE = 3  # a rule that must hold


class Kind(IntEnum):
    """What a finding says. The sentence for each kind lives in `decide/explain.py`."""

    NEW_SEQUENCE = 0
    INTERRUPTED_SEQUENCE = 1
    DISTRIBUTION_SURGE = 2
    DISTRIBUTION_DROP = 3
    UNUSUAL_CONTENT = 4  # retrieval: the set of events is far from every known one
    UNLIKELY_SEQUENCE = 5  # transformer: the order of events is improbable
    RULE_VIOLATION = 6
    UNSEEN_CALL = 7  # an edge of the call graph that was never there
    MISSING_LOG = 8  # an operation that always logs did not
    SLOW_OPERATION = 9  # self time of an operation
    SLOW_CALL = 10  # time between the caller's client span and the callee's server span
    ERROR = 11  # error status or error logs beyond the usual
    UNUSUAL_LOG = 12  # rare or unseen template or template order for an operation
    UNUSUAL_CALLS = 13  # rare or unseen children of an operation
    RATE_SURGE = 14
    RATE_DROP = 15
    DRIFT = 16  # what is normal has crept away from what was normal once
    MISSING_CALL = 17  # an operation that always calls did not


class Level(IntEnum):
    """What the subject of a finding is."""

    FLOW = 0
    OPERATION = 1
    EDGE = 2
    TEMPLATE = 3
    SERVICE = 4


FINDING = np.dtype(
    [
        ("chain", np.int32),  # row in the ChainBatch; NONE for a finding about a flow or an element in a time window
        ("detector", np.uint8),  # index in the engine's detector list
        ("kind", np.uint8),  # Kind
        ("level", np.uint8),  # Level
        ("flow", np.int32),  # flow id, NONE when pooled over flows
        ("service", np.int32),  # the service to look at first
        ("event", np.int32),  # operation or template, NONE when the subject is coarser
        ("caller", np.int32),  # calling service of an edge, else NONE
        ("instance", np.int32),  # resource id when one instance stands out, else NONE
        ("p", np.float64),  # p-value within the detector; decide calibrates
        ("expected", np.float64),  # in the kind's unit: seconds, share, count
        ("actual", np.float64),
        ("detail", np.int64),  # the detector's own reference, given back to its `evidence`
    ]
)
OPAQUE = np.dtype((np.void, FINDING.itemsize))  # a finding as bytes
Findings = npt.NDArray[Any]  # structured array of FINDING; `take` and `compress` copy it faster than an index does
UNSAID: Findings = np.zeros(1, FINDING)  # a finding about nothing
for _name in ("chain", "flow", "service", "event", "caller", "instance"):
    UNSAID[_name] = NONE
UNSAID["p"] = 1.0
UNSAID_BYTES = UNSAID.view(OPAQUE)
NOTHING: Findings = UNSAID[:0]  # most answers, so it is made once


def no_findings(rows: int = 0) -> Findings:
    """`rows` zeroed findings whose ids are all NONE."""
    return UNSAID_BYTES.repeat(rows).view(FINDING) if rows else NOTHING


def as_findings(said: Sequence[tuple[float, ...]]) -> Findings:
    """Rows of FINDING as an array."""
    return np.array(said, FINDING) if said else NOTHING


def all_findings(parts: Sequence[Findings]) -> Findings:
    """The findings of all `parts`, in order. (As bytes: numpy copies the fields of records one by one.)"""
    filled = [part for part in parts if part.size]
    if len(filled) < 2:
        return filled[0] if filled else NOTHING
    return np.frombuffer(bytearray().join([part.tobytes() for part in filled]), FINDING)


def content_hash(*parts: str | bytes | int) -> int:
    """64-bit content hash of `parts`, the same in every process and on every machine (blake2b, RFC 7693)."""
    data = b""
    for part in parts:
        if isinstance(part, int):
            part = part.to_bytes(16, "little", signed=True)
        elif isinstance(part, str):
            part = part.encode("utf-8", "surrogatepass")
        data += len(part).to_bytes(8, "little") + part
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Payload:
    """One OTLP export request as it arrived. `data` is the protobuf encoding, decompressed."""

    signal: Signal
    tenant: str
    data: bytes
    arrival_ns: int


class Names:
    """Append-only list of names with a content hash each, bounded: beyond `limit` every new name is `other` (id 0).

    `columns` are int32 attributes kept per name (for an operation: its service). Growth doubles the arrays.
    """

    def __init__(self, limit: int, *columns: str) -> None:
        self.limit = limit
        self.text: list[str] = []
        self.ids: dict[int, int] = {}
        self.overflowed = 0
        self.columns = columns
        self._hash = np.zeros(64, np.uint64)
        self._column = {name: np.full(64, NONE, np.int32) for name in columns}
        self._shown: dict[str, I32] = {}  # the filled part of each column
        self.add(content_hash("other"), "other", **dict.fromkeys(columns, 0))

    def __len__(self) -> int:
        return len(self.text)

    @property
    def hash(self) -> U64:
        """uint64[len]: content hash of each name."""
        return self._hash[: len(self.text)]

    def column(self, name: str) -> I32:
        """int32[len]: the attribute `name` of each id."""
        return self._shown[name]

    def get(self, key: int) -> int | None:
        """The id of the name whose content hash is `key`, or None."""
        return self.ids.get(key)

    def add(self, key: int, text: str, **attributes: int) -> int:
        """The id of `key`, added when new; 0 (`other`) when the list is full."""
        found = self.ids.get(key)
        if found is not None:
            return found
        if len(self.text) >= self.limit:
            self.overflowed += 1
            return 0
        new = len(self.text)
        if new == self._hash.size:
            self._hash = np.concatenate([self._hash, np.zeros_like(self._hash)])
            for name, values in self._column.items():
                self._column[name] = np.concatenate([values, np.full_like(values, NONE)])
        self.text.append(text)
        self.ids[key] = new
        self._hash[new] = key
        for name, value in attributes.items():
            self._column[name][new] = value
        self._show()
        return new

    def _show(self) -> None:
        """New names are rare, and columns are asked for all the time, by other threads too: whoever reads gets all of
        an earlier state or all of this one."""
        self._shown = {name: values[: len(self.text)] for name, values in self._column.items()}

    def snapshot(self) -> dict[str, Any]:
        """The state as plain lists and arrays; `restore` takes it back."""
        return {
            "text": list(self.text),
            "hash": self.hash.copy(),
            "columns": {name: self.column(name).copy() for name in self.columns},
            "overflowed": self.overflowed,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.text = list(state["text"])
        self._hash = np.array(state["hash"], np.uint64)
        self._column = {name: np.array(state["columns"][name], np.int32) for name in self.columns}
        self.ids = {int(key): index for index, key in enumerate(self._hash.tolist())}
        self._show()
        self.overflowed = int(state["overflowed"])


class Symbols:
    """Every distinct name the engine has seen. Ids are dense int32; id 0 of each list is `other`.

    | list | name | columns |
    |---|---|---|
    | tenants | tenant | |
    | services | `service.name` within a tenant | tenant |
    | instances | `service.instance.id` (or pod, or host) of a service | service |
    | events | operation (span name and kind) or log template, of a service | service, is_log, kind |
    | flows | tenant + entry service + entry operation | tenant, event (the entry operation) |
    | paths | order of modules, within a flow; `path_steps[id]` holds the event ids; text `a > b > c`, cut | flow |
    """

    def __init__(
        self,
        services_max: int = 4096,
        instances_max: int = 65536,
        events_max: int = 65536,
        flows_max: int = 2048,
        paths_max: int = 65536,
        tenants_max: int = 1024,
    ) -> None:
        self.tenants = Names(tenants_max)
        self.services = Names(services_max, "tenant")
        self.instances = Names(instances_max, "service")
        self.events = Names(events_max, "service", "is_log", "kind")
        self.flows = Names(flows_max, "tenant", "event")
        self.paths = Names(paths_max, "flow")
        self.path_steps: list[tuple[int, ...]] = [()]

    def lists(self) -> dict[str, Names]:
        """Every list by its name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Names)}

    def snapshot(self) -> dict[str, Any]:
        return {name: names.snapshot() for name, names in self.lists().items()} | {
            "path_steps": [list(steps) for steps in self.path_steps]
        }

    def restore(self, state: dict[str, Any]) -> None:
        for name, names in self.lists().items():
            names.restore(state[name])
        self.path_steps = [tuple(steps) for steps in state["path_steps"]]


@dataclass(slots=True)
class RecordBatch:
    """The records of one payload as rows (columns: `kernels/decode.py`), and the attribute values that were asked
    for."""

    signal: Signal
    tenant: int  # tenant id
    rows: U64  # [n, COLUMNS]
    cell_row: I64  # [k] row in this batch, ascending
    cell_key: I64  # [k] index in the list of wanted keys; -1 for a word of an unlinked log's body
    cell_number: F64  # [k]
    cell_hash: U64  # [k]
    rejected: dict[str, int]  # reason -> records that were not read

    def part(self, first: int, last: int) -> RecordBatch:
        """Rows first..last with their cells, as a batch of its own; `rejected` stays with the whole."""
        cells = slice(*np.searchsorted(self.cell_row, [first, last]))
        return RecordBatch(
            self.signal,
            self.tenant,
            self.rows[first:last],
            self.cell_row[cells] - first,
            self.cell_key[cells],
            self.cell_number[cells],
            self.cell_hash[cells],
            {},
        )


@dataclass(slots=True)
class ChainBatch:
    """Closed chains as ragged columns: n chains, m records; the records of chain c are `offsets[c]:offsets[c + 1]`.

    Records of a chain stand in causal order: depth first from the root, children of a span by start time, a log inside
    the span that emitted it; so clock skew between hosts and concurrency between branches leave the order as it is.
    """

    symbols: Symbols
    # chains
    tenant: I32  # [n]
    trace_hi: U64  # [n] first 8 bytes of the trace id, big-endian
    trace_lo: U64  # [n] last 8 bytes; both 0 for a chain that only a business key holds together
    flow: I32  # [n] flow id
    path: I32  # [n] path id: the module entries of the chain in order, repeats of one in a row counted once. A span
    # enters a module when it is at the top, a server or consumer span, or of another service than its parent
    sequence: U64  # [n] content hash of the event sequence (operations and templates); equal sequences are scored once
    start_ns: I64  # [n] earliest record
    end_ns: I64  # [n] latest end
    closed_ns: I64  # [n] engine time at which the chain was due; the order of the batch
    arrived_ns: I64  # [n] engine time of the last record's arrival
    outcome: U8  # [n] Outcome
    root: I32  # [n] row of the root record, NONE when it never came
    offsets: I64  # [n + 1]
    # records
    event: I32  # [m] event id
    instance: I32  # [m] instance id
    parent: I32  # [m] row of the parent span (for a log: the span that emitted it), NONE at the top
    time_ns: I64  # [m] start of a span, time of a log
    duration: F32  # [m] ns; 0 for a log
    self_time: F32  # [m] ns not covered by children; 0 for a log
    span_id: U64  # [m] big-endian; of the emitting span for a log, 0 unknown
    kind: (
        U8  # [m] 0 for a log, else SpanKind + 1: 1 unspecified, 2 internal, 3 server, 4 client, 5 producer, 6 consumer
    )
    status: U8  # [m] span: 0 unset, 1 ok, 2 error. log: severity number 0-24
    enters: Bool  # [m] the span enters a module: one step of the path
    # attributes that the config asks for
    cell_record: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # [k] row of the record, ascending
    cell_key: I32 = field(default_factory=lambda: np.zeros(0, np.int32))  # [k] index in config.join.attributes
    cell_number: F64 = field(default_factory=lambda: np.zeros(0, np.float64))  # [k] NaN when not a number
    cell_hash: U64 = field(
        default_factory=lambda: np.zeros(0, np.uint64)
    )  # [k] keyed hash of the raw value: equality only

    def __len__(self) -> int:
        return int(self.flow.size)

    @property
    def records(self) -> int:
        return int(self.event.size)

    def chain_of(self) -> I32:
        """int32[m]: the chain of each record."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def trace_id(self, chain: int) -> str:
        """32 lowercase hex digits."""
        return f"{int(self.trace_hi[chain]):016x}{int(self.trace_lo[chain]):016x}"

    @staticmethod
    def empty(symbols: Symbols) -> ChainBatch:
        """No chains."""
        dtypes: dict[str, type[np.generic]] = {"tenant": np.int32, "trace_hi": np.uint64, "trace_lo": np.uint64}
        dtypes |= {"flow": np.int32, "path": np.int32}
        dtypes |= {"sequence": np.uint64, "start_ns": np.int64, "end_ns": np.int64, "closed_ns": np.int64}
        dtypes |= {"arrived_ns": np.int64, "outcome": np.uint8, "root": np.int32, "event": np.int32}
        dtypes |= {"instance": np.int32, "parent": np.int32, "time_ns": np.int64, "duration": np.float32}
        dtypes |= {"self_time": np.float32, "span_id": np.uint64, "kind": np.uint8, "status": np.uint8}
        columns: dict[str, Any] = {name: np.zeros(0, dtype) for name, dtype in dtypes.items()}
        return ChainBatch(symbols=symbols, offsets=np.zeros(1, np.int64), enters=np.zeros(0, np.bool_), **columns)

    @staticmethod
    def concat(batches: list[ChainBatch]) -> ChainBatch:
        """All chains of `batches` (at least one, of the same symbols) in order, as one batch."""
        if len(batches) == 1:
            return batches[0]
        first_rows = np.cumsum([0, *(batch.records for batch in batches[:-1])])
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            parts = [getattr(batch, name) for batch in batches]
            if name == "offsets":
                parts[1:] = [part[1:] for part in parts[1:]]
            column = columns[name] = np.concatenate(parts)
            if name in ROWS:
                column += np.where(column >= 0, np.repeat(first_rows, [part.size for part in parts]), 0)
        return ChainBatch(symbols=batches[0].symbols, **columns)

    def take(self, chains: I64 | Bool) -> ChainBatch:
        """The same batch with only `chains` (indices or mask), in that order."""
        index = np.flatnonzero(chains) if chains.dtype == np.bool_ else chains
        lengths = np.diff(self.offsets)[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        shift = (offsets[:-1] - self.offsets[index]).astype(np.int64)
        rows = np.arange(offsets[-1], dtype=np.int64) - np.repeat(shift, lengths)
        moved = np.repeat(shift, lengths)
        parent = self.parent[rows]
        root = self.root[index]
        if self.cell_record.size:
            new_row = np.full(self.records, NONE, np.int64)
            new_row[rows] = np.arange(rows.size)
            cells = np.flatnonzero(new_row[self.cell_record] >= 0)
            cells = cells[np.argsort(new_row[self.cell_record[cells]], kind="stable")]
            cell_record = new_row[self.cell_record[cells]].astype(np.int32)
        else:
            cells = np.zeros(0, np.int64)
            cell_record = np.zeros(0, np.int32)
        per_chain = {
            name: getattr(self, name)[index]
            for name in (
                *("tenant", "trace_hi", "trace_lo", "flow", "path", "sequence", "start_ns", "end_ns"),
                *("closed_ns", "arrived_ns", "outcome"),
            )
        }
        per_record = {
            name: getattr(self, name)[rows]
            for name in ("event", "instance", "time_ns", "duration", "self_time", "span_id", "kind", "status", "enters")
        }
        return ChainBatch(
            symbols=self.symbols,
            **per_chain,
            root=np.where(root >= 0, root + shift, NONE).astype(np.int32),
            offsets=offsets,
            parent=np.where(parent >= 0, parent + moved, NONE).astype(np.int32),
            **per_record,
            cell_record=cell_record,
            cell_key=self.cell_key[cells],
            cell_number=self.cell_number[cells],
            cell_hash=self.cell_hash[cells],
        )


COLUMNS = tuple(column.name for column in fields(ChainBatch) if column.name != "symbols")
ROWS = frozenset(("root", "offsets", "parent", "cell_record"))  # the columns that hold rows of records


@dataclass(slots=True)
class VerdictBatch:
    """The verdicts of one ChainBatch, row by row. Findings are sorted by chain; `finding_offsets` is ragged like
    records."""

    chains: ChainBatch
    score: F64  # [n] 0-1, high = anomalous
    severity: U8  # [n] Severity
    category: U8  # [n] Category
    components: dict[str, F64]  # per detector name: [n] calibrated p-value
    findings: Findings  # [f]
    finding_offsets: I64  # [n + 1]
    models: dict[str, str]  # model name -> version
    detectors: tuple[str, ...] = ()  # what `findings["detector"]` is an index into
    evidence: dict[int, dict[str, Any]] = field(default_factory=dict)  # finding row -> evidence; of unusual chains only
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)  # unusual chain -> what its explanation rests on
    # [n] what `Decider.learn` needs once the quarantine is over; opaque to everybody else
    training: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.uint8))

    def __len__(self) -> int:
        return int(self.score.size)


@dataclass(slots=True)
class Incident:
    """Findings of one kind on one subject that exceed what the baseline allows. The engine gives a new copy at each
    change."""

    incident_id: str
    tenant: str
    kind: str
    category: str
    severity: str
    subject: dict[str, str | None]  # service, operation, instance
    suspects: list[dict[str, Any]]  # service, operation, score; most likely cause first
    flows: list[str]
    opened_unix_nano: int
    detected_unix_nano: int
    resolved_unix_nano: int | None
    chains: int
    example_trace_ids: list[str]
    explanation: dict[str, Any]
    state: str = "opened"  # opened | updated | resolved
    changed_unix_nano: int = 0  # engine time of this copy: of two copies the later one is the newer
