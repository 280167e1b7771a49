"""Payload bytes -> RecordBatch: the compiled scan, and Python once per distinct name.

How it works. `scan` (kernels/decode.py) writes a row per record with hashes in place of strings. Resources are looked
up by their bytes, events by (service, kind, hash of the name or masked body). What was never seen before is resolved
here: the resource is parsed, the span name cleaned, the log body masked and mined into a template, and the result is
entered in `Symbols` under its content hash. A payload that the kernel does not like is repaired and read again.

The seed of the hashes is secret to the instance, so that nobody can choose names that collide; nothing but speed
depends on it. State: symbols, templates, the lookup tables. All are bounded; a full lookup table is emptied and
refills.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from collector_processor.config import DecodeConfig, JoinConfig, RedactionConfig
from collector_processor.decode.repair import repair
from collector_processor.decode.templates import Templates
from collector_processor.kernels import decode as kernel
from collector_processor.kernels.cells import read_cells
from collector_processor.kernels.resolve import read, resolve, resolve_resources, resource_key
from collector_processor.kernels.table import LookupTable
from collector_processor.kernels.wire import CLASSES, hash_one
from collector_processor.model import I32, NONE, U8, U64, Names, Payload, RecordBatch, Signal, Symbols, content_hash
from collector_processor.redact import Redactor

LINK_KEYS = ("trace_id", "traceId", "traceparent", "span_id", "spanId")
INSTANCE_KEYS = ("service.instance.id", "k8s.pod.name", "container.id", "host.name")
UNKNOWN_SERVICE = "unknown_service"  # https://opentelemetry.io/docs/specs/semconv/resource/#service
NO_CELLS = (np.zeros(0, np.int64), np.zeros(0, np.float64), np.zeros(0, np.uint64))
REDACTION = RedactionConfig()
LOGS = Signal.LOGS  # looking up a member of an enum takes longer than comparing with it
NAME_MAX = 512  # characters of a name that are kept
NAME_BYTES_MAX = 4 * NAME_MAX  # of a name that are looked at
OTHER = "other"  # what a service's further names count as
SERVICE_SHARE = 4  # one service may hold one in so many of all names
KEPT_SHARE = 8  # one in so many is kept for OTHER

# A segment of a span name that is an identifier and not a name: all digits, a UUID, or a long word of hex digits.
IDENTIFIER = re.compile(r"(?<![A-Za-z0-9_])(?:\d+|[0-9a-fA-F-]{24,}|(?=[a-fA-F]*\d)[0-9a-fA-F]{8,})(?![A-Za-z0-9_])")


class Decoder:
    """Turns payloads into RecordBatches. Errors: none are raised for bad data; what is lost stands in `rejected`."""

    def __init__(
        self,
        config: DecodeConfig,
        join: JoinConfig,
        symbols: Symbols,
        seed: int,
        redaction: RedactionConfig = REDACTION,
    ) -> None:
        self.config = config
        self.symbols = symbols
        self.seed = np.uint64(seed)
        self.redact = Redactor(redaction)
        self.templates = Templates(config.events_max, redact=self.redact.words)
        self.attributes = tuple(dict.fromkeys((*join.business_keys, *join.attributes)))
        self.events = LookupTable(config.lookups_max)
        self.resources = LookupTable(config.lookups_max)
        self.own_records = 0
        self._wanted_span = self._key_hashes(self.attributes)
        self._wanted_log = self._key_hashes((*LINK_KEYS, *self.attributes))
        self._hides = (redaction.cards, redaction.before_journal)
        self._tenants: dict[str, int] = {}
        self._secrets: dict[tuple[bool, int], U64] = {}
        self._rows = np.zeros((4096, kernel.COLUMNS), np.uint64)
        self._cells = np.zeros((4096, 4), np.int64)
        self._spans = np.zeros((256, 2), np.int64)  # where each resource stands in the payload
        self._instances = np.zeros(256, np.int32)
        self._unknown = np.zeros(4096, np.int64)
        self._unknown_keys = np.zeros(4096, np.uint64)
        self._all = np.arange(4096)

    def _key_hashes(self, names: tuple[str, ...]) -> tuple[Any, Any]:
        """Keyed hashes of attribute keys, and a bit per length (longer than 63 bytes: never matches)."""
        hashes = [hash_one(np.frombuffer(name.encode(), np.uint8), self.seed) for name in names]
        lengths = 0
        for name in names:
            lengths |= 1 << min(63, len(name.encode()))
        return np.array(hashes, np.uint64), np.uint64(lengths)

    def decode(self, payload: Payload) -> RecordBatch:
        """The records of a traces or logs payload. The rows are a view of a buffer that the next call overwrites."""
        tenant = self._tenants.get(payload.tenant)
        if tenant is None:
            tenant = self._new_tenant(payload.tenant)
        is_log = payload.signal == LOGS
        data = payload.data
        rejected: dict[str, int] = {}
        buffer = np.frombuffer(data, np.uint8)
        n, n_cells, n_resources, missing = self._read(buffer, is_log, tenant)
        if n < 0:
            data, rejected = repair(data, payload.signal)
            buffer = np.frombuffer(data, np.uint8)
            n, n_cells, n_resources, missing = self._read(buffer, is_log, tenant)
            if n < 0:
                rejected["malformed"] = rejected.get("malformed", 0) + 1
                n = n_cells = 0
        rows = self._rows[:n]
        if missing:
            self._resolve(data, buffer, rows, tenant, is_log, n_resources, missing)
        if not n_cells:
            return RecordBatch(
                payload.signal, tenant, rows, NO_CELLS[0], NO_CELLS[0], NO_CELLS[1], NO_CELLS[2], rejected
            )
        cells = self._cells[:n_cells]
        numbers = np.empty(n_cells, np.float64)
        hashes = np.empty(n_cells, np.uint64)
        read_cells(buffer, cells, n_cells, self.seed, *self._hides, numbers, hashes)
        if not hashes.all():
            kept = hashes != 0
            cells, numbers, hashes = cells[kept], numbers[kept], hashes[kept]
        keys = cells[:, 1]
        if is_log:
            keys = np.where(keys >= 0, keys - len(LINK_KEYS), keys)
        return RecordBatch(payload.signal, tenant, rows, cells[:, 0], keys, numbers, hashes, rejected)

    def _new_tenant(self, name: str) -> int:
        tenant = self.symbols.tenants.add(content_hash("tenant", name), name)
        if len(self._tenants) >= self.symbols.tenants.limit:
            self._tenants.clear()
        self._tenants[name] = tenant
        return tenant

    def _read(self, buffer: U8, is_log: bool, tenant: int) -> tuple[int, int, int, int]:
        """Runs the kernel, with larger buffers while they are too small: (rows, cells, resources, rows that hold
        something new, or -1 when a resource is new). Rows are negative when it gave up."""
        wanted, _ = self._wanted_log if is_log else self._wanted_span
        links = len(LINK_KEYS) if is_log else 0
        resources, events, service_of = self.resources, self.events, self.symbols.instances.column("service")
        while True:
            n, n_cells, n_resources, own, missing = read(
                buffer, is_log, self._secrets_of(is_log, tenant), self._rows, wanted, links, self._cells, self._spans,
                CLASSES, kernel.OWN_SCOPE, self.config.body_bytes_max, self._instances, resources.keys,
                resources.values, service_of, events.keys, events.values, self._unknown, self._unknown_keys,
            )  # fmt: skip
            if n != kernel.FULL:
                self.own_records += max(0, own)
                return n, n_cells, n_resources, missing
            size = 2 * len(self._rows)
            self._rows = np.zeros((size, kernel.COLUMNS), np.uint64)
            self._cells = np.zeros((2 * len(self._cells), 4), np.int64)
            self._spans = np.zeros((2 * len(self._spans), 2), np.int64)
            self._instances = np.zeros(len(self._spans), np.int32)
            self._unknown = np.zeros(size, np.int64)
            self._unknown_keys = np.zeros(size, np.uint64)
            self._all = np.arange(size)

    def _resolve(
        self, data: bytes, buffer: U8, rows: U64, tenant: int, is_log: bool, n_resources: int, missing: int
    ) -> None:
        """Replaces resource indices and event hashes in `rows` by ids, where `_read` could not."""
        n, instances = missing, self._instances[:n_resources]
        events, unknown, keys = self.events, self._unknown, self._unknown_keys
        if n < 0:
            self._resolve_resources(data, buffer, tenant, self._secrets_of(is_log, tenant)[2], instances)
        service_of = self.symbols.instances.column("service")
        if n < 0:
            known = (instances, service_of, events.keys, events.values)
            n = resolve(rows, self._all, len(rows), *known, unknown, keys)
        while n:
            # In ascending order of row, so that ids do not depend on the seed. What a full table has no room for is
            # unknown again, and the loop goes round once more for it.
            ids: dict[int, int] = {}
            for key, row in zip(keys[:n].tolist(), rows[unknown[:n]].tolist(), strict=True):
                if key in ids:
                    continue
                if len(ids) == events.limit:
                    break
                service = int(service_of[instances[row[kernel.RESOURCE]]])
                start, end = row[kernel.TEXT] >> 32, row[kernel.TEXT] & 0xFFFFFFFF
                ids[key] = self._event(data[start:end], row, service, is_log)
            events.put_many(np.array(list(ids), np.uint64), np.array(list(ids.values()), np.int32))
            n = resolve(rows, unknown, n, instances, service_of, events.keys, events.values, unknown, keys)

    def _secrets_of(self, is_log: bool, tenant: int) -> U64:
        """Seed, lengths of the wanted keys, and what the tenant adds to the keys of its Resources: no tenant can know
        another's."""
        secrets = self._secrets.get((is_log, tenant))
        if secrets is None:
            _, lengths = self._wanted_log if is_log else self._wanted_span
            salt = content_hash("tenant salt", int(self.seed), tenant)
            secrets = self._secrets[is_log, tenant] = np.array([self.seed, lengths, salt], np.uint64)
        return secrets

    def _resolve_resources(self, data: bytes, buffer: U8, tenant: int, salt: np.uint64, instances: I32) -> None:
        """Fills in the instance id of each Resource of the request."""
        table, spans = self.resources, self._spans
        new: dict[int, int] = {}  # kept from round to round: a full table is emptied, of what the request needs too
        while resolve_resources(buffer, spans, instances.size, salt, table.keys, table.values, instances):
            for index in np.flatnonzero(instances == NONE).tolist():
                start, end = spans[index].tolist()
                key = int(resource_key(buffer, start, end, salt))
                if key not in new:
                    new[key] = self._new_resource(data[start:end], tenant)
            table.put_many(np.array(list(new), np.uint64), np.array(list(new.values()), np.int32))

    def _new_resource(self, data: bytes, tenant: int) -> int:
        """The instance id of a serialised Resource, on first sight."""
        values: dict[str, str] = {}
        try:
            for attribute in Resource.FromString(data).attributes:
                key = attribute.key
                if key == "service.name" or key in INSTANCE_KEYS:
                    values[key] = attribute.value.string_value
        except DecodeError:  # the rest of the request is good: its service stays unknown
            values = {}
        name = self._name(values.get("service.name") or UNKNOWN_SERVICE)
        tenant_name = self.symbols.tenants.text[tenant]
        service = self.symbols.services.add(content_hash("service", tenant_name, name), name, tenant=tenant)
        host = next((self._name(values[key]) for key in INSTANCE_KEYS if values.get(key)), "")
        instances = self.symbols.instances
        entry = content_hash("instance", tenant_name, name, host)
        if not _has_room(instances, entry, service):
            entry, host = content_hash("instance", tenant_name, name, OTHER), OTHER
        return instances.add(entry, host or name, service=service)

    def _event(self, data: bytes, row: list[int], service: int, is_log: bool) -> int:
        """The event id of a span name or log body, on first sight."""
        symbols = self.symbols
        service_key = int(symbols.services.hash[service])
        kind = row[kernel.KIND]
        if is_log:
            is_text = not row[kernel.EVENT] & 1
            text = self.templates.template(service_key, body_text(data, is_text)[: self.config.body_bytes_max])
        else:
            name = IDENTIFIER.sub("<*>", clean(data[:NAME_BYTES_MAX].decode("utf-8", "replace")))
            text = self.redact(name, "<*>")[:NAME_MAX].strip()
        key = content_hash("event", service_key, kind, text)
        if not _has_room(symbols.events, key, service):
            key, text = content_hash("event", service_key, kind, OTHER), OTHER
        return symbols.events.add(key, text, service=service, is_log=int(is_log), kind=kind)

    def _name(self, text: str) -> str:
        """A name as it is kept: nothing hides a card number from `redact`, and none is cut in two before it is seen."""
        return self.redact(clean(text[:NAME_BYTES_MAX]))[:NAME_MAX].strip()

    def snapshot(self) -> dict[str, Any]:
        """What first sights have taught; the lookup tables refill by themselves."""
        return {"version": 1, "templates": self.templates.snapshot()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot; `symbols` is restored by its owner.

        Raises:
            ValueError: a snapshot of another version."""
        if state["version"] != 1:
            raise ValueError(f"decoder snapshot version {state['version']} is not 1")
        self.templates.restore(state["templates"])
        self.events.clear()
        self.resources.clear()
        self._tenants.clear()


def _has_room(names: Names, key: int, service: int) -> bool:
    """Whether the name `key` of a service may be entered. Where it may not, which is counted, it goes under the
    service's OTHER: what is seen stays the service's own, and no service can take the room of all others."""
    used, share = len(names), names.limit // SERVICE_SHARE
    if used < share or names.get(key) is not None:
        return True
    is_full = used >= names.limit - names.limit // KEPT_SHARE
    if is_full or np.count_nonzero(names.column("service") == service) >= share:
        names.overflowed += 1
        return False
    return True


def clean(text: str) -> str:
    """A name without control and bidirectional formatting characters."""
    return (text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)).strip()


def body_text(data: bytes, is_text: bool) -> str:
    """A log body as text; a structured one (AnyValue of another type) as its flat `key=value` form."""
    if is_text:
        return data.decode("utf-8", "replace")
    try:
        return flat(AnyValue.FromString(data))
    except DecodeError:
        return data.decode("latin-1")


def flat(value: AnyValue, depth: int = 0) -> str:
    """An AnyValue as one line of text; below depth 4 nothing is shown."""
    which = value.WhichOneof("value")
    if which == "kvlist_value" and depth < 4:
        pairs = {item.key: item.value for item in value.kvlist_value.values}
        for key in ("message", "msg", "event", "log", "body"):
            if pairs.get(key) is not None and pairs[key].WhichOneof("value") == "string_value":
                return str(pairs[key].string_value)
        return " ".join(f"{key}={flat(pairs[key], depth + 1)}" for key in sorted(pairs))
    if which == "array_value" and depth < 4:
        return " ".join(flat(item, depth + 1) for item in value.array_value.values)
    return str(getattr(value, which)) if which and which not in ("kvlist_value", "array_value") else ""
