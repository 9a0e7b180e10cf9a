"""The functional modules that local checkpoints share, byte for byte, and the saving: ``s2m3 models scan``.

Owns finding checkpoints in directories, recognising the families' parts in them, and the report. It uses the agent's
own rules: a part is one that the agent would load (``model_parts.fit``), and its digest is the module's identity by
content, with which a spec's ``digest`` is compared.

Invariants: only one tensor's weights are in memory at a time. Each problem of a checkpoint is one sentence, and doesn't
stop the report of others. No tensor is counted twice.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broker.files import inside
from broker.protocol.errors import ModuleRefused
from broker.protocol.specs import ModuleSpec
from edge_agent.modules import FAMILIES
from edge_agent.modules.weights import model_parts
from edge_agent.modules.weights.checkpoint import Checkpoint
from edge_agent.modules.weights.hub import Repository
from edge_agent.modules.weights.layout import PICKLES, SINGLE

MAX_DEPTH = 4  # a models directory has its checkpoints two levels down, the hub client's cache three


@dataclass(frozen=True)
class Found:
    """A functional module in a checkpoint."""

    family: str  # such as clip.vision
    digest: str  # its identity by content
    memory_bytes: int  # in the dtype in which a device would hold it


@dataclass
class Scanned:
    """One checkpoint, or a path that has none."""

    path: str
    model_type: str = ""  # in its config.json; empty if that can't be read
    modules: list[Found] = field(default_factory=list)  # those that were recognised
    unclaimed: list[str] = field(default_factory=list)  # the names of tensors that no family reads
    problems: list[str] = field(default_factory=list)  # a sentence each


class _Weights(Mapping[str, Tensor]):
    """A part's tensors by canonical name, each read when it is accessed, and not kept."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str], dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._names = names
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        published = self._names[name]
        tensor = self._checkpoint.read([published])[published]
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass
class _Candidate:
    """A part with tensors in the checkpoint, before they are read."""

    family: str
    part: model_parts.AnyPart
    names: Mapping[str, str]  # canonical -> published
    wanted: Mapping[str, Tensor]  # the network's, on the meta device
    problem: str = ""  # the reason why it can't be loaded


def scan(paths: Sequence[Path], dtype: str = "float32") -> list[Scanned]:
    """The checkpoints at or below paths, with modules in the dtype in which devices would hold them."""
    found = [each for path in paths for each in _find(path)]
    scanned = [each if isinstance(each, Scanned) else _scan(each, getattr(torch, dtype)) for each in found]
    for each in scanned:
        each.problems = list(dict.fromkeys(each.problems))  # such as one missing file, which several parts need
    return scanned


def report(scanned: Sequence[Scanned], dtype: str) -> dict[str, Any]:
    """The document of ``s2m3 models scan --json``."""
    modules: dict[str, dict[str, Any]] = {}
    for checkpoint in scanned:
        for module in checkpoint.modules:
            entry = modules.setdefault(module.digest, asdict(module) | {"checkpoints": []})
            entry["checkpoints"].append(checkpoint.path)
    unshared = sum(module["memory_bytes"] * len(module["checkpoints"]) for module in modules.values())
    shared = sum(module["memory_bytes"] for module in modules.values())
    return {
        "dtype": dtype,
        "checkpoints": [
            {
                "path": each.path,
                "model_type": each.model_type,
                "modules": {module.family: module.digest for module in each.modules},
                "memory_bytes": sum(module.memory_bytes for module in each.modules),
                "unclaimed": each.unclaimed,
                "problems": each.problems,
            }
            for each in scanned
        ],
        "modules": sorted(modules.values(), key=lambda each: (-len(each["checkpoints"]), -each["memory_bytes"])),
        "unshared_bytes": unshared,
        "shared_bytes": shared,
        "saved_bytes": unshared - shared,
        "saved_percent": round(100 * (1 - shared / unshared), 2) if unshared else 0.0,
        "ok": not any(each.problems for each in scanned),
    }


def _find(path: Path) -> list[Path | Scanned]:
    """The directories with a checkpoint at or below a path; if there is no such, a ``Scanned`` with the reason."""
    problem = ""
    if path.is_file() and path.name.endswith(PICKLES):
        problem = (
            f"{path} is a pickle or the like, which may run code when it is read: convert it to {SINGLE} if you trust "
            "it, and name the directory"
        )
    elif not path.is_dir():
        problem = f"{path} is {'a file' if path.exists() else 'not there'}: name the directory of a checkpoint"
    else:
        try:
            if found := list(_below(path, MAX_DEPTH)):
                return [*found]
            problem = f"{path} has no checkpoint {MAX_DEPTH} levels down: name one with config.json and {SINGLE}"
        except OSError as error:
            problem = (
                f"{error.filename or path} can't be read ({error.strerror}): correct its permissions, or name another"
            )
    return [Scanned(str(path), problems=[problem])]


def _below(directory: Path, depth: int) -> Iterator[Path]:
    found = inside(directory)
    if any(each.name.endswith((".safetensors", *PICKLES)) or each.name == "config.json" for each in found):
        yield directory
    elif depth:
        for each in found:
            if each.is_dir():
                yield from _below(each, depth - 1)


def _scan(directory: Path, dtype: torch.dtype) -> Scanned:
    scanned = Scanned(str(directory))
    checkpoint = Checkpoint(Repository(str(directory), None, directory))
    try:
        names = set(checkpoint.files)  # before config.json, so that a pickle alone gets its own error
        scanned.model_type = checkpoint.model_type
    except ModuleRefused as error:
        scanned.problems.append(str(error))
        return scanned
    parts = {family: part for family, part in _all_parts() if scanned.model_type in part.prefixes}
    if not parts:
        known = ", ".join(sorted({model_type for _, part in _all_parts() for model_type in part.prefixes}))
        scanned.problems.append(
            f"{directory} is a model of type {scanned.model_type or 'unknown'} by its config.json, which no family "
            f"knows: the families have {known}"
        )
        return scanned
    taken: set[str] = set()
    for each in _candidates(checkpoint, parts):
        published = set(each.names.values())
        if each.problem:
            if published - taken:
                scanned.problems.append(each.problem)
        elif taken & published:  # such as one scale that two families read
            continue
        else:
            try:
                scanned.modules.append(_identified(checkpoint, each, dtype))
            except ModuleRefused as error:
                scanned.problems.append(str(error))
            except Exception as error:  # noqa: BLE001 - a checkpoint's other files may be wrong in any way
                scanned.problems.append(f"{each.family} of {directory} can't be read ({type(error).__name__}: {error})")
        taken |= published
    if not taken:
        scanned.problems.append(
            f"{directory} has no tensors of {', '.join(sorted(parts))}: its weights are not those of a "
            f"{scanned.model_type}; fetch it again, or correct config.json{checkpoint.wrapped}"
        )
        return scanned
    unread = tuple({end for part in parts.values() for end in part.unread})
    scanned.unclaimed = sorted(name for name in names - taken if not name.endswith(unread))
    return scanned


def families_of(checkpoint: Checkpoint) -> frozenset[str]:
    """The families whose parts a checkpoint has, by the names and shapes of its tensors.

    Raises:
        ModuleRefused: it has no safetensors or no configuration, or no family knows its type; or parts don't fit.
    """
    model_type = checkpoint.model_type if checkpoint.files else ""
    parts = {family: part for family, part in _all_parts() if model_type in part.prefixes}
    if not parts:
        raise ModuleRefused(f"no family knows models of type {model_type or 'unknown'}, which its config.json names")
    found = _candidates(checkpoint, parts)
    if found and all(each.problem for each in found):
        raise ModuleRefused(found[0].problem)
    return frozenset(each.family for each in found if not each.problem)


def _candidates(checkpoint: Checkpoint, parts: model_parts.Parts) -> list[_Candidate]:
    """The parts that fit, then those that don't, both with the most of the checkpoint first.

    Several parts may read the same tensors: those of an encoder of either kind, or a scale that two heads use.
    """
    found: list[_Candidate] = []
    numbers_of_file = Counter[str]()
    for family, part in parts.items():
        try:
            candidate = _Candidate(family, part, model_parts.tensor_names(part, checkpoint), {})
        except ModuleRefused:
            continue  # this checkpoint has no such part
        found.append(candidate)
        try:
            with torch.device("meta"):
                network = model_parts.build(part, checkpoint)
            candidate.wanted = network.state_dict()
            model_parts.fit(family, part, checkpoint, network)
            numbers_of_file[FAMILIES[family]] += sum(tensor.numel() for tensor in candidate.wanted.values())
        except ModuleRefused as error:
            candidate.problem = str(error)

    def rank(each: _Candidate) -> tuple[bool, int]:
        known = sum(model_parts.renamed(each.part, name) in each.wanted for name in each.names)
        return bool(each.problem), -known if each.problem else -numbers_of_file[FAMILIES[each.family]]

    return sorted(found, key=rank)


def digest_of(spec: ModuleSpec, part: model_parts.AnyPart, checkpoint: Checkpoint) -> str:
    """The identity by content of a module that a checkpoint has, as an agent computes it.

    Raises:
        ModuleRefused: it can't be read.
    """
    weights = _Weights(checkpoint, model_parts.tensor_names(part, checkpoint), getattr(torch, spec.dtype))
    return model_parts.content_digest(spec.family, part, checkpoint, weights, spec.dtype)


def _identified(checkpoint: Checkpoint, fit: _Candidate, dtype: torch.dtype) -> Found:
    weights = _Weights(checkpoint, fit.names, dtype)
    held = [fit.wanted[model_parts.renamed(fit.part, name)] for name in fit.names]
    return Found(
        family=fit.family,
        digest=model_parts.content_digest(fit.family, fit.part, checkpoint, weights),
        memory_bytes=sum(
            tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize) for tensor in held
        ),
    )


def _all_parts() -> Iterator[tuple[str, model_parts.AnyPart]]:
    for family, file in FAMILIES.items():
        with contextlib.suppress(ImportError):  # a family whose package is missing reads no model repository
            parts = getattr(importlib.import_module(file), "PARTS", None)
            part = parts.get(family.partition(".")[2]) if isinstance(parts, Mapping) else None
            if isinstance(part, model_parts.Part):
                yield family, part
