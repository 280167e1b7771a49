"""Tee mode: verdicts as events (`events`), sent over OTLP (`transport`) beside the original data (`exporter`)."""
