"""The metrics endpoint: what is measured (`metrics`), kept (`telemetry`), and fed and served (`exporter`)."""
