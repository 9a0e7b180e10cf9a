"""Reading a person's YAML file as a frozen spec; an error is one line with its place and its fix.

Owns reading and the place of an error (file, line, field). Doesn't know the fields of a file: the spec class does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from broker.file_values import KIND_OF_SCALAR, SCALARS, FileValues
from broker.protocol.errors import BadFile, without_login
from broker.protocol.sentences import place_of, sentence_of

M = TypeVar("M", bound=BaseModel)
MAX_VALUES = 1_000_000  # of a file: a few bytes of aliases would stand for more than there is memory
MOST_SHOWN = 200  # characters of a wrong value
_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"


def is_left_behind(name: str) -> bool:
    """Whether other systems leave a file or folder of this name behind, as ``._a.json`` and ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def inside(directory: Path) -> list[Path]:
    """The files and folders of a directory, sorted, without those that other systems leave behind.

    Raises:
        OSError: it can't be read.
    """
    return sorted(path for path in directory.iterdir() if not is_left_behind(path.name))


def load_spec(path: Path | str, kind: type[M], fill: Callable[[Any], Any] | None = None) -> M:
    """Read a YAML file, or a JSON file by its name, as a spec; ``fill`` completes its content before that is checked.

    Raises:
        BadFile: it can't be read, isn't YAML, names a key twice, or a field is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise BadFile(file=str(path), problem=reason, fix="name a YAML file that can be read") from error
    root, content = _parse(str(path), text)
    if not isinstance(content, dict):
        raise BadFile(file=str(path), line=1, problem="holds no fields", fix="write `name: value` lines")
    values = FileValues(content, kind)
    if values.wrong is not None:
        place, *sentences = values.wrong
        place = values.written(place)
        problem, fix = (sentence.format(_scalar_at(root, place)) for sentence in sentences)
        raise _bad(str(path), root, place, problem, fix)
    try:
        return kind.model_validate(fill(values.content) if fill else values.content)
    except ValidationError as error:
        raise _of_problems(str(path), root, error.errors(), values=values, kind=kind) from error


def keys_of(path: Path) -> set[str]:
    """The names of the fields of a YAML file; none of one that ``load_spec`` refuses."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return set()
    return {str(key.value) for key, _ in root.value} if isinstance(root, yaml.MappingNode) else set()


def _parse(path: str, text: str) -> tuple[yaml.Node | None, object]:
    """The nodes of a file, with their lines, and its content."""
    is_json = path.lower().endswith(".json")
    try:
        read_json = json.loads(text) if is_json else None
        root = yaml.compose(text.replace("\t", " ") if is_json else text, Loader=yaml.SafeLoader)
        if root is not None and _size(root, {}) > MAX_VALUES:
            problem = f"has more than {MAX_VALUES:,} values, with what its aliases (*…) stand for"
            raise BadFile(file=path, problem=problem, fix="write less, or fewer aliases")
        _refuse_twice(path, root)
        return root, read_json if is_json else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise BadFile(file=path, line=error.lineno, problem=f"not JSON: {error.msg}", fix="correct the JSON") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or (str(error) if type(error) is ValueError else "not YAML")
        line = mark.line + 1 if mark else None
        raise BadFile(file=path, line=line, problem=problem, fix="correct the YAML") from error


def _of_problems(
    path: str, root: yaml.Node | None, problems: Sequence[Any], *, values: FileValues, kind: type[BaseModel]
) -> BadFile:
    """The error of the first problem; a misspelt field comes first, because it may be the cause of a missing one."""
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    place = _in_file(root, values.written(place_of(problem)), keep_last=problem["type"] == "missing")
    text, value = _scalar_at(root, place), problem.get("ctx", {}).get("value", problem["input"])
    if problem["type"] == "string_type" and text is not None and isinstance(value, SCALARS):
        read_as = f"must be a text, and YAML reads {text or 'this'} as {KIND_OF_SCALAR[type(value)]}"
        return _bad(path, root, place, read_as, f'put it in quotes: "{text}"' if text else "write a text")
    # Each choice that a field has says by a problem of its own what it would take.
    alike = [each for each in problems if _in_file(root, values.written(place_of(each)), keep_last=False) == place]
    sentence = " or ".join(dict.fromkeys(map(sentence_of, alike or [problem])))
    if first := _first_field(kind, place):
        sentence = sentence.replace("`- …`", f"`- {first}: …`")
    if problem["type"] in {"missing", "extra_forbidden"}:
        fix = _fix(problem, kind)
    elif isinstance(value, str):
        fix = f"change {_cut(without_login(value))!r}"
    else:
        fix = f"change {text}" if text and isinstance(value, SCALARS) else "change it"
    return _bad(path, root, place, sentence, fix)


def _bad(path: str, root: yaml.Node | None, place: Sequence[int | str], problem: str, fix: str) -> BadFile:
    field = ".".join(str(step) for step in place)
    return BadFile(file=path, line=_line_of(root, place), field=field, problem=problem, fix=fix)


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
    known = ", ".join(_kind_at(kind, problem["loc"][:-1]).model_fields)
    return f"remove it or correct its spelling; known fields: {known}"


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


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The values of a file, with those of each alias; a part of itself counts once."""
    if id(node) not in known:
        known[id(node)] = 1
        if isinstance(node, yaml.CollectionNode):
            inside = (part for each in node.value for part in (each if isinstance(each, tuple) else (each,)))
            known[id(node)] += sum(_size(part, known) for part in inside)
    return known[id(node)]


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
                if key.tag not in {_MERGE, _TEXT}:
                    problem, fix = (
                        f"YAML doesn't read the name {key.value} as a text",
                        f'put it in quotes: "{key.value}"',
                    )
                    raise BadFile(file=path, line=line, field=key.value, problem=problem, fix=fix)
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


def _in_file(root: yaml.Node | None, place: Sequence[int | str], *, keep_last: bool) -> tuple[int | str, ...]:
    """The steps of a place that lead through the file, without the names that pydantic gives to choices."""
    found: list[int | str] = []
    node = root
    for position, step in enumerate(place):
        following = _step(node, step)
        if following is not None:
            found.append(step)
            node = following
        elif keep_last and position == len(place) - 1:
            found.append(step)
    return tuple(found)


def _step(node: yaml.Node | None, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]  # type: ignore[no-any-return] # nodes are untyped
    return None


def _scalar_at(root: yaml.Node | None, place: Sequence[int | str]) -> str | None:
    """The text of the file at a place; None where it holds no single value."""
    node = root
    for step in place:
        node = _step(node, step)
    return _cut(str(node.value)) if isinstance(node, yaml.ScalarNode) else None


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _first_field(kind: type[BaseModel], place: Sequence[int | str]) -> str | None:
    """The first field of the entries of a list; None where they have no fields."""
    field = _kind_at(kind, place[:-1]).model_fields.get(str(place[-1])) if place else None
    return next((next(iter(each.model_fields)) for each in _models_in(field.annotation)), None) if field else None
