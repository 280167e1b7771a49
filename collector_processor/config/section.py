"""What every section is made of: the base class, and the kinds of values that occur in many."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, descriptions taken from attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
HttpAddress = Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")]
Durability = Literal["fsync", "os", "none"]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
