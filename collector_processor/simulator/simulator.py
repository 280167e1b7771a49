"""The platform in motion: requests arrive by the curves, run, and what their instances export comes out tick by tick.

How it works. Time is cut in ticks of `interval_s`. For each tick every flow draws its arrivals, each arrival runs as a
`Transaction`, and then the tick's telemetry leaves: one request of traces and one of logs (more when large), grouped by
instance, as a Collector that batches once a second sends them. Spans leave after they ended, so a chain may span
several payloads and its root comes last. Everything follows from the seed: the same arguments give the same bytes,
however the time is cut into calls.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import date, datetime
from typing import Final

from collector_processor.model import Signal
from collector_processor.simulator import wire
from collector_processor.simulator.faults import TRAFFIC_FAULTS, Effects, Fault, Timeline
from collector_processor.simulator.platform import COPIES, ENDPOINTS, ENTRIES
from collector_processor.simulator.traffic import FLOWS, SECOND_NS, Calendar, Flow, arrivals
from collector_processor.simulator.transaction import Instance, Outbox, Transaction, World, serve

RECORDS_MAX: Final = 4096  # in one request: the Collector's default batch is 8192, and its receivers take 4 MiB
BUSY_AT: Final = 2.8  # total level at which workers are busy nine tenths of the time
BUSY_MAX: Final = 0.8  # more workers are started before it gets worse

OnChain = Callable[[bytes, bool | None, Collection[str]], None]


def instances(seed: int, interval_ns: int) -> dict[str, tuple[Instance, ...]]:
    """All running copies: pod names, nodes, clocks a little off, SDKs that export at different moments."""
    rng = random.Random(f"instances {seed}")
    out: dict[str, tuple[Instance, ...]] = {}
    index = 0
    for service, copies in COPIES.items():
        pods = []
        for copy in range(copies):
            pod = f"{service}-{rng.getrandbits(40):010x}"
            resource: dict[str, wire.Value] = {
                "service.name": service,
                "service.namespace": "payments",
                "service.instance.id": f"{service}-{copy}",
                "service.version": "2.14.3",
                "deployment.environment.name": "production",
                "k8s.pod.name": pod,
                "k8s.node.name": f"node-{rng.randrange(6)}",
                "telemetry.sdk.language": "java",
            }
            fields = wire.resource_fields(resource, f"com.example.pay.{service}", "2.14.3")
            skew_ns, phase_ns = int(rng.uniform(-4e5, 4e5)), rng.randrange(interval_ns)
            pods.append(Instance(index, service, f"{service}-{copy}", *fields, skew_ns, phase_ns))
            index += 1
        out[service] = tuple(pods)
    return out


class Simulator:
    """The platform from `start_ns` on.

    `rate` multiplies the traffic (1.0: about one request a second at daytime). `speed`, `opening`, `holidays` and
    `swing` are those of `Calendar`. `on_chain` is told every trace id, the truth about it (True when a fault changed
    something in it, False when not, None when that cannot be said: it failed by itself, or a fault changed how many
    there are), and the ids of the faults that changed it.
    """

    def __init__(
        self,
        seed: int,
        start_ns: int,
        speed: float = 1.0,
        faults: Iterable[Fault] = (),
        *,
        rate: float = 1.0,
        swing: float = 1.0,
        interval_s: float = 1.0,
        opening: datetime | None = None,
        holidays: Iterable[date] = (),
        on_chain: OnChain | None = None,
    ) -> None:
        self.seed = seed
        self.rate = rate
        self.calendar = Calendar(start_ns, speed, opening, frozenset(holidays), swing)
        self.timeline = Timeline(faults)
        self.interval_ns = int(interval_s * SECOND_NS)
        self.on_chain = on_chain
        self._tick = start_ns // self.interval_ns
        self._rng = random.Random()
        self._dice = random.Random()
        copies = instances(seed, self.interval_ns)
        self._copies = tuple(instance for pods in copies.values() for instance in pods)
        self._outbox = Outbox(len(self._copies), self.interval_ns)
        self._world = World(copies, ENDPOINTS, self._outbox)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults of the run, by start."""
        return self.timeline.faults

    def payloads(self, until_ns: int) -> Iterator[tuple[Signal, bytes, int]]:
        """(signal, OTLP export request, time at which it is sent) for every tick that ends by `until_ns`, in order."""
        while (self._tick + 1) * self.interval_ns <= until_ns:
            self._run(self._tick)
            yield from self._exported()

    def rest(self) -> Iterator[tuple[Signal, bytes, int]]:
        """What is still under way, told to its end; nothing new arrives meanwhile."""
        while not self._outbox.is_empty:
            yield from self._exported()

    def skip_to(self, time_ns: int) -> None:
        """Goes on at `time_ns`. What arrives from then on is what would arrive anyway; what came before is not told."""
        self._tick = max(self._tick, time_ns // self.interval_ns)

    def _exported(self) -> Iterator[tuple[Signal, bytes, int]]:
        """What leaves at the end of this tick."""
        spans, logs = self._outbox.take(self._tick)
        self._tick += 1
        for signal, groups in ((Signal.TRACES, spans), (Signal.LOGS, logs)):
            for data in self._requests(groups):
                yield signal, data, self._tick * self.interval_ns

    def _requests(self, groups: list[list[bytes]]) -> Iterator[bytes]:
        """The records of one tick as export requests of at most RECORDS_MAX records."""
        parts: list[bytes] = []
        records = 0
        for instance, found in zip(self._copies, groups, strict=False):
            for begin in range(0, len(found), RECORDS_MAX):
                some = found[begin : begin + RECORDS_MAX]
                if records + len(some) > RECORDS_MAX:
                    yield b"".join(parts)
                    parts, records = [], 0
                parts.append(wire.group(instance.resource, instance.scope, some))
                records += len(some)
        if parts:
            yield b"".join(parts)

    def _run(self, tick: int) -> None:
        """All requests that arrive in `tick`."""
        begin_ns = max(tick * self.interval_ns, self.calendar.start_ns)
        width_s = ((tick + 1) * self.interval_ns - begin_ns) / SECOND_NS
        due: list[tuple[int, int, int]] = []
        level = 0.0
        for number, flow in enumerate(FLOWS):
            per_second = self._rate(flow, begin_ns)
            level += per_second / self.rate
            self._rng.seed(f"{self.seed} {tick} {number}")
            times = arrivals(self._rng, per_second, width_s)
            due.extend((begin_ns + int(at * SECOND_NS), number, count) for count, at in enumerate(times))
        self._world.load = min(BUSY_MAX, 0.05 + 0.85 * level / BUSY_AT)
        due.sort()
        for at_ns, number, count in due:
            self._serve(FLOWS[number], at_ns, f"{self.seed} {tick} {number} {count}")

    def _rate(self, flow: Flow, time_ns: int) -> float:
        rate = self.calendar.rate(flow, time_ns) * self.rate
        effects = self.timeline.at(time_ns)
        for kind in TRAFFIC_FAULTS if effects else ():
            fault = effects.get(kind, flow.name)
            if fault is not None:
                rate *= fault.size
        return rate

    def _serve(self, flow: Flow, at_ns: int, seed: str) -> None:
        effects = self.timeline.at(at_ns)
        self._rng.seed(seed)
        if effects:
            self._dice.seed(f"{seed} faults")
        tx = Transaction(self._world, self._rng, self._dice, effects)
        serve(tx, ENTRIES[flow.name], b"", at_ns)
        if self.on_chain is not None:
            self.on_chain(tx.trace_id, _truth(tx, flow, effects), tx.touched)


def _truth(tx: Transaction, flow: Flow, effects: Effects) -> bool | None:
    if tx.touched:
        return True
    if tx.unsure or any(effects.get(kind, flow.name) for kind in TRAFFIC_FAULTS):
        return None
    return False
