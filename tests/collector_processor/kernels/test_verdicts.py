"""What the kernels behind verdicts and incidents say of small batches, against the same in numpy."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.decide.incidents import SEEN
from collector_processor.kernels import incidents, verdicts
from collector_processor.model import NONE, Findings, no_findings
from tests.examples import examples

P = st.sampled_from([1e-9, 0.01, 0.05, 0.5, 1.0])
FINDINGS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), P), max_size=12)
CHAINS = 5


def findings_of(rows: list[tuple[int, int, float]]) -> Findings:
    """Findings of (chain, kind, p), by chain."""
    out = no_findings(len(rows))
    for i, (chain, kind, p) in enumerate(sorted(rows)):
        out["chain"][i], out["kind"][i], out["p"][i], out["service"][i] = chain, kind, p, kind
    return out


@given(FINDINGS, st.randoms(use_true_random=False))
@examples(60)
def test_findings_are_put_in_the_order_of_chains(rows: list[tuple[int, int, float]], random: Random) -> None:
    found = findings_of(rows)
    found["detail"] = np.arange(found.size)
    found = found.take(random.sample(range(found.size), found.size))
    damaging, findings = np.array([True, False, True]), np.empty_like(found)
    offsets, damage, best = np.empty(CHAINS + 1, np.int64), np.empty(CHAINS, np.bool_), np.empty(CHAINS, np.int64)
    any_violation = verdicts.collate(found, damaging, 0.01, 1, findings, offsets, damage, best)
    expected = found.take(np.argsort(found["chain"], kind="stable"))
    assert findings.tobytes() == expected.tobytes()
    assert offsets.tolist() == np.searchsorted(findings["chain"], np.arange(CHAINS + 1)).tolist()
    broken = np.zeros(CHAINS, np.bool_)
    broken[found["chain"][damaging[found["kind"]] & (found["p"] <= 0.01)]] = True
    assert damage.tolist() == broken.tolist()
    assert any_violation == (found["kind"] == 1).any()
    for chain, row in enumerate(best.tolist()):
        p = findings["p"][offsets[chain] : offsets[chain + 1]]
        assert row == (offsets[chain] + p.argmin() if p.size else -1)


@given(
    st.lists(st.tuples(P, st.booleans(), st.integers(-1, 1)), min_size=CHAINS, max_size=CHAINS),
    st.integers(0, 2**CHAINS),
    st.booleans(),
)
@examples(60)
def test_which_chains_are_unusual_and_suspect(chains: list[tuple[float, bool, int]], where: int, is_open: bool) -> None:
    p, damage, flow = (np.array(column) for column in zip(*chains, strict=True))
    limits = np.array([1e-6, 0.01])
    inside = np.array([bool(where >> c & 1) for c in range(CHAINS)]) if is_open else np.zeros(0, np.bool_)
    unusual, score, state = np.empty(CHAINS, np.bool_), np.empty(CHAINS), np.empty(CHAINS, np.uint8)
    any_unusual = verdicts.judge(p, flow, limits, 0.02, inside, 0.05, 0.5, 1e-3, damage, unusual, score, state)
    troubled = inside if is_open else np.zeros(CHAINS, np.bool_)
    expected = (p <= limits[np.maximum(flow, 0)]) | (troubled & (p <= 0.05))
    suspect = (p <= 0.02) | expected if is_open else p <= 0.02
    assert unusual.tolist() == expected.tolist()
    assert any_unusual == expected.any()
    assert state.tolist() == np.where(suspect, np.where(damage, verdicts.BROKEN, verdicts.NEW), verdicts.USUAL).tolist()
    assert score.tolist() == [verdicts.score_of(one, 1e-3) for one in np.where(troubled, p * 0.5, p)]


@given(st.floats(1e-30, 1.0), st.floats(1e-30, 1.0))
def test_the_score_falls_as_p_rises(one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert 0 <= verdicts.score_of(high, 1e-3) <= verdicts.score_of(low, 1e-3) < 1
    if high > low * (1 + 1e-6):
        assert verdicts.score_of(high, 1e-3) < verdicts.score_of(low, 1e-3)


def test_the_score_at_its_landmarks() -> None:
    scores = [verdicts.score_of(p, 1e-3) for p in (1.0, 1e-3, 1e-12)]
    assert scores == pytest.approx([0.0, 0.5, 0.8])
    assert str(scores[0]) == "0.0"


@given(FINDINGS, st.lists(st.integers(0, 2), min_size=CHAINS, max_size=CHAINS))
@examples(60)
def test_what_incidents_note_of_a_batch(rows: list[tuple[int, int, float]], severities: list[int]) -> None:
    findings, severity = findings_of(rows), np.array(severities, np.uint8)
    repeated = np.array([False, True, False])
    flow, hi, lo = np.arange(CHAINS, dtype=np.int32), np.zeros(CHAINS, np.uint64), np.arange(CHAINS, dtype=np.uint64)
    seen, again = np.empty(findings.size, SEEN), np.empty(findings.size, np.int64)
    count, often = incidents.note(findings, severity, repeated, 0.05, flow, hi, lo, seen, again)
    usual = repeated[findings["kind"]] & (severity[findings["chain"]] == 0)
    kept = findings.compress((findings["p"] <= 0.05) & ~usual)
    assert seen["flow"][:count].tolist() == kept["chain"].tolist()
    assert seen["service"][:count].tolist() == kept["service"].tolist()
    assert again[:often].tolist() == np.flatnonzero(repeated[findings["kind"]] & ~usual).tolist()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(NONE, 1)), max_size=12))
@examples(60)
def test_the_chains_that_an_incident_is_about(rows: list[tuple[int, int, int]]) -> None:
    seen = np.zeros(len(rows), SEEN)
    for i, (chain, service, instance) in enumerate(sorted(rows)):
        seen["lo"][i], seen["service"][i], seen["instance"][i] = chain, service, instance
    seen["flow"] = seen["lo"] + 7
    first, flows, instances = np.empty((3, seen.size), np.int64)
    chains, located = incidents.about(seen, np.array([1, 2], np.int32), 2, first, flows, instances)
    is_about = np.isin(seen["service"], [1, 2])
    assert seen["lo"][first[:chains]].tolist() == sorted(set(seen["lo"][is_about].tolist()))
    assert flows[:chains].tolist() == seen["flow"][first[:chains]].tolist()
    own = (seen["service"] == 2) & (seen["instance"] != NONE)
    assert instances[:located].tolist() == seen["instance"][own].tolist()
