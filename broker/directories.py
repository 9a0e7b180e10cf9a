"""Where this program keeps its own files: systemd's directories, the user's by the XDG rules, or those of the home.

Owns which counts. Doesn't know the files. Nothing is looked up before it is asked for, so that a command which needs no
directory works without a home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from broker.protocol.errors import BadFile

PROGRAM = "s2m3"


def state_directory(option: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of what must survive: ``$STATE_DIRECTORY``, or ``~/.local/state/s2m3``; raises BadFile."""
    return _directory("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state", option, environ)


def cache_directory(option: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of what may be deleted: ``$CACHE_DIRECTORY``, or ``~/.cache/s2m3``.

    Args:
        option: what names another directory, for the error.
        environ: the environment.

    Raises:
        BadFile: the environment names no directory, and this user has no home.
    """
    return _directory("CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache", option, environ)


def in_home(path: str | Path) -> Path:
    """A path as a person writes it, in which ``~`` is the home.

    Raises:
        BadFile: it begins with ``~``, and this user has no home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        fix = "set HOME, or write the whole path"
        raise BadFile(file=str(path), problem="begins with ~, and there is no such home", fix=fix) from error


def _directory(of_service: str, of_user: str, at_home: str, option: str, environ: Mapping[str, str]) -> Path:
    if given := environ.get(of_service):
        return Path(given.split(":")[0])  # systemd lists several with colons
    if given := environ.get(of_user):
        return Path(given) / PROGRAM
    try:
        return Path.home() / at_home / PROGRAM
    except RuntimeError as error:
        problem = f"this user has no home, and neither {of_service} nor {of_user} is set"
        raise BadFile(file=option, problem=problem, fix=f"name a directory with {option}") from error
