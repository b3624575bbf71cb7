"""The base of what is read from files and messages: frozen, nothing unknown, no value turned into another type."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen model that takes neither unknown keys nor values of another type than it says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
