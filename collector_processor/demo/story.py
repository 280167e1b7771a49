"""What happens in a demo, and the settings that let it happen within two minutes.

How it works. A real service learns for hours and waits minutes before it believes what it sees; nobody watches a demo
for that long. So the demo compresses: a business day passes in 75 s with its ups and downs flattened, about 150
requests a second give in 40 s the traffic of an ordinary hour, and every time in the service's settings (`SETTINGS`) is
about a tenth of its default. The rules by which it judges are the shipped ones. `configs/demo.yaml` shows the same
settings as a file.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from collector_processor.config import Config
from collector_processor.simulator.faults import RECIPES, SECOND_NS, Fault, Recipe, fault, rounds

WARMUP_S: Final = 40.0
EVERY_S: Final = 16.0
LASTS_S: Final = 10.0
OPENS: Final = datetime(2025, 12, 1, 7, 0, tzinfo=UTC)  # a Monday morning
DAY_S: Final = 75.0
SWING: Final = 0.15
RATE: Final = 150.0
INTERVAL_S: Final = 0.5

# The first faults of every demo: one of each family, each in another service than the one before.
OPENING: Final = (
    ("exception_thrown", "account.debit"),
    ("network_delay", "risk"),
    ("step_skipped", "order.create_payment>risk.assess"),
    ("interrupted_chain", "ledger.post_payment"),
    ("wrong_value", "account.credit"),
    ("cpu", "clearing"),
    ("double_debit", "order.create_payment>account.debit"),
    ("bad_instance", "account-1"),
    ("traffic_surge", "refund"),
    ("exception_swallowed", "notification.notify"),
)

SETTINGS: Final[dict[str, Any]] = {
    "engine": {"epoch_s": 1.0},
    "join": {"wait_initial_s": 1.5, "wait_min_s": 1.0, "wait_max_s": 3.0, "idle_s": 4.0},
    "decide": {"quarantine_s": 8.0, "resolve_s": 12.0},
    "detectors": {"online": {"window_s": 8.0}, "chain_sequence": {"slice_s": 30.0}},
}


def demo_config(overrides: dict[str, Any] | None = None) -> Config:
    """The embedded defaults with SETTINGS, and `overrides` of the same form on top."""
    return Config.model_validate(merged(SETTINGS, overrides or {}))


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, section by section."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def story(seed: int, start_ns: int, duration_s: float) -> tuple[Fault, ...]:
    """The faults of a demo that starts at `start_ns`: the opening, then all kinds in turn."""
    chosen: list[Recipe] = [next(found for found in RECIPES if (found.kind, found.place) == key) for key in OPENING]
    more = rounds(seed)
    out: list[Fault] = []
    at_s = WARMUP_S
    while at_s + LASTS_S <= duration_s:
        recipe = chosen[len(out)] if len(out) < len(chosen) else next(more)
        while out and recipe.service == out[-1].service:
            recipe = next(more)
        out.append(fault(recipe, len(out) + 1, start_ns + int(at_s * SECOND_NS), LASTS_S))
        at_s += EVERY_S
    return tuple(out)
