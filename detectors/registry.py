"""Which detectors there are: name -> how to build it, and which part of the fused score it feeds.

How it works. `s = l1*d_rec + l2*d_seq + l3*d_ctx`: every detector feeds one of the components `rec` (distance to what
is known), `seq` (order of events), `ctx` (rules, topology, magnitudes). The order of this table is the order in which
the engine asks them, and the index that a finding carries. A detector's name is also its section in `config.detectors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from collector_processor.config import Config
from collector_processor.model import Symbols
from detectors import chain_sequence, context, online, retrieval, sequence_transformer, shadow
from detectors.online.slices import load_learners
from detectors.protocol import Detector, Factory

Component = Literal["rec", "seq", "ctx"]


@dataclass(frozen=True, slots=True)
class Registered:
    """One detector of the table."""

    component: Component
    build: Factory


DETECTORS: dict[str, Registered] = {
    "chain_sequence": Registered("seq", chain_sequence.build),
    "retrieval": Registered("rec", retrieval.build),
    "sequence_transformer": Registered("seq", sequence_transformer.build),
    "context": Registered("ctx", context.build),
    "online": Registered("ctx", online.build),
    "shadow": Registered("ctx", shadow.build),
}


def build(config: Config, symbols: Symbols) -> dict[str, Detector]:
    """The detectors that `config` enables, by name, in the order of the table."""
    return {
        name: registered.build(config, symbols)
        for name, registered in DETECTORS.items()
        if getattr(config.detectors, name).enabled
    }


def preload(config: Config) -> None:
    """Imports what the detectors need only minutes after a start, so that nobody waits for it then."""
    if config.detectors.online.enabled:
        load_learners()


def components(names: list[str]) -> dict[str, Component]:
    """The component that each of the detectors `names` feeds."""
    return {name: DETECTORS[name].component for name in names}
