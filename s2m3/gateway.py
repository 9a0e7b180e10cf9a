"""The files of a gateway: what `s2m3 agent init` writes.

Owns the folder of one device: `agent.yaml`, `connection.yaml` and the files that this names, all readable by their
owner only. Invariant: all of them are written, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.servers.site_files import write_file
from broker.transport.connection import ConnectionKeys, Place, environment, read_connection
from edge_agent.config import AgentConfig

AGENT_FILE, CONNECTION_FILE = "agent.yaml", "connection.yaml"
COPIES = {
    "ca": "ca.crt",
    "cert": "client.crt",
    "key": "client.key",
    "password_file": "password",
    "data_password_file": "data-password",
}
"""Key of a connection -> the name of the file in the gateway's folder."""
HEAD = "# The agent of {id}. All keys: docs/reference/agent-file.md\n"


def write_gateway(folder: Path, given: Mapping[str, object], places: Sequence[Place]) -> list[Path]:
    """Write a gateway's files into a folder, and return them.

    Args:
        folder: made if it isn't there. A `connection.yaml` in it stays, if it is the place that counts.
        given: the keys of the agent's file.
        places: where a person says how to reach the broker.

    Raises:
        BadFile: a value is wrong, a file is there already, or one can't be read or written.
    """
    contents: dict[str, bytes] = {}
    if all(Path(place.file).absolute() != (folder / CONNECTION_FILE).absolute() for place in places):
        contents = _connection(places)
    else:
        read_connection(*places)
    contents[AGENT_FILE] = _text(given)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, content in contents.items():
            write_file(folder / name, content)
            written.append(folder / name)
        _check(folder / AGENT_FILE)
    except FileExistsError as error:
        _remove(written)
        problem, fix = "is there already", "remove it, or name another folder with --to"
        raise BadFile(file=str(error.filename or folder), problem=problem, fix=fix) from error
    except OSError as error:
        _remove(written)
        problem, fix = f"can't be written: {error.strerror}", "run this as root, or name another folder with --to"
        raise BadFile(file=str(error.filename or folder), problem=problem, fix=fix) from error
    except BadFile:
        _remove(written)
        raise
    return written


def check_agent(file: Path, given: Mapping[str, object]) -> None:
    """Write an agent's file of these keys, and raise BadFile for a wrong value."""
    file.write_bytes(_text(given))
    _check(file)


def _text(given: Mapping[str, object]) -> bytes:
    lines = yaml.safe_dump(dict(given), sort_keys=False, allow_unicode=True)
    return (HEAD.format(id=given["id"]) + lines).encode()


def _check(file: Path) -> None:
    """Raise BadFile, with the option's name, for a wrong value."""
    try:
        load_spec(file, AgentConfig)
    except BadFile as error:
        raise BadFile(file=f"--{error.field or 'id'}", problem=error.problem, fix=error.fix) from None


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        with suppress(OSError):
            path.unlink()


def _connection(places: Sequence[Place]) -> dict[str, bytes]:
    """The connection's file, and copies of those that it names; a password in an address becomes a file."""
    connection = read_connection(*places)
    every = (*places, environment())
    keys: dict[str, str] = {"broker": connection.url}
    files: dict[str, bytes] = {}
    for key in ConnectionKeys.model_fields:
        place = next((each for each in every if getattr(each.keys, key)), None)
        if place is None or key == "broker":
            continue
        path = place.path(key) if key in COPIES else None
        if path is None:
            keys[key] = getattr(place.keys, key)
            continue
        try:
            files[COPIES[key]] = path.read_bytes()
        except OSError as error:
            raise place.bad(key, f"{path} can't be read: {error.strerror}", "name a file that can be read") from error
        keys[key] = COPIES[key]
    if connection.user and "user" not in keys:
        keys["user"] = connection.user
    if connection.password and "password_file" not in keys:
        files["password"], keys["password_file"] = connection.password.encode(), "password"
    return {CONNECTION_FILE: yaml.safe_dump(keys, sort_keys=False).encode(), **files}
