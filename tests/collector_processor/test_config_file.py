"""The configuration file: references, the place of each error, the nearest key, and what is refused outright."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_processor.config import Config
from collector_processor.config_file import ConfigError, key_paths, load, loads


def problems(
    text: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> list[tuple[str, int, str]]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "spanchain.yaml", folder, environment or {})
    return [(problem.key, problem.line, problem.message) for problem in caught.value.problems]


def test_an_empty_file_is_the_defaults() -> None:
    for text in ("", "\n# only a comment\n", "{}", "---\n"):
        assert loads(text) == Config()


def test_values_reach_their_keys() -> None:
    config = loads(
        "join:\n  wait_initial_s: 2\n  business_keys: [order.id, 'a b']\ndecide: {timezone: Europe/Berlin}\n"
    )
    assert config.join.wait_initial_s == 2.0
    assert config.join.business_keys == ("order.id", "a b")
    assert config.decide.timezone == "Europe/Berlin"
    assert config.engine == Config().engine


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${env:ZONE}", "Asia/Tokyo"),
        ("'${env:ZONE}'", "Asia/Tokyo"),
        ("x-${env:ZONE}-${env:ZONE}", "x-Asia/Tokyo-Asia/Tokyo"),
        ("${env:ABSENT:-UTC}", "UTC"),
        ("${env:ABSENT:-a:-b}", "a:-b"),
        ("${env:EMPTY:-UTC}", ""),
        ("a$$b", "a$b"),
        ("$${env:ZONE}", "${env:ZONE}"),
        ("cost$", "cost$"),
        ("10:30", "10:30"),
        ("2026-01-01", "2026-01-01"),
        ("off", "off"),
        ("'true'", "true"),
    ],
)
def test_text_and_references(text: str, value: str) -> None:
    config = loads(f"decide:\n  timezone: {text}\n", environment={"ZONE": "Asia/Tokyo", "EMPTY": ""})
    assert config.decide.timezone == value


def test_a_reference_may_give_a_number_or_a_truth() -> None:
    environment = {"WAIT": "2.5", "MAX": "77", "ON": "false"}
    config = loads(
        "join: {wait_min_s: '${env:WAIT}', chains_max: '${env:MAX}'}\ndetectors: {online: {enabled: '${env:ON}'}}",
        environment=environment,
    )
    assert (config.join.wait_min_s, config.join.chains_max, config.detectors.online.enabled) == (2.5, 77, False)


def test_a_file_reference_is_relative_to_the_configuration_and_loses_one_newline(tmp_path: Path) -> None:
    (tmp_path / "zone").write_text("Europe/Paris\n\n")
    (tmp_path / "spanchain.yaml").write_text("decide: {timezone: '${file:zone}'}\n")
    assert load(tmp_path / "spanchain.yaml").decide.timezone == "Europe/Paris\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("join:\n  wait_initial: 3\n", ("join.wait_initial", 2, "unknown key; did you mean wait_initial_s?")),
        ("jion:\n  chains_max: 3\n", ("jion", 1, "unknown key; did you mean join?")),
        ("\n\nwait_min_s: 3\n", ("wait_min_s", 3, "unknown key; did you mean join.wait_min_s?")),
        ("engine:\n  zzz: 1\n", ("engine.zzz", 2, "unknown key; valid here: epoch_s, quarantine_records_max")),
        ("join:\n\n  chains_max: ten\n", ("join.chains_max", 3, "should be a valid integer")),
        ("join:\n  chains_max: 0\n", ("join.chains_max", 2, "should be greater than 0")),
        ("join:\n  chains_max:\n", ("join.chains_max", 2, "should be a valid integer")),
        ("join:\n  wait_min_s: 1e999\n", ("join.wait_min_s", 2, "should be a finite number")),
        (f"join:\n  chains_max: {'9' * 5000}\n", ("join.chains_max", 2, "should be a finite number")),
        ("join:\n  business_keys:\n    - a\n    - [b]\n", ("join.business_keys[1]", 4, "should be a valid string")),
        ("join: 3\n", ("join", 1, "should be a valid dictionary")),
        ("join:\n  chains_max: 1\n  chains_max: 2\n", ("join.chains_max", 3, "given twice; first on line 2")),
        ("join: {}\njoin: {}\n", ("join", 2, "given twice; first on line 1")),
        ("join: {[a]: 1}\n", ("join", 1, "a key must be plain text")),
        ("- join\n", ("", 1, "must be a mapping of sections")),
        ("a: [\n\n", ("", 3, "not valid YAML")),
        ("a: b: c\n", ("", 1, "not valid YAML")),
        ("a: \x00\n", ("", 1, "not valid YAML")),
        ("a: 1\n---\nb: 2\n", ("", 2, "not valid YAML")),
        (
            "decide:\n  timezone: !!python/name:os.system x\n",
            ("decide.timezone", 2, "the tag tag:yaml.org,2002:python"),
        ),
        ("decide:\n  timezone: !secret x\n", ("decide.timezone", 2, "the tag !secret is not supported")),
        ("decide:\n  timezone: ${env:NO}\n", ("decide.timezone", 2, "the environment variable NO is not set")),
        ("decide:\n  timezone: ${NO}\n", ("decide.timezone", 2, "${NO} is no reference")),
        ("decide:\n  timezone: ${http:x}\n", ("decide.timezone", 2, "${http:x} is no reference")),
        ("decide:\n  timezone: ${file:no/such}\n", ("decide.timezone", 2, "cannot be read: No such file")),
    ],
)
def test_each_error_names_key_line_and_remedy(text: str, expected: tuple[str, int, str]) -> None:
    found = problems(text)
    assert len(found) == 1
    key, line, message = found[0]
    assert (key, line) == expected[:2]
    assert expected[2] in message


def test_every_problem_is_told_in_the_order_of_the_file() -> None:
    text = "engine:\n  epoch: 3\njoin:\n  wait_min_s: -1\n  idle: 3\n"
    assert [(key, line) for key, line, _ in problems(text)] == [
        ("engine.epoch", 2),
        ("join.wait_min_s", 4),
        ("join.idle", 5),
    ]


def test_the_text_of_the_error_is_what_an_editor_can_jump_to() -> None:
    with pytest.raises(ConfigError, match=r"^spanchain\.yaml:2: join\.idle: unknown key; did you mean idle_s\?$"):
        loads("join:\n  idle: 3\n", "spanchain.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\n",
        "a: " + "[" * 1000 + "]" * 1000,
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
        ),
    ],
)
def test_aliases_that_grow_without_end_are_refused(text: str) -> None:
    [(_, _, message)] = problems(text)
    assert "nested deeper" in message or "more than" in message


def test_no_error_shows_what_a_secret_holds(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    text = "join:\n  chains_max: ${env:SECRET}\n  wait_min_s: x${file:secret}\n  business_keys: ${env:SECRET}\n"
    found = problems(text, {"SECRET": "hunter2"}, tmp_path)
    assert len(found) == 3
    assert "hunter2" not in repr(found)


def test_a_file_that_cannot_be_read_is_the_same_kind_of_error(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"a: \xff\n")
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    for name, message in (("absent", "No such file"), ("latin", "not UTF-8"), ("large", "larger than")):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name)


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    try:
        loads(text, environment={})
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right


def test_key_paths_lists_every_key_once() -> None:
    paths = list(key_paths(Config))
    assert "join.wait_min_s" in paths
    assert "detectors.chain_sequence.slice_s" in paths
    assert len(paths) == len(set(paths))
