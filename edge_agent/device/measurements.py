"""The measurements of this device, kept on its disk: seconds and bytes of each module that it ran.

Owns the file, and the moving average of passes. A measurement is valid for one device, one module (its identity has
the dtype in it) and one setting: threads, processor, libraries. The file of another setting is overwritten. If the
file is damaged, or can't be read or written, only the measurements are lost.

Knows neither models nor messages. One thread at a time uses it: the store's lock, or the loader's thread.
"""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

import structlog
from pydantic import Field, ValidationError

from broker.protocol.specs import (
    Bytes,
    ModuleKey,
    ModuleSpec,
    Positive,
)
from broker.protocol.values import Spec

PROCESSOR_FILE = Path("/proc/cpuinfo")
MAX_MODULES = 256  # the newest are kept; a heartbeat of less than 1 MiB names them all
MAX_FILE_BYTES = 4 * 1024 * 1024
NEWEST_SHARE = 0.2  # of the newest pass in the average: one slow pass must not make the agent refuse requests

log = structlog.get_logger()


def averaged(before_s: float | None, newest_s: float, weight: float = 1.0) -> float:
    """The moving average of a module's passes with the newest one, seconds; None: it is the first.

    ``weight`` below 1: one of several nodes in the newest pass.
    """
    return newest_s if before_s is None else before_s + NEWEST_SHARE * weight * (newest_s - before_s)


class Measurement(Spec):
    """The cost of one module here."""

    spec: ModuleSpec
    memory_bytes: Bytes  # its footprint: weights and all memory that came with them
    compute_s: Positive | None = None  # of one pass at this device's full speed; None: never measured


class _File(Spec):
    setting: str
    modules: dict[ModuleKey, Measurement] = Field(max_length=MAX_MODULES)


def setting(threads: int, libraries: str) -> str:
    """The setting of measurements, in one line: the processor, the threads of a pass, the libraries."""
    model = ""
    with suppress(OSError):
        lines = PROCESSOR_FILE.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), "")
    return f"{model or platform.machine()}, {threads} threads, {libraries}"


class Measurements:
    """The measurements of one device under one ``setting``, kept in the file ``path``; None: for this run only."""

    def __init__(self, path: Path | None = None, setting: str = "") -> None:
        self._path = path
        self._setting = setting
        self.modules: dict[ModuleKey, Measurement] = self._read()

    def keep(self, measurement: Measurement) -> None:
        """Remember a measurement, in place of an older one of the same module."""
        self.modules.pop(measurement.spec.key, None)
        self.modules[measurement.spec.key] = measurement
        for key in list(self.modules)[:-MAX_MODULES]:
            del self.modules[key]
        self._write()

    def _read(self) -> dict[ModuleKey, Measurement]:
        if self._path is None:
            return {}
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")  # noqa: TRY301 - as any other damage
            found = _File.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError) as error:
            log.warning("measurements_not_read", file=str(self._path), error=type(error).__name__)
            return {}
        return dict(found.modules) if found.setting == self._setting else {}

    def _write(self) -> None:
        """Replace the file as a whole, so that no reader sees half of it."""
        if self._path is None:
            return
        content = _File(setting=self._setting, modules=self.modules).model_dump_json()
        fresh = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(content, encoding="utf-8")
            fresh.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            log.warning("measurements_not_kept", file=str(self._path), error=error.strerror or type(error).__name__)
