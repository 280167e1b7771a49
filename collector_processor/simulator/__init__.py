"""A payment platform that never existed: it answers requests, logs, breaks, and speaks OTLP about all of it."""
