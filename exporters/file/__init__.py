"""`verdicts.jsonl` and `incidents.jsonl`: the two files (`jsonl`), and the exporter that fills them (`exporter`)."""
