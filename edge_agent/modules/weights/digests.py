"""The digest check of a module's weights: against the task's file, or else against the first load on this device.

Owns the check, its sentences, and the file of the digests that were seen first (``Recorded``). Knows no family. The
file ``DEVICE.weights.json`` in the agent's state directory is JSON: ``{"format": 1, "digests": {SOURCE: DIGEST}}``.
SOURCE is ``FAMILY SOURCE DTYPE``, such as ``clip.vision hub:openai/clip-vit-base-patch16@5ef2…#vision float32``, and
DIGEST is the module's identity by content (``identity``). A person may remove a line: the next load records it again.

Invariant: weights whose digest differs are never used. If the file can't be written, each load says so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import Field, StringConstraints, ValidationError

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import DIGEST_PATTERN, ModuleSpec
from broker.protocol.values import Spec

MAX_RECORDED = 4096  # the oldest goes
MAX_FILE_BYTES = 4 * 1024 * 1024

log = structlog.get_logger()


class DigestDiffers(ModuleRefused):
    """The weights are not those of the task's file, or not those of the first load."""


class _File(Spec):
    format: Literal[1] = 1
    digests: dict[str, Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]] = Field(max_length=MAX_RECORDED)


class Recorded:
    """The digests of weights at their first load here, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._digests = self._read()

    def check(self, spec: ModuleSpec, real: str) -> None:
        """Compare a digest with that of the first load, or record it.

        Raises:
            DigestDiffers: it is another one.
        """
        key = f"{spec.family} {spec.source} {spec.dtype}"
        with self._lock:
            known = self._digests.get(key)
            if known is None:
                self._digests[key] = real
                for oldest in list(self._digests)[:-MAX_RECORDED]:
                    del self._digests[oldest]
                self._write()
        if known is None:
            log.warning(
                "weights_trusted_at_first_load", source=str(spec.source), family=spec.family, digest=real,
                file=str(self.path), hint="write digest: into the task file, so that every device checks it",
            )  # fmt: skip
        elif known != real:
            raise DigestDiffers(
                f"the weights of {spec.source} have the digest {real}, and at their first load here they had {known}: "
                f"if the new ones are right, write digest: {real} into the task file, or remove the line of "
                f"{key!r} from {self.path} and restart the agent; else restore the old ones"
            )

    def _read(self) -> dict[str, str]:
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")  # noqa: TRY301 - as any other damage
            return dict(_File.model_validate_json(self.path.read_bytes()).digests)
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError, ValueError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            with suppress(OSError):
                self.path.replace(aside)
            log.warning(
                "digests_not_read", file=str(self.path), error=type(error).__name__, renamed_to=str(aside),
                hint="the next load of each module is trusted as its first one",
            )  # fmt: skip
            return {}

    def _write(self) -> None:
        """Replace the file as a whole, so that no reader sees half of it."""
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(_File(digests=self._digests).model_dump_json(indent=1), encoding="utf-8")
            fresh.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            log.warning("digests_not_kept", file=str(self.path), error=error.strerror or type(error).__name__)


class _InForce:
    """The record of this process."""

    recorded: Recorded | None = None


def record_in(recorded: Recorded | None) -> None:
    """Set the record of this process; None: only the task files' digests are checked."""
    _InForce.recorded = recorded


def check(spec: ModuleSpec, real: Callable[[], str]) -> None:
    """Check the digest of a module's weights before they are used; ``real`` computes it, and is called when it counts.

    Raises:
        DigestDiffers: they have another digest than the spec says, or than at their first load here.
    """
    if spec.digest is None:
        if _InForce.recorded is not None and spec.source is not None:
            _InForce.recorded.check(spec, real())
    elif (found := real()) != spec.digest:
        raise DigestDiffers(
            f"the weights of {spec.source} have the digest {found}, the spec says {spec.digest}: correct the task "
            "file, or fetch the weights again"
        )
