"""Scores of the detectors for one batch of chains -> verdicts, and verdicts -> the rows that files and stores keep.

How it works. `Decider.decide` calibrates, fuses, applies the three thresholds and, for the unusual chains only,
captures what an explanation will need: the detectors' evidence, the amount, the calendar. Everything that later
verdicts depend on changes at epoch boundaries: `advance` ends an epoch's counts, `clear` says which of the chains that
have waited out their quarantine may train, `learn` feeds the calibration with those. Rows and explanations are built
from what was captured.

Cleared are: chains that were not suspect; suspect ones outside of open incidents, when they are merely new, or when
their flow has no more of them than chance allows, else a sample; and, when a flow has changed as a whole, a sample of
the new ones inside too, so that a release becomes normal and an outage does not. What violates a certain rule trains
nothing. What a recognised release made suspect trains the detectors but not the calibration: once those know it, scores
will be what they were before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from collector_processor.config import Config
from collector_processor.decide import explain, fuse
from collector_processor.decide.budget import Budget
from collector_processor.decide.calendar import Calendar
from collector_processor.decide.calibrate import Calibrator, uniform_hash
from collector_processor.kernels import verdicts as kernels
from collector_processor.kernels.calibrate import COLD, OWN, goes_through
from collector_processor.kernels.verdicts import FORBIDDEN, NEW, USUAL
from collector_processor.model import (
    F64,
    I32,
    I64,
    U8,
    Bool,
    Category,
    ChainBatch,
    Findings,
    Incident,
    Kind,
    Outcome,
    Severity,
    Symbols,
    VerdictBatch,
    all_findings,
    content_hash,
)

EVIDENCE_MAX = 8  # findings of one chain whose evidence is captured, the most unlikely first
DAMAGE_P = 0.01  # a finding of something broken counts as such up to this p-value
IN_INCIDENT = 0.02  # what an open incident does to the p-value of a chain through its service: prior odds times fifty
VIOLATION = int(Kind.RULE_VIOLATION)  # numpy compares with a member of an enum ten times slower
SUSPECT_P = 0.02  # chains this unlikely have to be cleared before they train, whatever the budget lets pass
NOWHERE = np.zeros(0, np.bool_)  # no incident is open
NOBODY = np.zeros(0, np.int32)


class Source(Protocol):
    """The part of a detector that decide asks."""

    def evidence(self, finding: np.void) -> dict[str, Any]: ...
    def version(self) -> str: ...


class Scored(Protocol):
    """The part of `detectors.protocol.Scores` that decide reads."""

    @property
    def value(self) -> F64: ...
    @property
    def findings(self) -> Findings: ...


class Decider:
    """Turns scores into verdicts. See the file's head; the engine's calls are in the order of the methods."""

    def __init__(
        self, config: Config, symbols: Symbols, detectors: Mapping[str, Source], components: Mapping[str, str]
    ) -> None:
        """`detectors` in the engine's order; `components` name the part of the score that each feeds.

        `training` is the dtype of `VerdictBatch.training`.

        Raises:
            ValueError: the time zone, the holiday calendar or the amount attribute does not exist.
        """
        self._config = config.decide
        self._symbols = symbols
        self._detectors = dict(detectors)
        self._sources, self._names = tuple(detectors.values()), tuple(detectors)
        parts, part, weights = fuse.parts_of([components[name] for name in self._names], config.decide.weights)
        self._components = parts + self._names
        self._weights = weights[part]
        stated = [name for name, detector in detectors.items() if getattr(detector, "states_probability", False)]
        self._calibrator = Calibrator(
            self._names, part, weights, config.decide.history, config.decide.history_min, stated
        )
        self._budget = Budget(config.decide.alerts_per_day, config.decide.probability_max)
        self._calendar = Calendar(config.decide.calendar, config.decide.timezone)
        self._versions = self._asked_versions()  # as of the last boundary: a change starts a calibration anew
        self._models: dict[str, str] | None = self._versions  # at present; None: to be asked
        self._is_reloaded = False  # whether they may differ from those of the last boundary
        self._reserved = (0, 0)  # flows and tenants that there is room for
        self._troubled = self._released = NOBODY
        self.training = np.dtype([("value", np.float64, (len(self._names) + 1,)), ("state", np.uint8)])
        self._amount = None
        if config.decide.business.amount is not None:
            if config.decide.business.amount not in config.join.attributes:
                raise ValueError(f"decide.business.amount: {config.decide.business.amount!r} is not in join.attributes")
            self._amount = config.join.attributes.index(config.decide.business.amount)

    def decide(self, batch: ChainBatch, scores: Mapping[str, Scored]) -> VerdictBatch:
        """The verdicts of `batch`, whatever part of an epoch's chains it holds. `scores` has every detector."""
        n = len(batch)
        self._reserve()
        said = [scores[name] for name in self._names]
        values = np.array([one.value for one in said]).reshape(len(said), n)
        calibrated = self._calibrator.calibrate(values, batch.flow, batch.tenant)
        p = calibrated.p_fused
        found = _numbered([one.findings for one in said])
        findings, offsets = np.empty_like(found), np.empty(n + 1, np.int64)
        best, damage, unusual = np.empty(n, np.int64), np.empty(n, np.bool_), np.empty(n, np.bool_)
        any_violation = kernels.collate(found, fuse.DAMAGE, DAMAGE_P, VIOLATION, findings, offsets, damage, best)
        if calibrated.any_cold and findings.size:
            p = np.where(calibrated.level == COLD, fuse.cauchy(findings, n, self._weights), p)
        rules = self._violations(findings) if any_violation else {}
        for row, evidence in rules.items():
            if evidence.get("certain"):
                chain = findings["chain"][row]
                p[chain] = min(p[chain], fuse.P_CERTAIN)
        inside = self._through(batch, self._troubled)
        score, state = np.empty(n), np.empty(n, np.uint8)
        any_unusual = kernels.judge(
            *(p, batch.flow, self._budget.limits, SUSPECT_P, inside, self._config.probability_in_incident, IN_INCIDENT),
            *(self._config.score_half, damage, unusual, score, state),
        )
        self._budget.count(batch.flow, state)
        training = np.empty(n, self.training)
        value = training["value"]
        value[:, :-1], value[:, -1], training["state"] = values.T, calibrated.fused, state
        verdicts = VerdictBatch(
            chains=batch,
            score=score,
            severity=np.zeros(n, np.uint8),
            category=np.zeros(n, np.uint8),
            components=dict(zip(self._components, calibrated.p, strict=True)),
            findings=findings,
            finding_offsets=offsets,
            models=self._current_models(),
            detectors=self._names,
            training=training,
        )
        if any_unusual:
            self._judge(verdicts, p, np.flatnonzero(unusual), inside, damage, best, calibrated.level, rules)
        return verdicts

    def _reserve(self) -> None:
        """Room for all flows and tenants."""
        wanted = flows, tenants = len(self._symbols.flows), len(self._symbols.tenants)
        if wanted != self._reserved:
            self._reserved = wanted
            self._budget.reserve(flows)
            self._calibrator.reserve(flows, tenants)

    def advance(self, now_ns: int, troubled: Sequence[int] = (), released: Sequence[int] = ()) -> None:
        """Ends the epoch at the boundary `now_ns`: rates, limits and alarm shares follow what was decided in it.

        `troubled` are the services that open incidents suspect first; a chain through one of them needs less to be
        unusual, and what is suspect about it trains nothing. `released` are those with an open incident that is but a
        release.
        """
        self._troubled = np.array(sorted(troubled), np.int32) if troubled else NOBODY
        self._released = np.array(sorted(released), np.int32) if released else NOBODY
        self._budget.advance(now_ns)
        if self._is_reloaded:
            before, self._versions, self._is_reloaded = self._versions, self._current_models(), False
            for name, version in self._versions.items():
                if before[name] != version:
                    self._calibrator.forget(name)

    def note_reload(self) -> None:
        """A detector has got another model: from the boundary on that ends next, its calibration starts anew."""
        self._models, self._is_reloaded = None, True

    def clear(self, batch: ChainBatch, training: npt.NDArray[Any]) -> Bool:
        """[n] which of the chains whose quarantine is over may train detectors and calibration."""
        self._reserve()
        clear: Bool = training["state"] == USUAL
        if np.count_nonzero(clear) == clear.size:
            return clear
        state, inside = np.ascontiguousarray(training["state"]), self._through(batch, self._troubled)
        return self._budget.clear(state, batch.flow, uniform_hash(batch), self._config.audit_share, inside)

    def learn(self, batch: ChainBatch, training: npt.NDArray[Any], normal: Bool) -> None:
        """Feeds the calibration with the `normal` [n] chains. One call an epoch boundary, with all chains due then."""
        if len(batch):
            released = self._through(batch, self._released)
            if released.size:
                normal = normal & ~(released & (training["state"] == NEW))
            self._calibrator.learn(np.ascontiguousarray(training["value"]), batch, normal)

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": 1,
            "calibrator": self._calibrator.snapshot(),
            "budget": self._budget.snapshot(),
            "models": dict(self._versions),
            "troubled": self._troubled.copy(),
            "released": self._released.copy(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back a snapshot; a detector whose model has changed since starts its calibration anew."""
        self._calibrator.restore(state["calibrator"])
        self._budget.restore(state["budget"])
        self._troubled = np.array(state["troubled"], np.int32)
        self._released = np.array(state["released"], np.int32)
        self._versions = self._asked_versions() | {k: v for k, v in state["models"].items() if k in self._versions}
        self._reserved = (0, 0)
        self.note_reload()

    def describe_state(self) -> str | None:
        """Which flows are still too young to be judged by their own history; None when none is."""
        young = [
            f"{explain.clean(name)} ({self._calibrator.history_of(flow)} of {self._config.history_min} chains)"
            for flow, name in enumerate(self._symbols.flows.text)
            if 0 < self._calibrator.history_of(flow) < self._config.history_min
        ]
        if not young:
            return None
        more = f" and {len(young) - 5} more" if len(young) > 5 else ""
        return f"judged together with other flows until they have enough history: {', '.join(young[:5])}{more}"

    def _through(self, batch: ChainBatch, services: I32) -> Bool:
        """[n] which chains go through one of `services` (ascending); [0] when there is none."""
        if services.size == 0 or len(batch) == 0:
            return NOWHERE
        through = np.empty(len(batch), np.bool_)
        goes_through(batch.offsets, batch.event, batch.symbols.events.column("service"), services, through)
        return through

    def _asked_versions(self) -> dict[str, str]:
        return {name: detector.version() for name, detector in self._detectors.items()}

    def _current_models(self) -> dict[str, str]:
        """The detectors' versions, asked anew only when one has got another model."""
        if self._models is None:
            self._models = self._asked_versions()
        return self._models

    def _violations(self, findings: Findings) -> dict[int, dict[str, Any]]:
        """Finding row -> evidence of each rule violation."""
        kinds = findings["kind"].tolist()
        return {row: self._evidence(findings[row]) for row, kind in enumerate(kinds) if kind == VIOLATION}

    def _evidence(self, finding: np.void) -> dict[str, Any]:
        found: dict[str, Any] = explain.cleaned(self._sources[finding["detector"]].evidence(finding))
        return found

    def _judge(
        self,
        verdicts: VerdictBatch,
        p: F64,
        chains: I64,
        inside: Bool,
        damage: Bool,
        best: I64,
        level: U8,
        rules: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """Fills severity, category, evidence and notes of the unusual `chains`. They are few: a chain at a time is
        faster than columns of them."""
        batch, findings, config = verdicts.chains, verdicts.findings, self._config
        forced = {int(findings["chain"][row]): found for row, found in rules.items() if found.get("certain")}
        least: dict[int, int] = {}  # severity, by the rules that a chain violates
        for row, found in rules.items():
            chain = int(findings["chain"][row])
            least[chain] = max(least.get(chain, 0), _enum(Severity, found.get("severity"), Severity.WARNING))
        amounts = self._amounts(batch)
        for chain in chains.tolist():
            amount = None if amounts is None or not np.isfinite(amounts[chain]) else float(amounts[chain])
            moment = self._calendar.at(int(batch.start_ns[chain]))
            severity = max(fuse.grade(verdicts.score[chain], damage[chain], config), least.get(chain, 0))
            verdicts.severity[chain] = fuse.weigh(severity, amount, moment.shift, config.business)
            is_certain = chain in forced
            if is_certain:
                category = _enum(Category, forced[chain].get("category"), Category.COMPLIANCE)
                verdicts.training["state"][chain] = FORBIDDEN
            elif best[chain] >= 0:
                category = int(fuse.CATEGORY[findings["kind"][best[chain]]])
            else:
                category = _category_without_finding(verdicts.components, chain)
            verdicts.category[chain] = category
            verdicts.notes[chain] = {
                "p": float(p[chain]),
                "level": int(level[chain]),
                "inside": bool(inside[chain]) if inside.size else False,
                "certain": is_certain,
                "history": self._calibrator.history_of(int(batch.flow[chain])),
                "amount": amount,
                "local": moment.local if moment.periods or moment.holiday else None,
                "periods": moment.periods,
                "holiday": moment.holiday,
            }
        self._capture(verdicts, chains, rules)

    def _capture(self, verdicts: VerdictBatch, chains: I64, rules: Mapping[int, Mapping[str, Any]]) -> None:
        """Asks the detectors for the evidence behind the strongest findings of `chains`; equal findings once."""
        findings, offsets = verdicts.findings, verdicts.finding_offsets
        asked: dict[bytes, dict[str, Any]] = {}
        for chain in chains.tolist():
            for row in strongest(findings, int(offsets[chain]), int(offsets[chain + 1]))[:EVIDENCE_MAX]:
                if row in rules:
                    verdicts.evidence[row] = dict(rules[row])
                    continue
                finding = findings[row]
                key = finding.tobytes()[4:]  # all but the chain
                if key not in asked:
                    asked[key] = self._evidence(finding)
                verdicts.evidence[row] = asked[key]

    def _amounts(self, batch: ChainBatch) -> F64 | None:
        """[n] the greatest amount in each chain, -inf when it has none; None when amounts do not count."""
        if self._amount is None:
            return None
        out = np.full(len(batch), -np.inf)
        cells = (batch.cell_key == self._amount) & np.isfinite(batch.cell_number)
        chain = np.searchsorted(batch.offsets, batch.cell_record[cells], side="right") - 1
        np.maximum.at(out, chain, batch.cell_number[cells])
        return out


def strongest(findings: Findings, start: int, stop: int) -> list[int]:
    """The finding rows start..stop, rule violations first, then by rising p-value."""
    if stop - start < 2:
        return list(range(start, stop))
    p, kind = findings["p"][start:stop].tolist(), findings["kind"][start:stop].tolist()
    return [start + row for row in sorted(range(stop - start), key=lambda row: (kind[row] != VIOLATION, p[row], row))]


def verdict_id(verdicts: VerdictBatch, chain: int) -> str:
    """16 hex digits from tenant, trace id, event sequence and start: the same however and whenever the chain came."""
    batch = verdicts.chains
    return f"{_identity(batch, chain):016x}"


def verdict_rows(verdicts: VerdictBatch, which: I64 | I32 | Bool) -> Iterator[dict[str, Any]]:
    """The lines of verdicts.jsonl for the chains `which` (indices or mask), in that order."""
    chains = np.flatnonzero(which) if which.dtype == np.bool_ else which
    batch, symbols = verdicts.chains, verdicts.chains.symbols
    for chain in chains.tolist():
        rows = strongest(
            verdicts.findings, int(verdicts.finding_offsets[chain]), int(verdicts.finding_offsets[chain + 1])
        )
        severity = Severity(int(verdicts.severity[chain]))
        category = Category(int(verdicts.category[chain]))
        row: dict[str, Any] = {
            "verdict_id": verdict_id(verdicts, chain),
            "tenant": symbols.tenants.text[batch.tenant[chain]],
            "trace_id": batch.trace_id(chain),
            "flow": explain.clean(symbols.flows.text[max(int(batch.flow[chain]), 0)]),
            "start_unix_nano": int(batch.start_ns[chain]),
            "end_unix_nano": int(batch.end_ns[chain]),
            "score": round(float(verdicts.score[chain]), 6),
            "severity": severity.name.lower(),
            "category": category.name.lower() if category else None,
            "findings": [_finding_row(verdicts, finding) for finding in rows],
            "components": {name: _digits(float(p[chain])) for name, p in verdicts.components.items()},
            "models": verdicts.models,
        }
        if severity != Severity.NONE:
            row["explanation"] = _explanation(verdicts, chain, rows)
        yield row


def incident_row(incident: Incident) -> dict[str, Any]:
    """The line of incidents.jsonl."""
    return {
        "incident_id": incident.incident_id,
        "tenant": incident.tenant,
        "kind": incident.kind,
        "category": incident.category,
        "severity": incident.severity,
        "subject": incident.subject,
        "suspects": incident.suspects,
        "flows": incident.flows,
        "opened_unix_nano": incident.opened_unix_nano,
        "detected_unix_nano": incident.detected_unix_nano,
        "resolved_unix_nano": incident.resolved_unix_nano,
        "chains": incident.chains,
        "example_trace_ids": incident.example_trace_ids,
        "explanation": incident.explanation,
        "state": incident.state,
    }


def _numbered(parts: Sequence[Findings]) -> Findings:
    """The findings of all detectors, in detector order, each with its detector's index."""
    for index, part in enumerate(parts):
        if part.size:
            part["detector"] = index
    return all_findings(parts)


def _category_without_finding(components: Mapping[str, F64], chain: int) -> int:
    """Of a chain that no finding explains: magnitudes are the system's matter, order and content the flow's."""
    parts = [part for part in ("rec", "seq", "ctx") if part in components]
    least = min(parts, key=lambda part: components[part][chain])
    return int(Category.SYSTEM if least == "ctx" else Category.OPERATIONAL)


def _enum(kind: type[Severity | Category], name: Any, default: int) -> int:
    """The member of `kind` called `name`, else `default`."""
    return int(kind.__members__.get(str(name).upper(), default))


def _identity(batch: ChainBatch, chain: int) -> int:
    return content_hash(
        batch.symbols.tenants.text[batch.tenant[chain]],
        int(batch.trace_hi[chain]),
        int(batch.trace_lo[chain]),
        int(batch.sequence[chain]),
        int(batch.start_ns[chain]),
    )


def _finding_row(verdicts: VerdictBatch, row: int) -> dict[str, Any]:
    finding, evidence = verdicts.findings[row], verdicts.evidence.get(row, {})
    one = explain.said(verdicts.chains.symbols, finding, evidence)
    return {
        "detector": verdicts.detectors[finding["detector"]],
        "kind": one.kind.name.lower(),
        "subject": explain.subject_of(one),
        "p_value": _digits(float(finding["p"])),
        "evidence": {"expected": _digits(one.expected), "actual": _digits(one.actual)} | dict(evidence),
    }


def _explanation(verdicts: VerdictBatch, chain: int, rows: Sequence[int]) -> dict[str, Any]:
    batch, note = verdicts.chains, verdicts.notes[chain]
    findings = verdicts.findings[list(rows)]
    affected = explain.affected_by(batch.symbols, max(int(batch.flow[chain]), 0), findings, note["amount"])
    return explain.explain(
        batch.symbols,
        findings,
        [verdicts.evidence.get(row, {}) for row in rows],
        affected,
        _notes(note, Outcome(int(batch.outcome[chain]))),
    )


def _notes(note: Mapping[str, Any], outcome: Outcome) -> list[str]:
    """Sentences about how the verdict came about and when it was."""
    odds = explain.one_in(note["p"])
    if note["certain"]:
        out = ["A certain rule is violated, so no odds were weighed"]
    elif note["level"] == OWN:
        out = [f"{odds} normal chains look so unusual, judged by {note['history']} of the same flow"]
    elif note["level"] == COLD:
        out = [f"{odds} normal chains should look so unusual, by the detectors' own odds: there is no history yet"]
    else:
        out = [f"{odds} normal chains look so unusual, judged by all flows: this one has little history"]
    out[0] = out[0][:1].upper() + out[0][1:]
    if note["inside"]:
        out.append("Less was asked of it, because an incident is open at a service that it went through")
    if outcome == Outcome.TIMEOUT:
        out.append("Its root never came within the time limit, so records may be missing")
    elif outcome == Outcome.EVICTED:
        out.append("It was cut short because a limit of open chains was reached, so records may be missing")
    if note["local"]:
        when = f"It was {note['local']}" + (f", {note['holiday']}" if note["holiday"] else "")
        out.append(when + (f", during {' and '.join(note['periods'])}" if note["periods"] else ""))
    return out


def _digits(value: float) -> float:
    """`value` with 4 significant digits: what a reader can use, and the same on every processor."""
    return float(f"{value:.4g}")
