"""What can go wrong on the platform, when it does, and the ground truth that is written of it.

How it works. A `Fault` is a kind, a place and a window. While it is on, the platform's own code looks it up by (kind,
place) at the few points where reality would bite: work takes longer, a packet waits, a statement throws, a call is left
out. `Effects` is that lookup for the faults that are on; with none it is empty and costs nothing. The service under
test is told nothing: it sees spans and logs, and what was injected goes to a labels file only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final

SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault. `place` is what the kind acts on: a service, an operation, an instance, a call, a flow."""

    fault_id: str
    kind: str
    service: str
    place: str
    start_ns: int
    end_ns: int
    size: float = 0.0
    """How bad, in the kind's unit: a factor, seconds, a relative error."""
    share: float = 1.0
    """The share of occasions on which it strikes."""
    title: str = ""
    """A sentence for people."""

    def label(self) -> dict[str, Any]:
        """The fault in the labels form that `spanchain evaluate` reads."""
        return {
            "fault_id": self.fault_id,
            "start_unix_nano": self.start_ns,
            "end_unix_nano": self.end_ns,
            "service": self.service,
            "type": self.kind,
            "place": self.place,
            "early_s": 0,
        }


class Effects:
    """The faults that are on, by (kind, place). Empty means that the platform runs as it should."""

    __slots__ = ("faults", "table")

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        self.table: Mapping[tuple[str, str], Fault] = {(fault.kind, fault.place): fault for fault in faults}

    def get(self, kind: str, place: str) -> Fault | None:
        return self.table.get((kind, place))

    def __bool__(self) -> bool:
        return bool(self.faults)


class Timeline:
    """All faults of a run, asked at rising times for those that are on."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.start_ns, fault.fault_id)))
        self._edges = sorted({edge for fault in self.faults for edge in (fault.start_ns, fault.end_ns)})
        self._valid = (0, 0)  # the effects hold from the first up to the second time
        self._effects = Effects(())

    def at(self, time_ns: int) -> Effects:
        """The effects at `time_ns`; the same object as long as nothing starts or ends."""
        if not self._valid[0] <= time_ns < self._valid[1]:
            before = max((edge for edge in self._edges if edge <= time_ns), default=0)
            after = min((edge for edge in self._edges if edge > time_ns), default=1 << 63)
            self._valid = (before, after)
            self._effects = Effects([fault for fault in self.faults if fault.start_ns <= time_ns < fault.end_ns])
        return self._effects


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to break the platform."""

    kind: str
    service: str
    place: str
    size: float
    share: float
    title: str
    flows: tuple[str, ...] = ("card_payment",)
    """The flows of which most of what passes the place is part."""


RECIPES: Final[tuple[Recipe, ...]] = (
    Recipe("cpu", "account", "account", 8.0, 1.0, "account is starved of CPU"),
    Recipe("cpu", "risk", "risk", 8.0, 1.0, "risk is starved of CPU"),
    Recipe("cpu", "clearing", "clearing", 8.0, 1.0, "clearing is starved of CPU"),
    Recipe("network_delay", "risk", "risk", 0.15, 1.0, "the network of risk is slow"),
    Recipe("network_delay", "account", "account", 0.15, 1.0, "the network of account is slow"),
    Recipe("network_delay", "ledger", "ledger", 0.15, 1.0, "the network of ledger is slow"),
    Recipe("network_loss", "account", "account", 0.2, 0.3, "account's network loses packets"),
    Recipe("network_loss", "clearing", "clearing", 0.2, 0.3, "clearing's network loses packets"),
    Recipe("exception_thrown", "account", "account.debit", 0.0, 0.7, "account throws while it debits"),
    Recipe("exception_thrown", "risk", "risk.assess", 0.0, 0.7, "risk throws while it assesses"),
    Recipe("exception_thrown", "clearing", "clearing.authorise", 0.0, 0.7, "clearing throws while it authorises"),
    Recipe("exception_swallowed", "risk", "risk.assess", 0.0, 1.0, "risk swallows an error and approves"),
    Recipe("exception_swallowed", "clearing", "clearing.authorise", 0.0, 1.0, "clearing swallows an exception"),
    Recipe("exception_swallowed", "notification", "notification.notify", 0.0, 1.0, "notification swallows an error"),
    Recipe("wrong_value", "account", "account.debit", 0.013, 0.7, "account debits a wrong amount"),
    Recipe(
        "wrong_value", "account", "account.credit", 0.02, 0.7, "account credits a wrong amount", ("transfer", "refund")
    ),
    Recipe("wrong_value", "ledger", "ledger.post_payment", 0.01, 0.7, "ledger books a wrong amount"),
    Recipe("step_skipped", "order", "order.create_payment>risk.assess", 0.0, 1.0, "order skips the risk check"),
    Recipe(
        "step_skipped",
        "order",
        "order.create_transfer>risk.assess",
        0.0,
        1.0,
        "order skips risk in transfers",
        ("transfer",),
    ),
    Recipe("double_debit", "order", "order.create_payment>account.debit", 0.0, 0.7, "order debits a payment twice"),
    Recipe(
        "double_debit",
        "order",
        "order.create_transfer>account.debit",
        0.0,
        0.7,
        "order debits a transfer twice",
        ("transfer",),
    ),
    Recipe("missing_log", "ledger", "ledger.post_payment", 0.0, 1.0, "ledger stops writing its audit line"),
    Recipe("missing_log", "account", "account.debit", 0.0, 1.0, "account stops writing its audit line"),
    Recipe("traffic_drop", "gateway", "card_payment", 0.1, 1.0, "nine in ten card payments stay away"),
    Recipe("traffic_drop", "gateway", "login", 0.1, 1.0, "nine in ten logins stay away", ("login",)),
    Recipe("traffic_surge", "gateway", "login", 5.0, 1.0, "five times the usual logins", ("login",)),
    Recipe("traffic_surge", "gateway", "refund", 12.0, 1.0, "twelve times the usual refunds", ("refund",)),
    Recipe("new_path", "notification", "notification.notify>account.balance", 0.0, 1.0, "notification reads balances"),
    Recipe("new_path", "risk", "risk.assess>ledger.post", 0.0, 0.5, "risk posts to the ledger"),
    Recipe("interrupted_chain", "ledger", "ledger.post_payment", 0.0, 1.0, "ledger stops reading its queue"),
    Recipe("interrupted_chain", "notification", "notification.notify", 0.0, 1.0, "notification reads no queue"),
    Recipe("dependency_slow", "account", "account", 25.0, 1.0, "the database of account is slow"),
    Recipe("dependency_slow", "order", "order", 25.0, 1.0, "the database of order is slow"),
    Recipe("dependency_slow", "ledger", "ledger", 25.0, 1.0, "the database of ledger is slow"),
    Recipe("bad_instance", "account", "account-1", 10.0, 0.3, "one account instance is failing"),
    Recipe("bad_instance", "order", "order-2", 10.0, 0.3, "one order instance is failing"),
    Recipe("error_burst", "clearing", "clearing", 0.0, 0.5, "clearing turns requests away"),
    Recipe("error_burst", "account", "account", 0.0, 0.4, "account turns requests away"),
)

KINDS: Final = tuple(dict.fromkeys(recipe.kind for recipe in RECIPES))
CODE_FAULTS: Final = ("exception_swallowed", "wrong_value", "step_skipped", "double_debit", "missing_log")
TRAFFIC_FAULTS: Final = ("traffic_drop", "traffic_surge")


def fault(recipe: Recipe, number: int, start_ns: int, duration_s: float) -> Fault:
    """`recipe` from `start_ns` for `duration_s`."""
    end_ns = start_ns + int(duration_s * SECOND_NS)
    fields = {key: value for key, value in asdict(recipe).items() if key != "flows"}
    return Fault(fault_id=f"{number:03d}-{recipe.kind}", start_ns=start_ns, end_ns=end_ns, **fields)


def rounds(seed: int) -> Iterator[Recipe]:
    """All kinds in a shuffled order, again and again; each time a kind comes it takes its next recipe."""
    rng = random.Random(seed)
    by_kind = {kind: [recipe for recipe in RECIPES if recipe.kind == kind] for kind in KINDS}
    for recipes in by_kind.values():
        rng.shuffle(recipes)
    turn = 0
    while True:
        for kind in rng.sample(KINDS, len(KINDS)):
            yield by_kind[kind][turn % len(by_kind[kind])]
        turn += 1


def schedule(
    seed: int,
    start_ns: int,
    end_ns: int,
    warmup_s: float,
    every_s: float,
    duration_s: float,
    fits: Callable[[Recipe, int], bool] = lambda recipe, at_ns: True,  # noqa: ARG005 - the usual answer
) -> tuple[Fault, ...]:
    """Faults one after another: the first `warmup_s` after `start_ns`, then each `every_s`, all over by `end_ns`.

    `fits` says whether a recipe makes sense at a time; one that does not waits until it does.
    """
    out: list[Fault] = []
    at_ns = start_ns + int(warmup_s * SECOND_NS)
    recipes = rounds(seed)
    waiting: list[Recipe] = []
    while at_ns + int(duration_s * SECOND_NS) <= end_ns:
        chosen = next((recipe for recipe in waiting if fits(recipe, at_ns)), None)
        if chosen is not None:
            waiting.remove(chosen)
        for recipe in islice(recipes, 0 if chosen else len(RECIPES)):
            if fits(recipe, at_ns):
                chosen = recipe
                break
            waiting.append(recipe)
        if chosen is not None:
            out.append(fault(chosen, len(out) + 1, at_ns, duration_s))
        at_ns += int(every_s * SECOND_NS)
    return tuple(out)
