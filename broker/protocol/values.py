"""The bases of all frozen values: of specs, which a person writes, and of messages.

Owns how strictly their fields are read. Knows no field.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """Base of specs and messages: frozen. A copy (``model_copy``) keeps nothing that was computed from its fields."""

    model_config = ConfigDict(frozen=True)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        for computed in copied.__dict__.keys() - type(self).__pydantic_fields__.keys():
            del copied.__dict__[computed]
        return copied


class Spec(Value):
    """Base of everything a person writes: an unknown field is an error.

    Only a file is read so strictly. A spec inside a message may come from a newer version: ``codec.decode`` ignores the
    fields that it doesn't know.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)  # built at the first use: not by all processes
