"""`spanchain demo`: a payment platform at work, faults injected one after another, and the service naming each."""

from collector_processor.demo.run import run_demo

__all__ = ["run_demo"]
