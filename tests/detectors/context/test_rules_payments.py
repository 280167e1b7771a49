"""The shipped rules against the payment platform: silent while it runs well, and each code fault found by its rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from collector_processor.config import Config
from collector_processor.decode.decoder import Decoder
from collector_processor.join.joiner import Joiner
from collector_processor.model import ChainBatch, Payload, Symbols
from collector_processor.simulator.faults import CODE_FAULTS, RECIPES, Recipe, fault
from collector_processor.simulator.simulator import Simulator
from detectors.context import rulebook
from detectors.context.rules import Rules

NS = 1_000_000_000
START_NS = 1_766_397_600 * NS
ATTRIBUTES = ("payment.amount", "payment.debit.amount", "payment.credit.amount")

# What must be named for each fault: by which rule, and which service stands there.
FOUND_BY = {
    ("wrong_value", "account.debit"): ("debit-equals-credit", "account"),
    ("wrong_value", "account.credit"): ("debit-equals-credit", "account"),
    ("wrong_value", "ledger.post_payment"): ("debit-equals-credit", "ledger"),
    ("step_skipped", "order.create_payment>risk.assess"): ("risk-before-debit", "order"),
    ("step_skipped", "order.create_transfer>risk.assess"): ("risk-before-debit", "order"),
    ("double_debit", "order.create_payment>account.debit"): ("one-debit-a-payment", "order"),
    ("double_debit", "order.create_transfer>account.debit"): ("one-debit-a-payment", "order"),
    ("missing_log", "ledger.post_payment"): ("journal-entries-leave-an-audit-line", "ledger"),
    ("missing_log", "account.debit"): ("debits-leave-an-audit-line", "account"),
    ("new_path", "notification.notify>account.balance"): ("notification-reads-no-accounts", "account"),
    ("new_path", "risk.assess>ledger.post"): ("only-orders-and-settlement-post", "ledger"),
    ("interrupted_chain", "ledger.post_payment"): ("authorised-payments-are-posted", "ledger"),
    ("interrupted_chain", "notification.notify"): ("customers-are-told", "notification"),
}


class Run:
    """The platform for a minute and a half, its chains judged; from the thirtieth second on with a fault."""

    def __init__(self, recipes: Iterable[Recipe]) -> None:
        config = Config.model_validate({"join": {"attributes": ATTRIBUTES}})
        self.symbols = Symbols()
        self._decoder = Decoder(config.decode, config.join, self.symbols, 0)
        self._joiner = Joiner(config.join, self.symbols, self._decoder.attributes)
        self.rules = Rules(["payments"], ATTRIBUTES, self.symbols)
        self.faulty: set[str] = set()
        self.violations: dict[str, set[tuple[str, str]]] = {}
        self.chains = 0
        faults = [fault(recipe, 1, START_NS + 30 * NS, 60.0) for recipe in recipes]
        sim = Simulator(3, START_NS, 1.0, faults, rate=15.0, on_chain=self._on_chain)
        end_ns = START_NS + 90 * NS
        for batch in self._closed(sim, end_ns):
            self._judge(batch, end_ns)

    def _on_chain(self, trace_id: bytes, anomalous: bool | None, _: object) -> None:
        if anomalous is not False:
            self.faulty.add(trace_id.hex())

    def _closed(self, sim: Simulator, end_ns: int) -> Iterator[ChainBatch]:
        for signal, data, sent_ns in sim.payloads(end_ns):
            yield from self._joiner.close(sent_ns)
            yield from self._joiner.append(self._decoder.decode(Payload(signal, "default", data, sent_ns)), sent_ns)
        while (deadline := self._joiner.next_deadline()) is not None:
            yield from self._joiner.close(deadline)

    def _judge(self, batch: ChainBatch, end_ns: int) -> None:
        self.chains += len(batch)
        for finding in self.rules.score(batch):
            chain = int(finding["chain"])
            if batch.start_ns[chain] > end_ns - 5 * NS:
                continue  # cut off by the end of the run
            service = self.symbols.services.text[finding["service"]]
            name = self.rules.rules[int(finding["detail"])].name
            self.violations.setdefault(batch.trace_id(chain), set()).add((name, service))


@pytest.mark.slow
def test_a_platform_that_runs_well_breaks_no_rule() -> None:
    run = Run([])
    assert run.chains > 500
    assert run.violations == {}
    assert run.rules.describe_state() is None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place"), FOUND_BY)
def test_each_fault_is_found_by_its_rule_and_in_its_chains_only(kind: str, place: str) -> None:
    recipe = next(found for found in RECIPES if (found.kind, found.place) == (kind, place))
    run = Run([recipe])
    broken = {trace for trace, found in run.violations.items() if FOUND_BY[kind, place] in found}
    assert len(broken) > 10
    assert set(run.violations) <= run.faulty
    assert Counter(pair for found in run.violations.values() for pair in found).most_common(1)[0][1] >= len(broken)
    assert len(broken) >= 0.75 * len(run.violations)


def test_the_rules_cover_every_code_fault_that_a_rule_can_see() -> None:
    seen = {kind for kind, _ in FOUND_BY}
    assert set(CODE_FAULTS) - seen == {"exception_swallowed"}  # it leaves money and steps as they are


def test_the_shipped_rules_lie_among_the_example_configs(repository: Path) -> None:
    example = (repository / "configs" / "rules-payments.yaml").read_text()
    assert example == (rulebook.SHIPPED / "rules-payments.yaml").read_text()
    rules, _ = rulebook.load([str(repository / "configs" / "rules-payments.yaml")])
    assert {rule.category for rule, _ in rules} == {"system", "operational", "compliance"}
