"""The values of a person's file, before a spec checks them: one spelling of sizes, and no truth value as a number.

Owns what is alike in all files: ``memory`` and ``memory_bytes`` are one field, whichever the spec has. Doesn't know
YAML and lines. Each value is visited beside the type that the spec gives to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from broker.protocol.sizes import SMALLEST_MEMORY_BYTES

Place = tuple[int | str, ...]
KIND_OF_SCALAR: Mapping[type, str] = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    date: "a date",
    datetime: "a time",
    bytes: "bytes",
    NoneType: "no value",
}
SCALARS = tuple(KIND_OF_SCALAR)
_ALIKE = {"memory": "memory_bytes", "memory_bytes": "memory"}


class FileValues:
    """The content of a file under the names that its spec has. ``wrong`` is the first value that no spec would see.

    That is its place, the problem, and the fix; ``{}`` in them stands for the text of the file.
    """

    def __init__(self, content: Mapping[str, Any], kind: type[BaseModel]) -> None:
        self.wrong: tuple[Place, str, str] | None = None
        self._renamed: dict[Place, str] = {}
        self.content = self._walk(content, kind, ())

    def written(self, place: Sequence[int | str]) -> Place:
        """A place with the names that the file has."""
        return tuple(self._renamed.get((*place[:at], step), step) for at, step in enumerate(place))

    def _walk(self, value: Any, annotation: Any, place: Place) -> Any:  # noqa: ANN401 - any YAML, any type
        kinds = _kinds_in(annotation)
        if isinstance(value, bool):
            if not kinds & {bool, object, Any} and kinds & {int, float}:
                self._refuse(place, "must be a number, and YAML reads {} as a truth value", "write a number")
        elif isinstance(value, dict):
            return self._walk_dict(value, kinds, place)
        elif isinstance(value, list):
            entries = [get_args(kind)[0] for kind in kinds if get_origin(kind) in {tuple, list, frozenset, set}]
            if entries:
                return [self._walk(each, entries[0], (*place, number)) for number, each in enumerate(value)]
        return value

    def _walk_dict(self, value: dict[str, Any], kinds: set[Any], place: Place) -> dict[str, Any]:
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found = {}
                for written, each in value.items():
                    name = self._name(written, kind, value, place)
                    field = kind.model_fields.get(name)
                    found[name] = self._walk(each, field.annotation, (*place, name)) if field else each
                return found
            if get_origin(kind) is dict:
                return {name: self._walk(each, get_args(kind)[1], (*place, name)) for name, each in value.items()}
        return value

    def _name(self, written: str, kind: type[BaseModel], value: Mapping[str, Any], place: Place) -> str:
        """The field's name in the spec."""
        if written not in _ALIKE or not {written, _ALIKE[written]} & kind.model_fields.keys():
            return written
        size = value[written]
        if written == "memory" and type(size) in {int, float} and 0 < size < SMALLEST_MEMORY_BYTES:
            self._refuse((*place, written), "{} is a number of bytes", "did you mean {}MiB? Write the unit")
        if written in kind.model_fields:
            return written
        name = _ALIKE[written]
        if name in value:
            self._refuse((*place, written), f"is {name} by another name, which is there, too", "remove one of them")
            return written
        self._renamed[*place, name] = written
        return name

    def _refuse(self, place: Place, problem: str, fix: str) -> None:
        self.wrong = self.wrong or (place, problem, fix)


def _kinds_in(annotation: Any) -> set[Any]:  # noqa: ANN401 - an annotation can be any object
    """The types that an annotation allows, without ``Annotated`` and unions."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds_in(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return set[Any]().union(*(_kinds_in(each) for each in get_args(annotation)))
    return {annotation}
