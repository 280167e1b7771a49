"""Pages without a Prometheus rule in between: incidents as alerts (`alerts`), sent while they last (`exporter`)."""
