"""The sentences for wrong values of a file or a message: what is wrong and what to write, without pydantic's words.

Owns the words for each kind of problem, and for the texts that a pattern describes. Doesn't know files and lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import StringConstraints

A_TEXT, A_NUMBER, A_WHOLE_NUMBER = "must be a text", "must be a number", "must be a whole number"
_FIELDS, _LIST, _NOT_VALID = (
    "must have fields: write `name: value` lines",
    "must be a list: write `- …` lines",
    "is not valid",
)
_UNKNOWN = "is not a known field"
_KINDS = {
    **dict.fromkeys(("string_type", "string_sub_type", "string_unicode"), A_TEXT),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), A_WHOLE_NUMBER),
    **dict.fromkeys(("float_type", "float_parsing"), A_NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), _LIST),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "model_attributes_type"), _FIELDS),
    "finite_number": "must be a finite number",
    "missing": "is missing",
    "extra_forbidden": _UNKNOWN,
    "none_required": "must be empty",
    "recursion_loop": "contains itself",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_LENGTHS = {
    "string_too_short": ("min_length", "at least", "character"),
    "string_too_long": ("max_length", "at most", "character"),
    "too_short": ("min_length", "at least", "entry"),
    "too_long": ("max_length", "at most", "entry"),
}
_patterns: dict[str, str] = {}


def described(pattern: str, sentence: str, *, max_length: int | None = None) -> StringConstraints:
    """The constraint of a text by a pattern, and the sentence for texts that don't match it."""
    _patterns[pattern] = sentence
    return StringConstraints(pattern=pattern, max_length=max_length)


def place_of(problem: Any) -> tuple[int | str, ...]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The path from the root to the field of a pydantic problem."""
    return (*problem["loc"], *problem.get("ctx", {}).get("place", ()))


def describe(problem: Any) -> tuple[str, str]:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The field and the sentence of a pydantic problem, for a person."""
    steps = (str(part) for part in place_of(problem))
    field = ".".join(step for step in steps if "[" not in step)  # not pydantic's names of types
    return field, sentence_of(problem)


def sentence_of(problem: Any) -> str:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    """The sentence of a pydantic problem, to stand behind its field."""
    kind, context = problem["type"], problem.get("ctx", {})
    for sentences in (_of_bound, _of_length, _of_choice):
        if (found := sentences(kind, context)) is not None:
            return found
    if kind == "string_pattern_mismatch":
        return _patterns.get(context["pattern"], _NOT_VALID)
    if kind == "json_invalid":
        return f"is not JSON ({context['error']})"
    if kind == "value_error" or "sentence" in context:  # this project's own words
        return str(problem["msg"]).removeprefix("Value error, ")
    return _KINDS.get(kind, _NOT_VALID)


def _of_bound(kind: str, context: Mapping[str, Any]) -> str | None:
    if kind not in _BOUNDS:
        return None
    name, text = _BOUNDS[kind]
    bound = context[name]
    return f"{text} {bound:g}" if isinstance(bound, float) else f"{text} {bound}"


def _of_length(kind: str, context: Mapping[str, Any]) -> str | None:
    if kind not in _LENGTHS:
        return None
    name, text, unit = _LENGTHS[kind]
    count = context[name]
    units = unit if count == 1 else f"{unit}s".replace("entrys", "entries")
    return f"must have {text} {count} {units}"


def _of_choice(kind: str, context: Mapping[str, Any]) -> str | None:
    if kind not in {"literal_error", "enum"}:
        return None
    return "must be " + re.sub(r"'([^' ]*)'", r"\1", str(context["expected"]))
