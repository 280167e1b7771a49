"""What the engine reads and joins: attributes, names, chains, and what may not be kept."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from collector_processor.config.section import Count, Positive, Section


class JoinConfig(Section):
    """How records become chains."""

    attributes: tuple[str, ...] = ()
    """Attribute keys whose values rules may read (at most 32); all others are never looked at."""
    business_keys: tuple[str, ...] = ("payment.id", "order.id", "correlation.id")
    """Attributes that tie a log without a trace id to a chain whose spans carry the same value."""
    wait_initial_s: Positive = 6.0
    """Quiet time after which a chain whose root was seen is complete, until its flow's own wait is learned. SDKs export
    every 5 s by default."""
    wait_min_s: Positive = 1.0
    """Least learned wait."""
    wait_max_s: Positive = 30.0
    """Greatest learned wait."""
    idle_s: Positive = 30.0
    """Quiet time after which a chain whose root never came is closed as `timeout`."""
    age_max_s: Positive = 600.0
    """Absolute age at which any chain is closed."""
    chains_max: Count = 1_200_000
    """Open chains of all tenants."""
    records_max: Count = 24_000_000
    """Records in open chains of all tenants."""
    tenant_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The share of the two limits above that one tenant may hold while others wait."""
    chain_records_max: Count = 10_000
    """Records in one chain; further ones are dropped and counted."""
    closed_remembered_s: Positive = 600.0
    """How long a closed chain is remembered, so that a late record is counted as late and makes no second verdict."""
    closed_remembered_max: Count = 1_000_000
    """Closed chains remembered at most (16 bytes each); those forgotten before their time are counted in
    `spanchain_chains_forgotten_total`."""


class DecodeConfig(Section):
    """Bounds of the first-sight dictionaries and of what is read of a record."""

    body_bytes_max: Count = 1024
    """Bytes of a log body that make its template; the rest is not read."""
    services_max: Count = 4096
    """Services of all tenants; a further one counts as `other`. What finds no room in this list or the next ones is
    counted in `spanchain_names_overflow_total`."""
    instances_max: Count = 65_536
    """Instances (pods, hosts, processes) of all services, ever; one service may have a quarter. A further one counts as
    `other` of its service."""
    events_max: Count = 65_536
    """Operations and templates; one service may have a quarter. A further one counts as `other` of its service."""
    flows_max: Count = 2048
    """Flows of all tenants; a further one counts as `other`."""
    paths_max: Count = 65_536
    """Distinct paths of all flows."""
    lookups_max: Count = 1_048_576
    """Entries of the cache from masked text to event; emptied when full."""


class RedactionConfig(Section):
    """What must not be kept, sent or logged. It is taken out of names and log bodies on first sight, before anything is
    made of them, and out of spanchain's own log."""

    cards: bool = True
    """Card numbers: 13 to 19 digits, in groups or not, whose check digit is right (Luhn). They are no numbers to rules
    either; as a business key such a value still joins, by a keyed hash."""
    ibans: bool = True
    """International bank account numbers whose check digits are right."""
    secrets: bool = True
    """Bearer tokens, basic credentials, JSON web tokens, private keys, passwords in URLs, and keys of well-known
    services."""
    emails: bool = False
    """E-mail addresses. In log bodies they are variables anyway."""
    attributes: tuple[str, ...] = (
        *("authorization", "proxy_authorization", "cookie", "set_cookie", "password", "passwd", "pwd", "passphrase"),
        *("secret", "token", "api_key", "access_key", "private_key", "credential", "credentials"),
        *("cvv", "cvv2", "cvc", "cvc2", "pin", "otp", "pan", "card_number"),
    )
    """Attributes whose values must not be kept, by name or by the part behind the last dot, in any case, `-` and `_`
    alike; and names whose value goes when a text says `name=value` or `name: value`."""
    patterns: tuple[str, ...] = ()
    """Regular expressions (Python's) of further texts to take out. In log bodies every word with a digit is a variable
    already: there, patterns see it as `0`."""
    before_journal: bool = False
    """Whether requests are masked before they are journalled: as many stars as there were characters. Off, the journal
    holds what was sent, readable for its owner only, until the next checkpoints free it; on, whatever is made of a
    request later (inline mode) has stars too. Not looked for there: `patterns`, `ibans`, `emails`, and digits other
    than 0-9."""

    @field_validator("patterns")
    @classmethod
    def _patterns_are_valid(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                message = f"{pattern!r} is not a regular expression: {error}"
                raise ValueError(message) from None
        return patterns

    def forbids(self, attribute: str) -> bool:
        """Whether the values of `attribute` must not be kept."""
        name = attribute.lower().replace("-", "_")
        return not {name, name.rpartition(".")[2]}.isdisjoint(one.lower().replace("-", "_") for one in self.attributes)


class EngineConfig(Section):
    """Engine-wide."""

    epoch_s: Positive = 10.0
    """Grid on which detectors learn and incidents are judged; verdicts do not wait for it."""
    quarantine_records_max: Count = 2_000_000
    """Records whose chains wait out `decide.quarantine_s`, some 50 bytes each; every epoch may hold an equal share. Of
    an epoch with more (by default: 20,000 records/s) a sample of chains is learned, the others are judged and counted
    in `spanchain_chains_not_learned_total`."""
