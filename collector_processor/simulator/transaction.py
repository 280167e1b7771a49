"""What runs inside the platform: one transaction, its operations in virtual time, and where their telemetry goes.

How it works. The body of an operation is a plain function that works, logs, queries, calls and publishes through its
`Operation`. Nothing waits: the operation carries a cursor in virtual time that each of these moves on, so the code
reads like a service and a chain of forty records is made in one go. Spans and logs go to the `Outbox` as bytes, under
the instance that made them and the tick in which that instance exports them (a span when it has ended, as an SDK does).
A transaction draws all its random numbers from a seed of its own, so what a fault does to one leaves every other byte
for byte as it was. Faults are looked up where they would bite in reality; see `faults.py`.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from collector_processor.simulator import wire
from collector_processor.simulator.faults import Effects, Fault

MS_NS: Final = 1_000_000
INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER = 1, 2, 3, 4, 5
DEBUG, INFO, WARN, ERROR = (5, "DEBUG"), (9, "INFO"), (13, "WARN"), (17, "ERROR")

Shape = tuple[bytes, bytes]
Body = Callable[["Operation"], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """An operation that others can call: its body, and what its spans look like on both sides."""

    key: str  # service.function
    service: str
    body: Body
    entry: Shape
    entry_kind: int
    caller: Shape | None
    caller_kind: int
    grpc: bool


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One running copy of a service."""

    index: int
    service: str
    name: str
    resource: bytes
    scope: bytes
    skew_ns: int
    """How far its clock is off."""
    phase_ns: int
    """How long after the tick its SDK exports."""


class RequestError(Exception):
    """A request that ends with an error."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


class SwallowedError(Exception):
    """The rest of an operation that never ran because somebody wrote `except Exception: pass`."""


class Outbox:
    """Encoded records by tick and instance, until they are exported."""

    def __init__(self, instances: int, interval_ns: int) -> None:
        self.instances = instances
        self.interval_ns = interval_ns
        self._ticks: dict[int, tuple[list[list[bytes]], list[list[bytes]]]] = {}

    def _tick(self, at_ns: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
        tick = at_ns // self.interval_ns
        found = self._ticks.get(tick)
        if found is None:
            found = self._ticks[tick] = (
                [[] for _ in range(self.instances)],
                [[] for _ in range(self.instances)],
            )
        return found

    def span(self, instance: Instance, end_ns: int, data: bytes) -> None:
        self._tick(end_ns + instance.phase_ns)[0][instance.index].append(data)

    def log(self, instance: Instance, time_ns: int, data: bytes) -> None:
        self._tick(time_ns + instance.phase_ns)[1][instance.index].append(data)

    def take(self, tick: int) -> tuple[list[list[bytes]], list[list[bytes]]]:
        """(spans, logs) per instance of what is exported at the end of `tick`, removed from here."""
        return self._ticks.pop(tick, ([], []))

    @property
    def is_empty(self) -> bool:
        return not self._ticks


class World:
    """What all transactions share: the instances, how busy they are, the endpoints by key, the outbox."""

    def __init__(
        self, instances: Mapping[str, tuple[Instance, ...]], endpoints: Mapping[str, Endpoint], outbox: Outbox
    ) -> None:
        self.instances = instances
        self.endpoints = endpoints
        self.outbox = outbox
        self.load = 0.2  # share of the time that a worker is busy, 0-1
        self._logs: dict[tuple[str, tuple[int, str], str], Shape] = {}
        self._statuses: dict[tuple[str, int], bytes] = {}

    def log_shape(self, service: str, level: tuple[int, str], template: str) -> Shape:
        key = (service, level, template)
        found = self._logs.get(key)
        if found is None:
            logger = f"com.example.pay.{service}.{service.capitalize()}Service"
            thread = f"worker-{zlib.crc32(template.encode()) % 8}"
            constant: dict[str, wire.Value] = {"logger.name": logger, "thread.name": thread}
            found = self._logs[key] = wire.log_shape(*level, constant)
        return found

    def status(self, key: str, code: int) -> bytes:
        """The attribute `key` = `code` of a span."""
        found = self._statuses.get((key, code))
        if found is None:
            found = self._statuses[key, code] = wire.attribute(wire.SPAN_ATTRIBUTE, key, code)
        return found


class Transaction:
    """One request from outside, or one scheduled job, with everything it sets off."""

    __slots__ = (
        *(
            "world",
            "rng",
            "dice",
            "effects",
            "trace_id",
            "payment_id",
            "account",
            "payee",
            "amount",
            "currency",
            "keys",
        ),
        *("money", "touched", "unsure", "trouble"),
    )

    def __init__(self, world: World, rng: random.Random, dice: random.Random, effects: Effects) -> None:
        self.world = world
        self.rng = rng
        self.dice = dice  # what faults draw from, so that one that does not strike leaves no trace
        self.effects = effects
        self.trace_id = rng.getrandbits(128).to_bytes(16, "big")
        self.payment_id = f"PAY{rng.randrange(10**10):010d}"
        self.account = f"AC{rng.randrange(10**8):08d}"
        self.payee = f"AC{rng.randrange(10**8):08d}"
        self.amount = round(math.exp(rng.gauss(4.0, 1.1)) + 0.5, 2)
        self.currency = "EUR" if rng.random() < 0.92 else rng.choice(("USD", "GBP", "CHF"))
        self.keys = b""  # attributes of every span that handles the payment
        self.money = b""
        self.touched: set[str] = set()  # faults that changed something here
        self.unsure = False  # something went wrong by itself
        self.trouble: Any = rng.random()  # decides what the customer runs into: declines, wrong passwords

    def hit(self, kind: str, place: str) -> Fault | None:
        """The fault of `kind` at `place` if it is on and strikes this time; remembered in `touched`."""
        fault = self.effects.get(kind, place)
        if fault is None or (fault.share < 1.0 and self.dice.random() >= fault.share):
            return None
        self.touched.add(fault.fault_id)
        return fault


class Operation:
    """A span that is open: the cursor `now_ns`, and what its body can do."""

    __slots__ = (
        *("tx", "world", "rng", "endpoint", "instance", "span_id", "parent_id", "start_ns", "now_ns", "status_code"),
        *("rest", "armed"),
    )

    def __init__(self, tx: Transaction, endpoint: Endpoint, parent_id: bytes, start_ns: int) -> None:
        self.tx = tx
        self.world = tx.world
        self.rng = tx.rng
        self.endpoint = endpoint
        copies = tx.world.instances[endpoint.service]
        self.instance = copies[int(tx.rng.random() * len(copies))]
        self.span_id = tx.rng.getrandbits(64).to_bytes(8, "big")
        self.parent_id = parent_id
        self.start_ns = start_ns
        self.now_ns = start_ns
        self.status_code = 200
        self.rest: list[bytes] = []
        self.armed = bool(tx.effects)

    # --- what a body does -------------------------------------------------------------------------------------------

    def work(self, median_ms: float) -> None:
        """Compute: lognormal time, some waiting for a worker under load, now and then a pause for garbage.

        The place in a body where code faults strike.
        """
        rng = self.rng
        took = median_ms * math.exp(rng.gauss(0.0, 0.3))
        load = self.world.load
        if rng.random() < load:
            took += rng.expovariate(1.0) * median_ms * 0.6 * load / (1.0 - load)
        if rng.random() < 0.001:
            took += rng.gammavariate(4.0, 20.0)
        if self.armed:
            took *= self._slowed()
        self.now_ns += int(took * MS_NS)
        if self.armed:
            self.armed = False
            self._break()

    def _slowed(self) -> float:
        tx, service = self.tx, self.endpoint.service
        cpu = tx.effects.get("cpu", service)
        bad = tx.effects.get("bad_instance", self.instance.name)
        for fault in (cpu, bad):
            if fault is not None:
                tx.touched.add(fault.fault_id)
        return (cpu.size if cpu else 1.0) * (bad.size if bad else 1.0)

    def _break(self) -> None:
        """The code faults of this operation, and calls that should not be there."""
        tx, key = self.tx, self.endpoint.key
        if tx.hit("exception_thrown", key):
            raise RequestError(500, "java.lang.IllegalStateException", "cannot resolve schema version")
        if tx.hit("exception_swallowed", key):
            raise SwallowedError
        if tx.hit("bad_instance", self.instance.name):
            raise RequestError(500, "java.io.IOException", "No space left on device")
        for fault in tx.effects.faults:
            if fault.kind == "new_path" and fault.place.startswith(f"{key}>") and tx.hit(fault.kind, fault.place):
                self.call(self.world.endpoints[fault.place.partition(">")[2]])

    def value(self, amount: float) -> float:
        """`amount`, unless the code that computes it is wrong; then it also says something else in the log."""
        fault = self.tx.hit("wrong_value", self.endpoint.key) if self.tx.effects else None
        if fault is None:
            return amount
        self.log(INFO, "tariff table has no entry for %s, using default tariff", self.tx.currency)
        return round(amount * (1.0 + fault.size) + 0.01, 2)

    def log(
        self, level: tuple[int, str], template: str, *values: object, traced: bool = True, rest: bytes = b""
    ) -> None:
        """Write one line. `traced=False`: from code that knows no trace id."""
        tx = self.tx
        if traced:
            rest += wire.correlation(tx.trace_id, self.span_id)
        instance = self.instance
        shape = self.world.log_shape(self.endpoint.service, level, template)
        self._formatting()
        body = template % values if values else template
        self.world.outbox.log(instance, self.now_ns, wire.log(shape, self.now_ns + instance.skew_ns, body, rest))

    def info(self, template: str, *values: object) -> None:
        self.log(INFO, template, *values)

    def warn(self, template: str, *values: object) -> None:
        self.log(WARN, template, *values)

    def audit(self, template: str, *values: object) -> None:
        """The line an auditor needs; the one that the fault `missing_log` takes away."""
        if self.tx.effects and self.tx.hit("missing_log", self.endpoint.key):
            self._formatting()
        else:
            self.log(INFO, template, *values)

    def _formatting(self) -> None:
        """The time that a line takes."""
        self.now_ns += 20_000 + int(self.rng.random() * 30_000)

    def step(self, name: Shape, median_ms: float) -> None:
        """A piece of work with a span of its own, inside the service."""
        start_ns = self.now_ns
        self.work(median_ms)
        self._child(name, start_ns, self.now_ns, b"")

    def query(self, shape: Shape, median_ms: float) -> None:
        """Ask the database. A deadlock, which happens, is tried again."""
        tx, rng = self.tx, self.rng
        took = median_ms * math.exp(rng.gauss(0.0, 0.35)) + rng.expovariate(5.0)
        if rng.random() < 0.002:
            took += rng.gammavariate(3.0, 15.0)
        if tx.effects:
            service = self.endpoint.service
            if tx.hit("dependency_slow", service):
                took *= tx.effects.table["dependency_slow", service].size
            took += self._wire_ms(service, "")
        start_ns = self.now_ns
        self.now_ns += int(took * MS_NS)
        if rng.random() < 0.0003:
            self._child(shape, start_ns, self.now_ns, wire.error_status("deadlock detected"))
            self.warn("deadlock detected, transaction is tried again")
            start_ns = self.now_ns
            self.now_ns += int(median_ms * MS_NS)
        self._child(shape, start_ns, self.now_ns, b"")

    def external(self, shape: Shape, median_ms: float, sigma: float, timeout_ms: float) -> None:
        """Call somebody else's service, which answers late now and then.

        Raises:
            RequestError: no answer within `timeout_ms`.
        """
        rng = self.rng
        took = median_ms * math.exp(rng.gauss(0.0, sigma))
        if rng.random() < 0.003:
            took = timeout_ms
        if self.tx.effects:
            took += self._wire_ms(self.endpoint.service, "")
        start_ns = self.now_ns
        self.now_ns += int(min(took, timeout_ms) * MS_NS)
        if took < timeout_ms:
            self._child(shape, start_ns, self.now_ns, self.world.status("http.response.status_code", 200))
            return
        self._child(shape, start_ns, self.now_ns, wire.error_status("timeout"))
        raise RequestError(504, "java.net.SocketTimeoutException", "partner did not answer in time")

    def call(self, endpoint: Endpoint, timeout_ms: float = 5000.0, retries: int = 0) -> Any:
        """Call another service and return its answer; `None` when a fault made the call or its end disappear.

        Raises:
            RequestError: the last attempt failed.
        """
        if self.tx.effects:
            place = f"{self.endpoint.key}>{endpoint.key}"
            if self.tx.hit("step_skipped", place):
                return None
            if self.tx.hit("double_debit", place):
                self._attempt(endpoint, timeout_ms)
                self.now_ns += 2 * MS_NS
        for attempt in range(retries + 1):
            answer, failure = self._attempt(endpoint, timeout_ms)
            if failure is None:
                return answer
            if attempt < retries:
                self.warn("attempt %d of %s failed: %s, trying again", attempt + 1, endpoint.key, failure.message)
                self.now_ns += int((20.0 + self.rng.random() * 30.0) * MS_NS)
        raise RequestError(502, "UpstreamError", f"{endpoint.service} answered {failure.status if failure else 0}")

    def publish(self, endpoint: Endpoint) -> None:
        """Put a message on a queue; whoever reads it runs later and by himself."""
        assert endpoint.caller is not None
        tx, rng = self.tx, self.rng
        span_id = rng.getrandbits(64).to_bytes(8, "big")
        start_ns = self.now_ns
        took = 0.8 * math.exp(rng.gauss(0.0, 0.3))
        waits = rng.gammavariate(2.0, 4.0)
        if tx.effects:
            took += self._wire_ms(self.endpoint.service, "")
            waits += self._wire_ms(endpoint.service, "")
        self.now_ns += int(took * MS_NS)
        self._emit(span_id, self.span_id, endpoint.caller, start_ns, self.now_ns, tx.keys)
        if not (tx.effects and tx.hit("interrupted_chain", endpoint.key)):
            serve(tx, endpoint, span_id, self.now_ns + int(waits * MS_NS))

    def parallel(self, *branches: Callable[[], Any]) -> list[Any]:
        """Run `branches` side by side; returns their answers when the last is done."""
        start_ns, end_ns, answers = self.now_ns, self.now_ns, []
        for branch in branches:
            self.now_ns = start_ns
            answers.append(branch())
            end_ns = max(end_ns, self.now_ns)
        self.now_ns = end_ns
        return answers

    def accept(self) -> None:
        """Take the request, unless the pool is exhausted or the connection breaks, which happens.

        Raises:
            RequestError: it was not taken.
        """
        if self.tx.effects and self.tx.hit("error_burst", self.endpoint.service):
            raise RequestError(503, "java.util.concurrent.RejectedExecutionException", "pool is exhausted")
        if self.rng.random() < 0.0001:
            raise RequestError(500, "java.net.SocketException", "connection reset by peer")

    # --- how it shows -----------------------------------------------------------------------------------------------

    def _attempt(self, endpoint: Endpoint, timeout_ms: float) -> tuple[Any, RequestError | None]:
        assert endpoint.caller is not None
        rng = self.rng
        span_id = rng.getrandbits(64).to_bytes(8, "big")
        start_ns = self.now_ns
        out_ms = 0.2 + rng.expovariate(8.0)
        back_ms = 0.2 + rng.expovariate(8.0)
        if self.tx.effects:
            back_ms += self._wire_ms(self.endpoint.service, endpoint.service)
        answer, failure, end_ns = serve(self.tx, endpoint, span_id, start_ns + int(out_ms * MS_NS))
        end_ns += int(back_ms * MS_NS)
        latest_ns = start_ns + int(timeout_ms * MS_NS)
        if end_ns > latest_ns:
            end_ns = latest_ns
            failure = RequestError(504, "java.net.SocketTimeoutException", "read timed out")
        code = failure.status if failure else 200
        if endpoint.grpc:
            rest = self.world.status("rpc.grpc.status_code", grpc_code(code))
        else:
            rest = self.world.status("http.response.status_code", code)
        if failure:
            rest += wire.error_status(failure.message)
        self.now_ns = end_ns
        self._emit(span_id, self.span_id, endpoint.caller, start_ns, end_ns, rest)
        return answer, failure

    def _wire_ms(self, caller: str, callee: str) -> float:
        """Extra time on the network of `caller` and `callee`: a fixed delay with jitter, or lost packets sent again."""
        tx, dice, extra = self.tx, self.tx.dice, 0.0
        for service in (caller, callee):
            delay = tx.hit("network_delay", service)
            if delay:
                extra += delay.size * 1000.0 * (0.9 + 0.2 * dice.random())
            loss = tx.hit("network_loss", service)
            if loss:
                extra += loss.size * 1000.0 * dice.choice((1.0, 1.0, 1.0, 3.0))
        return extra

    def _child(self, shape: Shape, start_ns: int, end_ns: int, rest: bytes) -> None:
        self._emit(self.rng.getrandbits(64).to_bytes(8, "big"), self.span_id, shape, start_ns, end_ns, rest)

    def _emit(self, span_id: bytes, parent_id: bytes, shape: Shape, start_ns: int, end_ns: int, rest: bytes) -> None:
        instance = self.instance
        skew = instance.skew_ns
        data = wire.span(self.tx.trace_id, span_id, parent_id, shape, start_ns + skew, end_ns + skew, rest)
        self.world.outbox.span(instance, end_ns, data)

    def fail(self, failure: RequestError) -> None:
        """What the framework does with an error that the body let through: a line with the stack, event, status."""
        self.tx.unsure = True
        self.status_code = failure.status
        if failure.kind == "UpstreamError":
            self.log(ERROR, "request failed: %s", failure.message)
        else:
            name = self.endpoint.key.partition(".")[2]
            stack = (
                f"{failure.kind}: {failure.message}\n\tat com.example.pay.{self.endpoint.service}.{name}(Service.java)"
            )
            self.log(ERROR, "unhandled exception in %s: %s", name, stack)
            at_ns = self.now_ns + self.instance.skew_ns
            self.rest.append(wire.exception_event(at_ns, failure.kind, failure.message, stack))
        self.rest.append(wire.error_status(failure.message))

    def close(self) -> None:
        """End the span of the operation."""
        kind = self.endpoint.entry_kind
        if self.endpoint.grpc:
            self.rest.append(self.world.status("rpc.grpc.status_code", grpc_code(self.status_code)))
        elif kind == SERVER:
            self.rest.append(self.world.status("http.response.status_code", self.status_code))
        rest = self.tx.keys + b"".join(self.rest)
        self._emit(self.span_id, self.parent_id, self.endpoint.entry, self.start_ns, self.now_ns, rest)


def grpc_code(http_status: int) -> int:
    """The gRPC status nearest to an HTTP status."""
    return {200: 0, 500: 13, 502: 14, 503: 14, 504: 4}.get(http_status, 2)


def serve(tx: Transaction, endpoint: Endpoint, parent_id: bytes, start_ns: int) -> tuple[Any, RequestError | None, int]:
    """Run `endpoint` from `start_ns` under the span `parent_id`; returns (answer, failure or None, end time)."""
    op = Operation(tx, endpoint, parent_id, start_ns)
    answer: Any = None
    failed: RequestError | None = None
    try:
        op.accept()
        answer = endpoint.body(op)
    except SwallowedError:
        pass  # an operation that hides its failure answers nothing, and says that all is well
    except RequestError as error:
        failed = error
        op.fail(error)
    op.close()
    return answer, failed, op.now_ns
