"""Changed copies of frozen dataclasses, on the way of each heartbeat.

``dataclasses.replace`` calls ``__init__``, which sets each field of a frozen object by a call of its own: of the
orchestrator's state that costs five times as much. Doesn't know what the fields mean.
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def with_fields(value: T, **fields: Any) -> T:  # noqa: ANN401 - as of dataclasses.replace
    """The same as ``dataclasses.replace``, for a dataclass that has neither slots nor ``__post_init__``.

    Raises:
        TypeError: it has no field of such a name.
    """
    kind: Any = type(value)
    names = kind.__dataclass_fields__.keys()
    if not fields.keys() <= names:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(fields.keys() - names))}")
    copy: T = object.__new__(kind)
    known = vars(copy)
    known.update(vars(value))
    if len(known) > len(names):
        for computed in known.keys() - names:  # by cached properties, for the fields of the other
            del known[computed]
    known.update(fields)
    return copy
