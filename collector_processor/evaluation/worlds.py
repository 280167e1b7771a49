"""Micro-service systems made up at random, and what they send: does detection hold on systems not seen before?

How it works. A `World` is drawn from its seed: services with instances, operations that work, write log lines, ask a
database and call other services one after another, side by side or through a queue; how long each takes (100 us to
seconds, heavy tails, caches that hit or miss), how often what may be left out is left out, which errors happen anyway,
which flows come in how often, and which habits its telemetry has: span kinds, client spans, statuses, logs without a
trace id, clocks that differ, collectors that pause. A chain is then run step by step and written as OTLP. Faults of
`FAULTS` are put where enough chains pass. Nothing is taken from any real system; the engine is told nothing.

Two layouts of time: `blocks` of three minutes with one minute before the injection and gaps between them, and `hours`
that go on, with long stretches without a fault.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Literal

from collector_processor.evaluation.labels import NS, Fault
from collector_processor.evaluation.world_parts import (
    Call,
    Duration,
    Injection,
    Instance,
    Line,
    Operation,
    Service,
    Work,
)
from collector_processor.model import Payload, Signal
from collector_processor.simulator import wire
from collector_processor.simulator.traffic import arrivals

MS: Final = 1_000_000
BEGIN_NS: Final = 1_760_000_400 * NS
FAULTS: Final = (
    *("network_delay", "packet_loss", "cpu", "wrong_return", "exception", "swallowed", "missing_log", "step_skipped"),
    *("down", "slow_database", "slow_instance", "traffic_drop"),
)
CHAINS_MIN: Final = 30.0  # that a fault is expected to meet: with fewer it says nothing about detection
NOTICED_NS: Final = 3.0 * MS  # a fault that delays by less is none
SPANS_MAX: Final = 400  # of one chain
SERVER, CLIENT, PRODUCER, CONSUMER, INTERNAL = 2, 3, 4, 5, 1  # OTLP span kinds
INFO, WARN, ERROR = 9, 13, 17  # OTLP severity numbers
SHARES: Final = (1.0,) * 7 + (0.5, 0.1, 0.02)  # how often a step that may be left out is taken
WORDS: Final = """
    accept amount batch book cache cart charge check client commit cost count create currency customer deliver detail
    entry event fetch find guest index item job key label list load lock mail match message name note offer order page
    parcel party place plan point price process product quote range rate read receive record refund region report
    request reserve result review route rule save search seat send session shelf ship state stock store task ticket
    token total track update user valid value vendor version visit wallet
    """.split()  # noqa: SIM905 - a list of so many words is read more easily like this

Layout = Literal["blocks", "hours"]


class TooLongError(Exception):
    """A chain with more spans than anybody has use for."""


class World:
    """One system. `span_kinds` and the like are the habits of its telemetry."""

    def __init__(self, seed: int, records_per_hour: float = 400_000.0) -> None:
        """`records_per_hour` bounds the traffic, so that a world is read in reasonable time."""
        self.seed = seed
        self.rng = rng = random.Random(f"world {seed}")
        self.span_kinds = rng.random() < 0.8
        self.client_spans = rng.random() < 0.8
        self.statuses = rng.random() < 0.6
        self.server_in_call = rng.random() < 0.3  # spans are named after the service that is called
        self.hop_ns = rng.uniform(0.05, 0.8) * MS
        self.pace = 10 ** rng.uniform(-0.7, 0.7)  # of all services
        self.services: list[Service] = []
        self._shapes: dict[Any, Any] = {}
        self._draw()
        self.flows: list[tuple[Operation, float]] = []  # with chains a second
        entries = self.services[: rng.randint(1, 2)]
        doors = [operation for service in entries for operation in service.operations]
        weights = [10 ** rng.uniform(-1.5, 0.0) for _ in doors]
        total = 10 ** rng.uniform(-0.5, 1.7)
        self.flows = [(door, total * w / sum(weights)) for door, w in zip(doors, weights, strict=True)]
        self.swing, self.burst_share = rng.uniform(0.0, 0.4), rng.choice((0.0, 0.02, 0.05))
        self.met: dict[Operation, float] = {}  # chains a second that each operation is in
        self._try_out(records_per_hour)

    # -- the system ----------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        rng = self.rng
        count = round(math.exp(rng.uniform(math.log(5), math.log(60))))
        names = rng.sample([f"{a}-{b}" for a in WORDS for b in ("service", "api", "svc", "worker")], count)
        index = 0
        for name in names:
            copies = []
            for copy in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
                pod = f"{name}-{rng.getrandbits(32):08x}-{copy}"
                resource: dict[str, wire.Value] = {"service.name": name, "service.instance.id": pod}
                paused = rng.random() < 0.3
                copies.append(
                    Instance(
                        index,
                        wire.resource_fields(resource, "lib", "1"),
                        int(rng.gauss(0.0, 1.0) * rng.choice((0.0, 0.1, 1.0)) * MS),
                        int(rng.uniform(0.0, 3.0) * NS),
                        int(rng.uniform(60, 600) * NS) if paused else 0,
                        int(rng.uniform(20, 300) * MS),
                    )
                )
                index += 1
            weather = (rng.uniform(0.0, 0.2), rng.uniform(0, 6), rng.uniform(0, 6), rng.choice((0.0, 0.0, 0.004, 0.01)))
            service = Service(name, copies, rng.random() < 0.9, weather)
            self.services.append(service)
            for _ in range(rng.choice((1, 1, 2, 3, 4, 6) if len(self.services) > 2 else (2, 3, 4, 6, 8))):
                service.operations.append(self._operation(service))
        self.instances = [instance for service in self.services for instance in service.instances]
        shared = rng.sample(self.services[count // 2 :], max(1, count // 8))
        for place, service in enumerate(self.services):
            below = [] if service in shared else self.services[place + 1 : place + 1 + max(3, count // 3)]
            for operation in service.operations:
                self._give_calls(operation, below, [] if service in shared else shared, place / count)

    def _operation(self, service: Service) -> Operation:
        rng = self.rng
        verb, noun = rng.choice(WORDS), rng.choice(WORDS)
        name = rng.choice((f"{service.name}/{verb}{noun.title()}", f"POST /{noun}/{verb}", f"{noun}.{verb}", "GET /"))
        if any(other.name == name for other in service.operations):
            name = f"{verb} {noun} {len(service.operations)}"
        median = self.pace * 10 ** rng.uniform(5.0, 7.3)  # 100 us to 20 ms, times the pace
        two = rng.random() < 0.25
        slow = (rng.choice((0.05, 0.2, 0.5)), rng.uniform(4.0, 30.0)) if two else (0.0, 1.0)
        out = Operation(service, name)
        steps: list[Line | Work | Call] = [Work(Duration(median, rng.uniform(0.1, 0.7), *slow))]
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            query = rng.choice(("SELECT", "UPDATE", "INSERT", "GET")) + " " + rng.choice(WORDS)
            time = Duration(self.pace * 10 ** rng.uniform(5.0, 7.0), rng.uniform(0.2, 0.8))
            steps.append(Work(time, query, rng.choice(SHARES)))
        for _ in range(rng.choice((0, 1, 2, 2, 3, 5, 10)) if rng.random() < 0.85 else 0):
            steps.insert(
                rng.randint(0, len(steps)), Line(self._words(), rng.choice((INFO,) * 9 + (WARN,)), rng.choice(SHARES))
            )
        out.steps = steps
        out.error_rate = rng.choice((0.0, 0.0, 0.0005, 0.002, 0.01))
        out.says_errors = rng.random() < 0.7
        out.odd = Line(self._words(), rng.choice((INFO, WARN)), 1.0)
        out.failed = Line(self._words() + " failed: {}", ERROR, 1.0)
        return out

    def _words(self) -> str:
        rng = self.rng
        words = rng.sample(WORDS, rng.randint(2, 6))
        for _ in range(rng.randint(0, 2)):
            words.insert(rng.randint(1, len(words)), "{}")
        return " ".join(words)

    def _give_calls(self, operation: Operation, below: list[Service], shared: list[Service], depth: float) -> None:
        """Calls downwards: more of them near the entry."""
        rng = self.rng
        for _ in range(rng.choice((1, 2, 2, 3, 4)) if depth < 0.2 else rng.choice((0, 0, 1, 1, 2))):
            chosen = shared if shared and rng.random() < 0.2 else below
            if not chosen:
                return
            how: Literal["sync", "parallel", "queue"] = rng.choices(("sync", "parallel", "queue"), (7, 2, 1))[0]
            size = rng.randint(2, 3) if how == "parallel" else 1
            to = [rng.choice(rng.choice(chosen).operations) for _ in range(size)]
            to = [one for one in to if one.service is not operation.service]
            if to:
                most = rng.choice((1,) * 8 + (3, 5)) if how == "sync" else 1
                call = Call(to, how, rng.choice(SHARES), most, rng.random() < 0.7, rng.choice((1, 1, 2, 3)))
                operation.steps.insert(rng.randint(0, len(operation.steps)), call)

    def _try_out(self, records_per_hour: float) -> None:
        """Runs chains of every flow without writing them: what passes where, and how much there is to write."""
        records = 0.0
        for door, rate in self.flows:
            for number in range(30):
                chain = Chain(self, random.Random(f"{self.seed} try {number}"), None)
                chain.run(door, BEGIN_NS)
                for operation in chain.met:
                    self.met[operation] = self.met.get(operation, 0.0) + rate / 30
                records += (len(chain.spans) + len(chain.logs)) * rate / 30
        factor = min(1.0, records_per_hour / 3600.0 / records)
        self.flows = [(door, rate * factor) for door, rate in self.flows]
        self.met = {operation: rate * factor for operation, rate in self.met.items()}

    def shape(self, key: Any, make: Any) -> Any:
        """What all records of one kind share, serialised once."""
        found = self._shapes.get(key)
        if found is None:
            found = self._shapes[key] = make()
        return found

    # -- faults --------------------------------------------------------------------------------------------------------

    def injection(self, kind: str, begin_ns: int, end_ns: int, rng: random.Random) -> Injection | None:
        """A fault of this `kind` where enough chains pass, None when there is no such place."""
        size = {
            "network_delay": 10 ** rng.uniform(1.7, 3.0) * MS,  # 50 ms to 1 s
            "packet_loss": rng.uniform(0.15, 0.5),
            "slow_database": rng.uniform(5.0, 30.0),
            "traffic_drop": rng.uniform(0.0, 0.2),
        }.get(kind, rng.uniform(3.0, 10.0))
        least = CHAINS_MIN / ((end_ns - begin_ns) / NS)
        places = [operation for operation, rate in self.met.items() if rate >= least]
        doors = {door for door, _ in self.flows}
        if kind == "traffic_drop":
            places = [door for door, rate in self.flows if rate >= 2.0 * least]
        elif kind in ("network_delay", "packet_loss", "down"):
            places = [place for place in places if place not in doors]
        elif kind == "slow_instance":
            places = [p for p in places if len(p.service.instances) > 1 and self.met[p] >= 2.0 * least]
        if kind in ("cpu", "slow_instance", "slow_database"):
            places = [place for place in places if self._delay(place, size, of_queries=kind == "slow_database")]
        fits = [(place, steps) for place in places if (steps := self._steps_for(kind, place))]
        if not fits:
            return None
        operation, steps = rng.choice(fits)
        instance = rng.choice(operation.service.instances) if kind == "slow_instance" else None
        return Injection(kind, operation.service, operation, rng.choice(steps), size, instance, begin_ns, end_ns)

    def _delay(self, operation: Operation, size: float, *, of_queries: bool) -> bool:
        """Whether times `size` as slow delays by what anybody would notice."""
        works = [s for s in operation.steps if isinstance(s, Work) and s.share == 1.0 and bool(s.query) == of_queries]
        return sum(work.time.median_ns for work in works) * (size - 1.0) >= NOTICED_NS

    def _steps_for(self, kind: str, operation: Operation) -> list[int]:
        """The steps of an operation that a fault of this kind may be about, if it would show in the telemetry."""
        steps = list(enumerate(operation.steps))
        if kind == "missing_log":
            return [i for i, step in steps if isinstance(step, Line) and self._shows(step, operation)]
        if kind in ("swallowed", "wrong_return"):  # after this step nothing comes, which has to show
            last = [i for i, step in steps if self._shows(step, operation)]
            return list(range(last[-1])) if last else []
        if kind == "step_skipped":
            return [i for i, step in steps if not isinstance(step, Line) and self._shows(step, operation)]
        if kind == "slow_database":
            return [i for i, step in steps if isinstance(step, Work) and step.query and step.share == 1.0]
        if kind == "exception":
            says = operation.says_errors and operation.service.logs_traced
            return [i for i, _ in steps] if says or self.statuses else []
        return [0]

    def _shows(self, step: Line | Work | Call, operation: Operation) -> bool:
        """Whether it would be missed if it were not there."""
        if step.share < 1.0:
            return False
        if isinstance(step, Line):
            return operation.service.logs_traced
        return not isinstance(step, Work) or (bool(step.query) and self.client_spans)

    def schedule(self, layout: Layout, faults: int) -> tuple[list[tuple[int, int]], list[Injection]]:
        """([begin, end) of recorded stretches, faults)."""
        rng = random.Random(f"schedule {self.seed}")
        kinds = list(FAULTS)
        rng.shuffle(kinds)
        at = BEGIN_NS
        stretches: list[tuple[int, int]] = []
        injections: list[Injection] = []
        if layout == "blocks":
            warm_ns = int(rng.uniform(60, 240) * NS)
            stretches.append((at, at + warm_ns))
            at += warm_ns + int(rng.uniform(0, 600) * NS)
        for number in range(len(kinds) * 3):
            if len(injections) == faults:
                break
            quiet_ns = 60 * NS if layout == "blocks" else int(rng.uniform(1500, 2400) * NS)
            lasts_ns = int(rng.uniform(100, 120) * NS) if layout == "blocks" else int(rng.uniform(180, 300) * NS)
            fault = self.injection(kinds[number % len(kinds)], at + quiet_ns, at + quiet_ns + lasts_ns, rng)
            if fault is None:
                continue
            injections.append(fault)
            if layout == "blocks":
                stretches.append((at, at + 180 * NS))
                at += int(180 * NS + rng.choice((0.0, rng.uniform(60, 1200))) * NS)
            else:
                stretches.append((at, fault.end_ns))
                at = fault.end_ns
        if layout == "hours":
            stretches.append((at, at + 1200 * NS))
        return stretches, injections

    # -- traffic -------------------------------------------------------------------------------------------------------

    def payloads(self, stretches: list[tuple[int, int]], injections: list[Injection]) -> Iterator[Payload]:
        """What reaches the engine second by second, in order."""
        rng = random.Random(f"traffic {self.seed}")
        waiting: dict[int, tuple[list[tuple[Instance, bytes]], list[tuple[Instance, bytes]]]] = {}
        numbers = iter(range(1 << 60))
        burst_until = 0
        for begin, end in stretches:
            for second in sorted(second for second in waiting if second < begin // NS):
                yield from self._sent(waiting, second)
            for second in range(begin // NS, end // NS):
                now = second * NS
                fault = next((one for one in injections if one.begin_ns <= now < one.end_ns), None)
                if self.burst_share and rng.random() < self.burst_share / 40:
                    burst_until = now + 40 * NS
                level = (1.0 + self.swing * math.sin(now / NS / 1700.0)) * (2.0 if now < burst_until else 1.0)
                for door, rate in self.flows:
                    dropped = fault is not None and fault.kind == "traffic_drop" and fault.operation is door
                    for after in arrivals(rng, rate * level * (fault.size if dropped and fault else 1.0), 1.0):
                        chain = Chain(self, random.Random(f"{self.seed} {next(numbers)}"), fault)
                        chain.run(door, now + int(after * NS))
                        chain.export(waiting)
                yield from self._sent(waiting, second)
        for second in sorted(waiting):
            yield from self._sent(waiting, second)

    def _sent(self, waiting: Any, second: int) -> Iterator[Payload]:
        for signal, records in zip((Signal.TRACES, Signal.LOGS), waiting.pop(second, ((), ())), strict=True):
            by_instance: dict[Instance, list[bytes]] = {}
            for instance, data in records:
                by_instance.setdefault(instance, []).append(data)
            groups = [wire.group(*instance.resource, data) for instance, data in by_instance.items()]
            if groups:
                yield Payload(signal, "default", b"".join(groups), (second + 1) * NS)


class Chain:
    """One transaction on its way."""

    def __init__(self, world: World, rng: random.Random, fault: Injection | None) -> None:
        self.world, self.rng, self.fault = world, rng, fault
        self.trace_id = rng.randbytes(16)
        self.spans: list[tuple[Instance, int, bytes]] = []
        self.logs: list[tuple[Instance, int, bytes]] = []
        self.met: dict[Operation, None] = {}  # in order
        self.touched = False

    def run(self, door: Operation, at_ns: int) -> None:
        """The whole transaction, entering by `door` at `at_ns`."""
        with suppress(TooLongError):
            self._serve(door, at_ns, b"", SERVER)
        if self.touched and self.fault is not None:
            self.fault.chains += 1

    def export(self, waiting: Any) -> None:
        for which, records in enumerate((self.spans, self.logs)):
            for instance, at_ns, data in records:
                second = (at_ns + instance.delay_ns) // NS
                waiting.setdefault(second, ([], []))[which].append((instance, data))

    def _hit(self, kind: str, *, condition: bool) -> bool:
        """Whether a fault of `kind` strikes here."""
        struck = condition and self.fault is not None and self.fault.kind == kind
        self.touched |= struck
        return struck

    def _serve(self, operation: Operation, at_ns: float, parent: bytes, kind: int) -> tuple[float, bool, bool]:
        """Runs an operation; returns (when it ended, whether it failed, whether what it gave back is nonsense)."""
        rng, service, fault = self.rng, operation.service, self.fault
        self.met[operation] = None
        if len(self.spans) > SPANS_MAX:
            raise TooLongError
        instance = rng.choice(service.instances)
        own = rng.randbytes(8)
        begin, now = at_ns, at_ns
        failing = (
            len(operation.steps) if rng.random() >= operation.error_rate else rng.randrange(len(operation.steps) + 1)
        )
        here = fault is not None and fault.operation is operation
        failed = nonsense = stopped = False
        background = failing < len(operation.steps)
        for number, step in enumerate(operation.steps):
            struck = here and fault is not None and fault.step == number
            if self._hit("exception", condition=struck) or (background and number == failing):
                failed = True
                break
            if stopped:
                break
            if self._hit("missing_log", condition=struck) or self._hit("step_skipped", condition=struck):
                continue
            if step.share < 1.0 and rng.random() >= step.share * service.fashion(number, now / NS):
                continue
            if isinstance(step, Line):
                self._write(service, instance, own, step, now)
                now += 20_000
            elif isinstance(step, Work):
                now = self._work(step, service, instance, own, now)
            else:
                now, broken, odd = self._call(step, operation, instance, own, now)
                if broken and step.needed:
                    failed = True
                    break
                if odd and operation.odd is not None:  # it was given nonsense: says so, and leaves out the rest
                    self._write(service, instance, own, operation.odd, now)
                    break
            if self._hit("swallowed", condition=struck):
                stopped = True
            elif self._hit("wrong_return", condition=struck):
                stopped = nonsense = True
        if failed and operation.says_errors and operation.failed is not None:
            self._write(service, instance, own, operation.failed, now)
        now += 10_000
        self._span(instance, own, parent, operation.name, kind, begin, now, failed=failed)
        return now, failed, nonsense

    def _work(self, step: Work, service: Service, instance: Instance, own: bytes, now: float) -> float:
        fault, took = self.fault, step.time.draw(self.rng)
        took *= service.pace(now / NS)
        here = fault is not None and fault.at(service, instance)
        if fault is not None and here:
            kinds = ("slow_database",) if step.query else ("cpu", "slow_instance")
            if any(self._hit(kind, condition=True) for kind in kinds):
                took *= fault.size * math.exp(self.rng.gauss(0.0, 0.3))
            if step.query:
                took += self._network(service)
        if instance.pause_every_ns:
            into = now % instance.pause_every_ns
            if into < instance.pause_ns:
                took += instance.pause_ns - into
        if step.query and self.world.client_spans:
            self._span(instance, self.rng.randbytes(8), own, step.query, CLIENT, now, now + took, failed=False)
        return now + took

    def _network(self, service: Service) -> float:
        """What a slow or lossy network of `service` adds to one message."""
        fault = self.fault
        if fault is None or service is not fault.service:
            return 0.0
        if self._hit("network_delay", condition=True):
            return max(0.0, fault.size * (1.0 + self.rng.gauss(0.0, 0.1)))
        if fault.kind == "packet_loss":
            late = 0.0
            while self.rng.random() < fault.size and late < 2000 * MS:
                late = max(2.0 * late, 200.0 * MS)
            self.touched |= late > 0.0
            return late
        return 0.0

    def _call(
        self, step: Call, operation: Operation, instance: Instance, own: bytes, now: float
    ) -> tuple[float, bool, bool]:
        """(when the caller goes on, whether the call failed, whether it brought nonsense)."""
        broken = odd = False
        last = now
        for _ in range(self.rng.randint(1, step.most)):
            begin = now
            for to in step.to:
                end, failed, nonsense = self._one(step, operation, to, instance, own, begin)
                last = max(last, end)
                broken, odd = broken or failed, odd or nonsense
            now = last
        return now, broken, odd

    def _one(
        self, step: Call, operation: Operation, to: Operation, instance: Instance, own: bytes, now: float
    ) -> tuple[float, bool, bool]:
        world, rng, service = self.world, self.rng, operation.service
        if step.how == "queue":
            sent = rng.randbytes(8)
            self._span(instance, sent, own, f"send {to.name}", PRODUCER, now, now + 200_000, failed=False)
            waited = rng.expovariate(1.0 / (20.0 * MS)) + self._network(to.service)
            self._serve(to, now + 200_000 + waited, sent, CONSUMER)
            return now + 200_000, False, False
        for _ in range(step.tries):
            begin, client = now, rng.randbytes(8) if world.client_spans else own
            way = world.hop_ns * math.exp(rng.gauss(0.0, 0.3)) + self._network(service)
            down = self._hit("down", condition=self.fault is not None and self.fault.service is to.service)
            if down:
                now, failed, nonsense = now + (3.0 * NS if to.service.name < "m" else 2.0 * MS), True, False
            else:
                now, failed, nonsense = self._serve(to, now + way, client, SERVER)
                now += world.hop_ns * math.exp(rng.gauss(0.0, 0.3)) + self._network(to.service)
            if world.client_spans:
                name = to.name if world.server_in_call else "HTTP POST"
                self._span(instance, client, own, name, CLIENT, begin, now, failed=failed)
            if not failed:
                break
        return now, failed, nonsense

    def _span(
        self, instance: Instance, own: bytes, parent: bytes, name: str, kind: int, begin: float,
        end: float, *, failed: bool,
    ) -> None:  # fmt: skip
        world = self.world
        kind = kind if world.span_kinds else 0
        shape = world.shape((name, kind), lambda: wire.span_shape(name, kind, {"thread.id": 7}))
        status = wire.error_status("") if failed and world.statuses else b""
        start_ns, end_ns = int(begin) + instance.skew_ns, int(end) + instance.skew_ns
        data = wire.span(self.trace_id, own, parent, shape, start_ns, end_ns, status)
        self.spans.append((instance, int(end), data))

    def _write(self, service: Service, instance: Instance, own: bytes, line: Line, now: float) -> None:
        shape = self.world.shape(line, lambda: wire.log_shape(line.severity, "", {}))
        body = line.words.format(*(f"{self.rng.getrandbits(30):d}" for _ in range(3)))
        tied = wire.correlation(self.trace_id, own) if service.logs_traced else b""
        self.logs.append((instance, int(now), wire.log(shape, int(now) + instance.skew_ns, body, tied)))


def labels_of(injections: list[Injection]) -> tuple[Fault, ...]:
    """The faults as labels."""
    return tuple(
        Fault(f"{number:02d} {one.kind}", one.begin_ns, one.end_ns, one.service.name, one.kind)
        for number, one in enumerate(injections)
    )
