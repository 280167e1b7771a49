"""What happens in a demo, and the settings that let it happen within two minutes.

How it works. A real service learns for hours and waits minutes before it believes what it sees; nobody watches a demo
for that long. So time runs twenty times as fast: every time in the settings of engine, detectors and decide is a
twentieth of its default, the alert budget is that of twenty days, and about 60 requests a second make up for what is
missing in length. Besides what is learned, the shipped rules of business for payments hold. A business day passes in
75 s, its ups and downs flattened. The platform has run for a while when the demo begins: the journal holds that, and
the service learns from it as after any restart. `python -m collector_processor.demo settings` prints the settings as
`configs/demo.yaml` holds them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import yaml
from pydantic import BaseModel

from collector_processor.config import Config
from collector_processor.simulator.faults import RECIPES, SECOND_NS, Fault, Recipe, fault, rounds
from collector_processor.simulator.simulator import Simulator
from collector_processor.simulator.traffic import DAY_S as DAY_TRUE_S

WARMUP_S: Final = 40.0  # of normal traffic before the demo begins: what the journal holds of it is learned at once
FIRST_S: Final = 3.0  # from the begin of the demo to the first fault
EVERY_S: Final = 16.0
LASTS_S: Final = 10.0
OPENS: Final = datetime(2025, 12, 1, 7, 0, tzinfo=UTC)  # a Monday morning
DAY_S: Final = 75.0
SWING: Final = 0.15
RATE: Final = 60.0
SEED: Final = 7
INTERVAL_S: Final = 0.25

# The first faults of every demo: one of each family, each in another service than the one before.
OPENING: Final = (
    ("exception_thrown", "account.debit"),
    ("network_delay", "risk"),
    ("step_skipped", "order.create_payment>risk.assess"),
    ("wrong_value", "account.credit"),
    ("interrupted_chain", "ledger.post_payment"),
    ("cpu", "clearing"),
    ("double_debit", "order.create_payment>account.debit"),
    ("bad_instance", "account-1"),
    ("traffic_surge", "refund"),
    ("exception_swallowed", "notification.notify"),
)

SPEED: Final = 20.0
# The platform exports four times a second instead of every five seconds: what is late is late by less.
JOIN: Final = {
    "wait_initial_s": 1.5,
    "wait_max_s": 3.0,
    "idle_s": 4.0,
    "attributes": ["payment.amount", "payment.debit.amount", "payment.credit.amount"],
}
RULES: Final = {"context": {"rules": ["payments"]}}


def hastened(section: BaseModel) -> dict[str, Any]:
    """Every time of `section` and of those inside it divided by SPEED, what is counted a day multiplied by it."""
    out: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            inner = hastened(value)
            if inner:
                out[key] = inner
        elif isinstance(value, float) and key.endswith("_s"):
            out[key] = value / SPEED
        elif isinstance(value, float) and key.endswith("_per_day"):
            out[key] = value * SPEED
    return out


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, section by section."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def settings() -> dict[str, Any]:
    """What the demo sets, as a config file would."""
    whole = Config()
    return {
        "engine": hastened(whole.engine),
        "join": JOIN,
        "decide": hastened(whole.decide),
        "detectors": merged(hastened(whole.detectors), RULES),
    }


SETTINGS: Final = settings()


def platform(start_ns: int) -> Simulator:
    """The platform as it runs without faults, open from `start_ns` on."""
    return Simulator(SEED, start_ns, DAY_TRUE_S / DAY_S, rate=RATE, swing=SWING, interval_s=INTERVAL_S, opening=OPENS)


def demo_config(overrides: dict[str, Any] | None = None) -> Config:
    """The embedded defaults with SETTINGS, and `overrides` of the same form on top."""
    return Config.model_validate(merged(SETTINGS, overrides or {}))


def story(seed: int, start_ns: int, duration_s: float) -> tuple[Fault, ...]:
    """The faults of a demo that starts at `start_ns`: the opening, then all kinds in turn."""
    chosen: list[Recipe] = [next(found for found in RECIPES if (found.kind, found.place) == key) for key in OPENING]
    more = rounds(seed)
    out: list[Fault] = []
    at_s = FIRST_S
    while at_s + LASTS_S <= duration_s:
        recipe = chosen[len(out)] if len(out) < len(chosen) else next(more)
        while out and recipe.service == out[-1].service:
            recipe = next(more)
        out.append(fault(recipe, len(out) + 1, start_ns + int(at_s * SECOND_NS), LASTS_S))
        at_s += EVERY_S
    return tuple(out)


HEAD: Final = """\
# The settings of `spanchain demo`: the defaults at twenty times the speed, so that two minutes show what takes longer
# in production. Do not judge a real system with these: its chains take longer to arrive, its baselines longer to form.
"""


def as_file() -> str:
    """SETTINGS as the text of `configs/demo.yaml`."""
    return HEAD + yaml.safe_dump(SETTINGS, sort_keys=False)
