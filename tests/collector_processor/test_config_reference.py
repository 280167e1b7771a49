"""`docs/configuration.md` is what the models say, and every key is explained."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from collector_processor.config import Config
from collector_processor.config_file import models_in
from collector_processor.config_reference import reference, type_text


def test_the_reference_is_not_stale(repository: Path) -> None:
    assert (repository / "docs" / "configuration.md").read_text() == reference(), "make docs writes it anew"


def test_every_key_is_explained() -> None:
    models: list[type[BaseModel]] = [Config]
    silent = []
    for model in models:
        for name, field in model.model_fields.items():
            inner = models_in(field.annotation)
            models.extend(new for new in inner if new not in models)
            if not inner and not field.description:
                silent.append(f"{model.__name__}.{name}")
    assert silent == []


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    size: int


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "integer"),
        (Annotated[float, Field(gt=0, le=1)], "number > 0, <= 1"),
        (bool, "true or false"),
        (SecretStr, "text (secret)"),
        (Path, "path"),
        (str | None, "text or null"),
        (Literal["a", "b"], "`a` or `b`"),
        (Colour, "`red` or `blue`"),
        (tuple[str, ...], "list of text"),
        (tuple[float, float], "list of number"),
        (dict[str, float], "mapping of text to number"),
        (list[Inner], "list of the keys below"),
        (dict[str, Annotated[int, Field(ge=1)]], "mapping of text to integer >= 1"),
    ],
)
def test_types_are_told_in_words(annotation: object, text: str) -> None:
    assert type_text(annotation) == text
