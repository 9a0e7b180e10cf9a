"""Reading a person's YAML file as a frozen spec; an error is one line with its place and its fix.

Owns reading and the place of an error (file, line, field). Doesn't know the fields of a file: the spec class does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from broker.protocol.errors import BadFile
from broker.protocol.specs import describe, place_of

M = TypeVar("M", bound=BaseModel)
_MERGE = "tag:yaml.org,2002:merge"


def load_spec(path: Path | str, kind: type[M]) -> M:
    """Read a YAML file as a spec.

    Raises:
        BadFile: it can't be read, isn't YAML, names a key twice, or a field is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise BadFile(file=str(path), problem=reason, fix="name a YAML file that can be read") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_twice(str(path), root)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or (str(error) if type(error) is ValueError else "not YAML")
        line = mark.line + 1 if mark else None
        raise BadFile(file=str(path), line=line, problem=problem, fix="correct the YAML") from error
    if not isinstance(content, dict):
        raise BadFile(file=str(path), line=1, problem="holds no fields", fix="write `name: value` lines")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        misspelt = (each for each in problems if each["type"] == "extra_forbidden")  # the cause of a missing field
        problem = next(misspelt, problems[0])
        field, sentence = describe(problem)
        raise BadFile(
            file=str(path),
            line=_line_of(root, place_of(problem)),
            field=field,
            problem=sentence,
            fix=_fix(problem, kind),
        ) from error


def bad_field(path: Path | str, place: Sequence[int | str], *, problem: str, fix: str) -> BadFile:
    """The error of a field that is right in its own file, and wrong together with another file.

    ``place`` is the path from the root to the field. The line is that of the last step that is in the file.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):  # the file is gone: the error has no line
        root = None
    field = ".".join(str(step) for step in place)
    return BadFile(file=str(path), line=_line_of(root, place), field=field, problem=problem, fix=fix)


def _fix(problem: Any, kind: type[BaseModel]) -> str:  # noqa: ANN401 - pydantic's error dictionaries are untyped
    if problem["type"] == "missing":
        return "add it"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(_kind_at(kind, problem["loc"][:-1]).model_fields)
        return f"remove it or correct its spelling; known fields: {known}"
    if isinstance(problem["input"], (str, int, float)):
        return f"change {problem['input']!r}"
    return "change it"


def _kind_at(kind: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel]:
    """The model at a place in a file of this kind."""
    for step in place:
        if step in kind.model_fields:
            kind = next(_models_in(kind.model_fields[str(step)].annotation), kind)
    return kind


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - an annotation can be any object
    """The models in an annotation such as ``tuple[Fault, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _refuse_twice(path: str, root: yaml.Node | None) -> None:
    """Refuse a duplicate key, of which YAML would silently take the last. Each node is visited once."""
    todo, seen_nodes = [root], set[int]()  # an alias may lead back, or to the same node many times
    while todo:
        node = todo.pop()
        if id(node) in seen_nodes:
            continue
        seen_nodes.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise BadFile(file=path, line=line, problem="a key is a list or an object", fix="name it")
                if key.tag != _MERGE and key.value in seen:
                    problem, fix = "is a duplicate key", "remove one of them"
                    raise BadFile(file=path, line=line, field=key.value, problem=problem, fix=fix)
                seen.add(key.value)
                todo.append(value)


def _line_of(node: yaml.Node | None, place: Sequence[int | str]) -> int | None:
    line = None
    for step in place:
        if isinstance(node, yaml.MappingNode):
            following = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if following is None:
                break
            line, node = following[0].start_mark.line + 1, following[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line
