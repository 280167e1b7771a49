"""Verdicts as events (`events`), sent over OTLP (`transport`): beside the original data (`exporter`), or on the spans
themselves (`inline`), which then pass through here (`forward`, `notes`, `splice`)."""
