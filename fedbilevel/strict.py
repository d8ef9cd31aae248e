"""The base of every table that a person writes: of a config, of options, of anything within them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A frozen table that refuses unknown keys and coerces nothing but integers to floats."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MOST = 10**9
"""The largest count that is taken for meant: what counts steps, examples or clients goes into 64-bit arithmetic."""
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
