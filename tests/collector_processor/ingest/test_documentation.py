"""docs/receivers.md says what the code does: its example is a valid configuration, its tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from collector_processor.config import LimitsConfig, ReceiversConfig
from collector_processor.decode.repair import REASONS
from collector_processor.ingest.answers import Code
from collector_processor.ingest.inflate import PIECES

TEXT = (Path(__file__).parents[3] / "docs" / "receivers.md").read_text()


def test_the_example_is_a_valid_configuration() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = ReceiversConfig.model_validate(yaml.safe_load(block)["receivers"])
    assert [one.tenant for one in config.auth.credentials] == ["retail", "wholesale", "treasury", "default"]
    assert config.tls is not None


@pytest.mark.parametrize("code", list(Code))
def test_every_answer_is_in_the_table(code: Code) -> None:
    assert f"| {code.http}" in TEXT


@pytest.mark.parametrize("reason", [one for one in REASONS if one not in {"sound", "length", "log_id"}])
def test_every_reason_is_in_the_table(reason: str) -> None:
    assert f"`{reason}`" in TEXT


def test_every_encoding_is_named() -> None:
    for encoding in PIECES:
        assert encoding.removeprefix("x-").partition("-")[0] in TEXT


def test_the_limits_are_the_shipped_ones() -> None:
    limits = LimitsConfig()
    assert f"{limits.request_bytes_max >> 20} MiB" in TEXT
    assert f"{limits.inflight_bytes_max >> 20} MiB" in TEXT
    assert f"{limits.records_max:,} records" in TEXT
    assert f"{limits.elements_max:,} attributes" in TEXT
