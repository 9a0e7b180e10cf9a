"""Tells whether a source's weights are on this machine already. Reads the disk, but neither the network nor weights.

Owns that question for all kinds of sources. With it a device reports the modules that it can load without a download.
"""

from __future__ import annotations

from pathlib import Path

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import Source
from edge_agent.modules.weights import hub, packaged
from edge_agent.modules.weights.checkpoint import INDEX, SINGLE, read_object


def is_here(source: Source | None) -> bool:
    """Whether all files that hold a source's weights are on this machine; a family without weights needs none."""
    if source is None:
        return True
    try:
        if source.hub is None:
            return packaged.path_of(source).is_file()
        repository = hub.repository(source)
        return repository.cached("config.json") is not None and _weights_are_here(repository)
    except (ModuleRefused, OSError):
        return False


def _weights_are_here(repository: hub.Repository) -> bool:
    index: Path | None = repository.cached(INDEX)
    if index is not None:
        files = read_object(index).get("weight_map")
        named = {str(file) for file in files.values()} if isinstance(files, dict) else {""}
        return all(repository.cached(file) is not None for file in named)
    if repository.directory is not None:
        return any(name.endswith(".safetensors") for name in repository.names())
    return repository.cached(SINGLE) is not None
