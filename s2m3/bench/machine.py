"""The machine on which a benchmark runs, as its reports describe it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from edge_agent.device.about import processor


def description() -> dict[str, Any]:
    """The processor, its cores, the system and Python."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def description_for_memory() -> dict[str, Any]:
    """The machine in the report of a memory measurement, with its memory and the libraries that take some."""
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
