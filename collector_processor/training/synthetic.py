"""Systems made up at random, with the habits that most systems share: what the general model is trained on.

How it works. A system has services with nouns, operations that act on them, and log lines. What an operation logs and
calls follows the life of a request: received, checked, loaded, changed, stored, told, answered. Lines name the noun of
their operation; queries come before updates; loops repeat a pair; branches leave steps out or end early. In half of the
systems every word is replaced by a made-up one, so that the model learns to compare words instead of learning words.
Nothing is taken from any real system, and everything follows from the seed.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from collector_processor.kernels.lanes import CALLS, LOGS, TOP

NOUNS = tuple(
    """
    order payment account ledger card basket invoice shipment customer product stock price route train station
    seat ticket user session token message mail report document file block replica node job task container
    volume image instance claim policy quote trade position settlement clearing risk limit address contact food
    voucher coupon review rating search index cache queue topic event alert metric profile role group tenant
    device sensor reading tariff meter
    """.split()  # noqa: SIM905 - a list of so many words is read more easily like this
)
PHASES: tuple[tuple[str, ...], ...] = (
    ("received {n} request", "handling {n} <*>", "start {v} {n}", "{v} {n} <*> called", "begin {v} for {n} <*>"),
    (
        "validated {n} <*>",
        "checking {n} of {o} <*>",
        "{n} <*> is allowed",
        "verify {o} of {n}",
        "permission granted for <*>",
    ),
    ("loaded {n} <*> from database", "found {o} <*> of {n} <*>", "cache miss for {n} <*>", "{o} list has <*> entries"),
    ("{v} {n} <*> in progress", "computed {o} <*>", "applied {o} to {n} <*>", "{n} <*> changed from <*> to <*>"),
    ("saved {n} <*>", "{n} <*> stored with id <*>", "committed {n}", "wrote <*> rows of {n}", "updated {o} of {n} <*>"),
    ("published {n} event <*>", "notified {o} service", "sent {o} message for {n} <*>", "queued {o} <*>"),
    ("{n} {v} done in <*> ms", "finished {v} {n} <*>", "returning {n} <*>", "response <*> sent", "{v} {n} completed"),
)
CALLED: tuple[tuple[str, ...], ...] = (
    ("AuthFilter.check", "GET /token/verify", "TokenService.validate", "authenticate"),
    ("{N}Validator.validate", "POST /{o}/check", "{N}Service.check{O}", "risk.assess"),
    ("SELECT {n}", "{N}Repository.findBy{O}", "GET /{n}/{{id}}", "cache get {n}", "load{N}"),
    ("POST /{o}/{v}", "{O}Service.{v}", "{v}{O}", "HTTP POST", "rpc {o}.{v}"),
    ("INSERT {n}", "UPDATE {n}", "{N}Repository.save", "transaction commit", "PUT /{n}/{{id}}"),
    ("publish {n}.{v}d", "notification.send", "POST /notify", "kafka send {n}", "mail.send{N}"),
)
VERBS = (
    *("create", "update", "delete", "query", "get", "list", "reserve", "cancel", "pay", "book", "charge", "refund"),
    *("transfer", "approve", "close", "open", "sync"),
)
STRANGE = 0.5  # share of systems in which every word is made up: what counts there is which words come again
LETTERS = "aeiouaeioubcdfghklmnprstvz"
SERVER = (
    "{N}Controller.{v}",
    "POST /{n}/{v}",
    "GET /{n}/{{id}}",
    "{n}.{v}",
    "{N}Service/{v}{N}",
    "{v}{N}",
    "consume {n}",
)


@dataclass(slots=True)
class System:
    """Texts of events, and lanes over them: what training and the detector share."""

    texts: list[str] = field(default_factory=list)
    is_log: list[bool] = field(default_factory=list)
    lanes: list[tuple[int, int, tuple[int, ...], float]] = field(
        default_factory=list
    )  # head or TOP, kind, events, weight


def make_system(seed: int) -> System:
    """A system with some tens of operations."""
    rng = random.Random(seed)
    system, ids = System(), {}
    nouns = rng.sample(NOUNS, rng.randint(4, 12))
    foreign: dict[str, str] = {}
    strange = rng.random() < STRANGE

    def said(word: re.Match[str]) -> str:
        """A word as this system says it: in a strange one everything is called something else."""
        own = foreign.setdefault(word[0].lower(), "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 9))))
        return own.capitalize() if word[0][0].isupper() else own

    def event(text: str, *, is_log: bool) -> int:
        text = re.sub("[A-Z]?[a-z]+", said, text) if strange else text
        key = (text, is_log)
        if key not in ids:
            ids[key] = len(system.texts)
            system.texts.append(text)
            system.is_log.append(is_log)
        return ids[key]

    for _ in range(rng.randint(10, 40)):
        noun, other, verb = rng.choice(nouns), rng.choice(nouns), rng.choice(VERBS)
        names = {"n": noun, "o": other, "v": verb, "N": noun.capitalize(), "O": other.capitalize()}
        head = event(rng.choice(SERVER).format(**names), is_log=False)
        if rng.random() < 0.1:
            head = TOP
        for kind, phases in ((LOGS, PHASES), (CALLS, CALLED)):
            steps = _steps(rng, phases)
            script = [event(step.format(**names), is_log=kind == LOGS) for step in steps]
            for events, weight in _variants(rng, script):
                system.lanes.append((head, kind, events, weight))
    return system


def _steps(rng: random.Random, phases: tuple[tuple[str, ...], ...]) -> list[str]:
    """Templates of one operation in the order of the phases, a phase left out or told twice now and then."""
    steps: list[str] = []
    often = rng.uniform(0.2, 0.9)
    for phase in phases:
        if rng.random() < often:
            steps += rng.sample(phase, 1 if rng.random() < 0.7 else 2)
    return steps


def _variants(rng: random.Random, script: list[int]) -> list[tuple[tuple[int, ...], float]]:
    """The usual run, and rarer ones: steps left out, an early end, a loop, two neighbours changing places."""
    out: dict[tuple[int, ...], float] = {tuple(script): 100.0}
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        events = list(script)
        way = rng.random()
        if way < 0.35 and events:
            del events[rng.randrange(len(events))]
        elif way < 0.6 and events:
            del events[rng.randrange(1, len(events) + 1) :]
        elif way < 0.85 and len(events) > 1:
            at, size = rng.randrange(len(events) - 1), rng.choice((1, 2, 2, 3))
            events[at + size : at + size] = events[at : at + size] * rng.randint(1, 3)
        elif len(events) > 1:
            at = rng.randrange(len(events) - 1)
            events[at], events[at + 1] = events[at + 1], events[at]
        out.setdefault(tuple(events), rng.choice((30.0, 10.0, 3.0, 1.0)))
    return list(out.items())
