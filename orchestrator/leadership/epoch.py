"""The durable epoch: one whole number in a file, which only grows.

Owns the epoch's file, and how the orchestrator writes a file so that neither a crash nor a power cut leaves an old or
a half-written one. Doesn't know the broker.
"""

from __future__ import annotations

import os
from pathlib import Path

from broker.protocol.errors import BadFile


def read_epoch(file: Path) -> int:
    """The stored epoch; 0 when the file doesn't exist. Makes the file's directory.

    Raises:
        BadFile: the file can't be read, or holds no whole number.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise BadFile(file=str(file), problem=reason, fix="name another --state-dir") from error
    if not text.isdecimal():
        fix = "remove it: the epoch then goes on from what the broker remembers"
        raise BadFile(file=str(file), problem=f"holds {text[:40]!r}, no epoch", fix=fix)
    return int(text)


def store_epoch(file: Path, epoch: int) -> None:
    """Write the epoch durably.

    Raises:
        BadFile: the file can't be written.
    """
    write_durably(file, f"{epoch}\n")


def write_durably(file: Path, text: str) -> None:
    """Replace a file's content so that it outlives a power cut.

    Raises:
        BadFile: the file can't be written.
    """
    fresh = file.with_suffix(".new")
    try:
        with fresh.open("w", encoding="utf-8") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        fresh.replace(file)
        directory = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        problem = f"can't be written: {error.strerror}"
        raise BadFile(file=str(file), problem=problem, fix="name another --state-dir") from error
