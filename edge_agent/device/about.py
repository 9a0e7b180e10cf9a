"""The description of this machine and its software, which a device's birth carries for people.

Owns where each text comes from. Decides nothing; no rule reads it.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from importlib import metadata
from pathlib import Path

from broker.protocol.messages import About
from edge_agent.runtime.accelerator import Accelerator
from edge_agent.runtime.engines import ENGINES, is_installed, version

CPU_INFO = Path("/proc/cpuinfo")
_MODEL = re.compile(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", re.MULTILINE)  # x86; boards with ARM


def about(accelerator: Accelerator | None = None, changed: tuple[str, ...] = ()) -> About:
    """The version, host, architecture, processor, interpreter, installed engines and accelerator of this agent.

    ``changed`` says what of its settings is new since its last start.
    """
    return About(
        version=_version("s2m3") or "unknown",
        host=socket.gethostname(),
        machine=platform.machine(),
        cpu=f"{processor()}, {os.cpu_count() or 1} cores",
        python=platform.python_version(),
        engines=tuple(sorted(version(each) for each in ENGINES if is_installed(each))),
        accelerator=accelerator.name if accelerator else None,
        changed=changed,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as the system gives it; else its architecture."""
    try:
        found = _MODEL.search(CPU_INFO.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
