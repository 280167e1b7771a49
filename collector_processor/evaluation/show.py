"""Reports as tables for a terminal, as JSON for programs, and as figures.

How it works. `as_dict` is the one place that names the measures; tables and JSON follow it. Figures need matplotlib
(the extra `evaluate`), which is imported when one is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from collector_processor.evaluation.faults import FaultReport
from collector_processor.evaluation.labels import NS, Labels
from collector_processor.evaluation.measures import Decisions
from collector_processor.evaluation.run import ChainMeasures, Report
from collector_processor.evaluation.sets import SetReport


def as_dict(report: Report) -> dict[str, Any]:
    """Everything measured, JSON-able; numbers rounded to what they are worth."""
    out: dict[str, Any] = {
        "chains": {name: chain_measures(measures) for name, measures in report.selections.items()},
        "chains_by_fault_type": {
            kind: {"flagged": flagged, "anomalous": every} for kind, (flagged, every) in report.recall_by_type.items()
        },
        "baselines": {name: chain_measures(measures) for name, measures in report.baselines.items()},
        "flagged_outside_faults": _round(report.flagged_outside),
        "records_per_second": round(report.records_per_second),
        "p99_latency_s": _round(report.p99_s),
        "j": _round(report.j),
    }
    if report.faults is not None and report.named_at_once is not None:
        out["incidents"] = _fault_measures(report.faults)
        out["incidents"]["root_cause_when_opened"] = _named(report.named_at_once)
        out["faults"] = [
            {
                "fault_id": result.fault.fault_id,
                "type": result.fault.type,
                "service": result.fault.service,
                "found": result.found,
                "found_after_s": result.found_after_s,
                "rank": result.first_rank,
                "suspects": list(result.first_suspects[:3]),
                "incidents": result.incidents,
            }
            for result in report.faults.results
        ]
    return out


def chain_measures(measures: ChainMeasures) -> dict[str, Any]:
    """One judge's measures on one selection of chains."""
    return {
        "chains": measures.chains,
        "anomalous": measures.anomalous,
        **_decided(measures.decisions),
        "auc_pr": _round(measures.auc_pr),
        "roc_auc": _round(measures.roc_auc),
    }


def _decided(made: Decisions) -> dict[str, Any]:
    return {
        "precision": _round(made.precision),
        "recall": _round(made.recall),
        "f1": _round(made.f1),
        "false_positive_rate": _round(made.false_positive_rate),
    }


def _fault_measures(judged: FaultReport) -> dict[str, Any]:
    return {
        "faults": len(judged.results),
        "found": judged.found,
        "precision": _round(judged.precision),
        "recall": _round(judged.recall),
        "f1": _round(judged.f1),
        "incidents": judged.incidents,
        "false": len(judged.false),
        "false_per_hour": _round(judged.false_per_hour),
        "hours_outside_faults": _round(judged.hours),
        "false_per_covered_hour": _round(judged.false_per_covered_hour),
        "covered_hours": _round(judged.covered_hours),
        "time_to_detect_s": _round(judged.time_to_detect_s),
        "root_cause": _named(judged),
        "by_type": {kind: {"found": found, "faults": every} for kind, (found, every) in judged.by_type().items()},
    }


def _named(judged: FaultReport) -> dict[str, Any]:
    return {f"top_{k}": _round(judged.named_first(k)) for k in (1, 3, 5)}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def tables(title: str, report: Report) -> list[Table]:
    """What a person wants to see, in the order of importance."""
    out = []
    if report.faults is not None:
        out.append(_fault_table(title, report.faults))
    if report.selections:
        out.append(_chain_table(title, report))
    return out


def _fault_table(title: str, judged: FaultReport) -> Table:
    head = (
        f"{title}: {judged.found} of {len(judged.results)} faults found, {len(judged.false)} false incidents"
        f" in {judged.hours:.2f} h outside faults"
    )
    table = Table(title=head, caption=_caption(judged), title_justify="left", caption_justify="left")
    for name in ("fault", "type", "service", "found after", "rank", "first suspects"):
        table.add_column(name, overflow="fold")
    for result in judged.results:
        after = "-" if result.found_after_s is None else f"{result.found_after_s:.0f} s"
        table.add_row(
            result.fault.fault_id,
            result.fault.type,
            result.fault.service,
            after,
            str(result.first_rank or "-"),
            ", ".join(result.first_suspects[:3]),
            style=None if result.found else "red",
        )
    return table


def _caption(judged: FaultReport) -> str:
    parts = [f"precision {judged.precision:.2f}, recall {judged.recall:.2f}, F1 {judged.f1:.2f}"]
    if judged.time_to_detect_s is not None:
        named = [f"top-{k} {share:.0%}" for k in (1, 3, 5) if (share := judged.named_first(k)) is not None]
        parts += [f"median time to detect {judged.time_to_detect_s:.0f} s", "root cause " + ", ".join(named)]
    parts.append(
        f"{judged.false_per_hour:.2f} false per hour outside faults, {judged.false_per_covered_hour:.2f} of all"
    )
    return "; ".join(parts)


def _chain_table(title: str, report: Report) -> Table:
    caption = (
        f"P99 latency {report.p99_s * 1e3:.1f} ms, J {report.j:.3f}, {report.records_per_second:,.0f} records/s,"
        f" {report.flagged_outside:.2%} flagged outside faults"
    )
    rows = [(f"spanchain, {name} chains", measures) for name, measures in report.selections.items()]
    rows += [(f"{name} (best threshold)", measures) for name, measures in report.baselines.items()]
    return _judges(f"{title}: chains", caption, rows)


def _judges(title: str, caption: str | None, rows: list[tuple[str, ChainMeasures]]) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name in ("judge", "chains", "anomalous", "precision", "recall", "F1", "AUC-PR", "ROC AUC"):
        table.add_column(name, justify="left" if name == "judge" else "right")
    for name, measures in rows:
        made = measures.decisions
        ranked = ["-" if v is None else f"{v:.3f}" for v in (measures.auc_pr, measures.roc_auc)]
        decided = [f"{v:.3f}" for v in (made.precision, made.recall, made.f1)]
        style = "bold" if name.startswith("spanchain") else None
        table.add_row(name, str(measures.chains), str(measures.anomalous), *decided, *ranked, style=style)
    return table


def figures(report: Report, labels: Labels, folder: Path, title: str) -> list[Path]:
    """PNGs of scores over time against fault windows, and of precision over recall. Returns what was written.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name, draw in (("scores", _draw_scores), ("precision_recall", _draw_precision)):
        figure = Figure(figsize=(14, 5) if name == "scores" else (6, 5), layout="constrained")
        if draw(figure.add_subplot(), report, labels):
            figure.suptitle(f"{title}: {name.replace('_', ' and ')}")
            written.append(folder / f"{title}_{name}.png")
            figure.savefig(written[-1], dpi=110)
    return written


def _draw_scores(axes: Any, report: Report, labels: Labels) -> bool:
    seen = report.observed.engine
    if not seen.trace_id:
        return False
    origin = int(seen.start_ns.min())

    def minutes(ns: Any) -> Any:
        return (np.asarray(ns, np.float64) - origin) / (60 * NS)

    known = np.array([labels.chains.get(trace) for trace in seen.trace_id], object)
    for value, colour, name in (
        (None, "0.75", "no label"),
        (False, "tab:blue", "normal"),
        (True, "tab:red", "anomalous"),
    ):
        rows = np.array([label is value for label in known], np.bool_)
        axes.scatter(minutes(seen.start_ns[rows]), seen.score[rows], s=6, c=colour, label=name, linewidths=0)
    for fault in labels.faults:
        axes.axvspan(minutes(fault.start_ns), minutes(fault.end_ns), color="tab:orange", alpha=0.18, linewidth=0)
        axes.annotate(
            f"{fault.type}\n{fault.service}", (minutes(fault.start_ns), 1.0), fontsize=5, rotation=90, va="top"
        )
    for incident in report.observed.last.values():
        axes.axvline(minutes(incident.detected_unix_nano), color="black", linewidth=0.8, alpha=0.7)
    axes.set(xlabel="minutes", ylabel="score", ylim=(0, 1.02))
    axes.legend(loc="upper left", fontsize=7, title="lines: incidents", title_fontsize=7)
    return True


def _draw_precision(axes: Any, report: Report, labels: Labels) -> bool:
    if not report.selections or not report.selections["all"].anomalous:
        return False
    judges = {"spanchain": report.observed.engine} | report.observed.baselines
    for name, seen in judges.items():
        rows = [i for i, trace in enumerate(seen.trace_id) if trace in labels.chains]
        anomalous = np.array([labels.chains[seen.trace_id[i]] for i in rows])
        right = np.cumsum(anomalous[np.argsort(-seen.score[rows], kind="stable")])
        axes.plot(
            right / max(1, right[-1]),
            right / np.arange(1, right.size + 1),
            label=name,
            linewidth=2.0 if name == "spanchain" else 0.9,
        )
    made = report.selections["all"].decisions
    axes.plot([made.recall], [made.precision], "ko", label="at the budget's threshold")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=7)
    return True


def recording_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """(recordings, labels) in a folder that holds both."""
    every = sorted(path for path in folder.iterdir() if path.is_file())
    labels = [path for path in every if "label" in path.name]
    return [path for path in every if path not in labels and ".jsonl" in path.name], labels


def set_as_dict(report: SetReport) -> dict[str, Any]:
    """The measures of one offline or live set, JSON-able."""
    return {
        "train_cases": report.train_cases,
        "cases": {name: chain_measures(measures) for name, measures in report.selections.items()},
        "by_type": {
            kind: {"flagged": flagged, "anomalous": every} for kind, (flagged, every) in report.recall_by_type.items()
        },
        "baselines": {name: chain_measures(measures) for name, measures in report.baselines.items()},
        "floors": {name: chain_measures(measures) for name, measures in report.floors.items()},
    }


def set_table(report: SetReport) -> Table:
    """The measures of one set for a person."""
    by_type = ", ".join(f"{kind} {hit}/{every}" for kind, (hit, every) in sorted(report.recall_by_type.items()))
    rows = [(f"spanchain, {name} cases", measures) for name, measures in report.selections.items()]
    rows += [(f"{name} (same budget)", measures) for name, measures in report.floors.items()]
    rows += [(f"{name} (best threshold)", measures) for name, measures in report.baselines.items()]
    return _judges(
        f"{report.name}: {report.train_cases} cases before", f"flagged: {by_type}" if by_type else None, rows
    )
