"""The settings that decide what a device can hold, compared with those of its last start.

A change of the agent's file counts from the next start on. Owns the file ``DEVICE.start.json`` in the agent's state
directory, and the sentences about what is new: for the log, and for people in the device's birth. If the file can't be
read or written, only these sentences are lost.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog
from pydantic import ValidationError

from broker.protocol.sizes import show_sizes
from broker.protocol.specs import Bytes
from broker.protocol.values import Spec
from edge_agent.config import AgentConfig
from edge_agent.runtime.accelerator import Accelerator

MAX_FILE_BYTES = 64 * 1024
MEASURED, CPU = "what is free", "the CPU"

log = structlog.get_logger()


class _Start(Spec):
    format: Literal[1] = 1
    memory: Bytes | None = None
    models: str | None = None
    accelerator: str | None = None  # its name, empty for the CPU; None: an earlier version didn't say


def changes_since(
    path: Path, config: AgentConfig, models: Path | None, accelerator: Accelerator | None = None
) -> tuple[str, ...]:
    """The settings that are other ones than at the last start, in words; those of this start are kept for the next.

    Args:
        path: the file, which may not exist.
        config: the agent's file.
        models: the models directory in force. Its name is in the log only.
        accelerator: the one in use. One that is gone ends the agent only where the file asks for it.
    """
    directory = None if models is None else str(models)
    on = accelerator.name if accelerator else ""
    before, now = _read(path), _Start(memory=config.memory, models=directory, accelerator=on)
    told: dict[str, str] = {}
    if before is not None and before.memory != now.memory:
        sizes = [each for each in (now.memory, before.memory) if each is not None]
        shown = iter(show_sizes(*sizes))
        is_now, was = (MEASURED if each is None else next(shown) for each in (now.memory, before.memory))
        told["memory"] = f"{is_now}, was {was}"
    if before is not None and before.models != now.models:
        told["models"] = "another directory" if before.models and now.models else "none" if before.models else "is new"
        log.info("models_directory_changed", models=now.models, was=before.models)
    if before is not None and before.accelerator not in {None, on}:
        told["accelerator"] = f"{on or CPU}, was {before.accelerator or CPU}"
    if told:
        log.info("settings_changed", since="the last start", **told)
    if now != before:
        _write(path, now)
    return tuple(f"{name}: {text}" for name, text in told.items())


def _read(path: Path) -> _Start | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        return _Start.model_validate_json(path.read_bytes())
    except (OSError, ValidationError, ValueError):
        return None


def _write(path: Path, start: _Start) -> None:
    """Replace the file as a whole, so that no reader sees half of it."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(start.model_dump_json(), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        log.warning("start_not_kept", file=str(path), error=error.strerror or type(error).__name__)
