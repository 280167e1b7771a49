"""What people write first: one Python object a record, Drain3 on every line, dictionaries of lists, and River's
half-space trees on every record and every chain, as in River's own examples of streams.

It does less than the engine (no tree, no flows, no calibration, no incidents), so the comparison is in its favour.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from river.anomaly import HalfSpaceTrees

from collector_processor.model import Signal
from tests.benchmarks.payloads import Mix


def run_naive(mix: Mix) -> float:
    """The sum of the scores of all chains."""
    from drain3 import TemplateMiner

    logging.getLogger("drain3").setLevel(logging.ERROR)
    miner = TemplateMiner()
    chains: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for payload in mix.payloads:
        if payload.signal == Signal.TRACES:
            for group in ExportTraceServiceRequest.FromString(payload.data).resource_spans:
                service = group.resource.attributes[0].value.string_value
                for span in group.scope_spans[0].spans:
                    attributes = {item.key: item.value.string_value for item in span.attributes}
                    ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
                    record = {"time": span.start_time_unix_nano, "event": f"{service} {span.name}", "ms": ms}
                    chains[span.trace_id].append(record | attributes)
        else:
            for logs in ExportLogsServiceRequest.FromString(payload.data).resource_logs:
                for line in logs.scope_logs[0].log_records:
                    cluster = miner.add_log_message(line.body.string_value)["cluster_id"]
                    chains[line.trace_id].append({"time": line.time_unix_nano, "event": f"log {cluster}", "ms": 0.0})
    of_records, of_chains = HalfSpaceTrees(seed=1), HalfSpaceTrees(seed=1)
    total = 0.0
    for records in chains.values():
        counts: dict[str, float] = defaultdict(float)
        for record in sorted(records, key=lambda record: record["time"]):
            counts[record["event"]] += 1.0
            counts["ms"] += record["ms"]
            features = {"ms": record["ms"], "event": hash(record["event"]) % 1000 / 1000, "count": len(records) / 100}
            total += of_records.score_one(features)
            of_records.learn_one(features)
        total += of_chains.score_one(counts)
        of_chains.learn_one(counts)
    return total
