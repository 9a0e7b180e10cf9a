"""The digest check of a module's weights: against the task's file, or else against the first load of their source.

Owns the check, its sentences, and the file of the digests that were seen first here (``Recorded``). The orchestrator
says what the site first loaded (``FirstLoad``). Knows no family. The file ``DEVICE.weights.json`` in the agent's state
directory is JSON: ``{"format": 1, "digests": {SOURCE: DIGEST}}``. SOURCE is ``FAMILY SOURCE DTYPE``, such as
``clip.vision hub:openai/clip-vit-base-patch16@5ef2…#vision float32``, and DIGEST is the module's identity by content
(``identity``). The identity of a user's own ONNX file has what the task file says of it, too, and a person may correct
that: so its line is ``FAMILY SOURCE DTYPE FILE``, with the digest of the file alone.

Invariant: weights whose digest differs are never used. If the file can't be written, each load says so.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
from pydantic import Field, ValidationError

from broker.protocol.errors import ModuleRefused
from broker.protocol.messages import FirstLoad
from broker.protocol.specs import Digest, ModuleSpec
from broker.protocol.values import Spec

MAX_RECORDED = 4096  # the oldest goes
MAX_FILE_BYTES = 4 * 1024 * 1024

log = structlog.get_logger()


class DigestDiffers(ModuleRefused):
    """The weights are not those of the task's file, or not those of the first load."""


class _File(Spec):
    format: Literal[1] = 1
    digests: dict[str, Digest] = Field(max_length=MAX_RECORDED)


class Recorded:
    """The digests of weights at their first load here, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._digests = self._read()

    def check(self, spec: ModuleSpec, real: str, files: Mapping[str, str] | None = None) -> None:
        """Compare digests with those of the first load, or record them.

        Args:
            spec: the module's.
            real: its identity by content.
            files: the digests of its files, by name, where these are recorded.

        Raises:
            DigestDiffers: one is another one.
        """
        name = f"{spec.family} {spec.source} {spec.dtype}"
        found = {name: real} if files is None else {f"{name} {file}": digest for file, digest in files.items()}
        with self._lock:
            changed = [key for key, digest in found.items() if self._digests.get(key, digest) != digest]
            fresh = {} if changed else {key: digest for key, digest in found.items() if key not in self._digests}
            if fresh:
                self._digests |= fresh
                for oldest in list(self._digests)[:-MAX_RECORDED]:
                    del self._digests[oldest]
                self._write()
            known = self._digests.get(changed[0]) if changed else None
        if changed:
            what = "weights" if files is None else changed[0].removeprefix(f"{name} ")
            raise DigestDiffers(
                f"the {what} of {spec.source} have the digest {found[changed[0]]}, and at their first load here they "
                f"had {known}: if the new ones are right, write digest: {real} into the task file; else restore "
                f"the old ones ({self.path} has all first digests)"
            )
        if fresh:
            log.warning(
                "weights_trusted_at_first_load", source=str(spec.source), family=spec.family, digest=real,
                file=str(self.path), hint="write digest: into the task file, so that every device checks it",
            )  # fmt: skip
        elif files is not None:  # the task file may say something new of them, which is in the identity
            log.info("weights_known", source=str(spec.source), family=spec.family, digest=real)

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


@dataclass
class Comparison:
    """The digest that the weights of one load must have, and the one that they have, once it is computed."""

    first_load: FirstLoad | None
    found: str | None = None


class _Current(threading.local):
    comparison: Comparison | None = None


_current = _Current()


@contextmanager
def comparing_with(first_load: FirstLoad | None) -> Iterator[Comparison]:
    """Compare the weights that this thread loads with the site's first ones."""
    before, _current.comparison = _current.comparison, Comparison(first_load)
    try:
        yield _current.comparison
    finally:
        _current.comparison = before


class _InForce:
    """The record of this process."""

    recorded: Recorded | None = None


def record_in(recorded: Recorded | None) -> None:
    """Set the record of this process; None: only the task files' digests are checked."""
    _InForce.recorded = recorded


def check(spec: ModuleSpec, real: Callable[[], str], files: Callable[[], Mapping[str, str]] | None = None) -> None:
    """Check the digest of a module's weights before they are used; ``real`` computes it, and is called when it counts.

    With ``files``, which gives the digests of files by name, the first load is compared by these.

    Raises:
        DigestDiffers: they have another digest than the spec says, or than at their first load at this site, or here.
    """
    if spec.digest is None:
        if spec.recorded_as is not None and (_InForce.recorded or _current.comparison):
            _check_first(spec, real(), files)
    elif (found := real()) != spec.digest:
        also = "" if files is None else " (it covers prepare and labels: after a change of these it is another one)"
        raise DigestDiffers(
            f"the weights of {spec.source} have the digest {found}, the spec says {spec.digest}{also}: correct the "
            "task file, or fetch the weights again"
        )


def _check_first(spec: ModuleSpec, real: str, files: Callable[[], Mapping[str, str]] | None) -> None:
    if (compared := _current.comparison) is not None:
        compared.found = real
        if compared.first_load is not None and compared.first_load.digest != real:
            raise DigestDiffers(compared.first_load.refusal(spec.source, real))
    if _InForce.recorded is not None:
        _InForce.recorded.check(spec, real, None if files is None else files())
