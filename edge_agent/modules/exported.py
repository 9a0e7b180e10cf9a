"""Modules that run from ONNX files, in place of their families' own networks: the exports of the models directory.

Owns the way from ``export.json`` to a module: every check of the files, the sessions, and whether the described steps
fit them. Knows no family, and imports none: so an agent with the engine ``onnx`` needs neither torch nor transformers.

Invariants: a file is read only after its SHA-256 was found to be that of ``export.json``; all files together are no
larger than ``memory_bytes`` there allows; what a pass takes and gives is what the ONNX file says. Each session holds
weights of its own: the only use opens its session at load; of several, each opens it at its first run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from broker.protocol.errors import ModuleRefused, RequestFailed
from broker.protocol.sizes import show_sizes
from broker.protocol.specs import ModuleSpec
from broker.protocol.tensors import Array
from edge_agent.modules import Module, Pass, Prepared, RequestSteps
from edge_agent.modules.inputs import steps
from edge_agent.modules.weights import exports, onnx_file
from edge_agent.modules.weights.allowed import allowed
from edge_agent.modules.weights.exports import MANIFEST, Export, ExportedUse
from edge_agent.modules.weights.hub import models_directory, repository
from edge_agent.modules.weights.onnx_file import Session, Signature, show_shape

GRAPH_BYTES = 32 * 1024 * 1024  # of each ONNX file, beside the weights
FILES_BYTES = 64 * 1024 * 1024  # of the files that the steps need: the largest tokenizer of the catalogue has 17 MB


@dataclass(frozen=True)
class _Use:
    """One use of an export, whose files were checked. Its session opens when it is first needed."""

    described: ExportedUse
    opens: Callable[[], Session]

    @cached_property
    def session(self) -> Session:
        """The file in memory."""
        return self.opens()

    def __call__(self, _: object, **arrays: Array) -> dict[str, Array]:
        """Run the pass. A request may lack an optional array: it is empty then."""
        for name in self.described.optional:
            if name not in arrays:
                shape, dtype = self.session.inputs[name]
                arrays[name] = np.zeros((0, *(length or 0 for length in shape[1:])), dtype)
        return self.session.run(arrays, self.described.outputs)


def load(spec: ModuleSpec) -> Module:
    """Load a module from its export.

    Raises:
        ModuleRefused: it has no export, or the files are not what ``export.json`` and the spec say; the sentence names
            the file.
    """
    directory, export = _export(spec)
    _check_files(directory, export)
    passes: dict[str | None, Pass] = {}
    for name, use in export.uses.items():
        path = exports.checked(directory, use.file, use.sha256)
        beside = onnx_file.check(path, export.files).files
        try:
            made = steps.from_description(use.steps, directory)
        except ModuleRefused as error:
            raise ModuleRefused(f"{directory / MANIFEST}: uses.{name or '(ordinary)'}.steps: {error}") from error
        if len(export.uses) == 1:
            run = _Use(use, partial(onnx_file.open_session, path, beside))
            found: Signature = run.session
        else:
            files = {use.file: use.sha256} | {each: export.files[each] for each in beside}
            run = _Use(use, partial(_open_later, directory, files))
            found = onnx_file.signature(path)
        _check_signature(path, use, found)
        _check_steps(path, use, found, made)
        passes[name or None] = Pass(made, run)
    return Module(None, passes, engine="onnx")


def _open_later(directory: Path, files: Mapping[str, str]) -> Session:
    """Open the first of some files; all are checked again, because they may have been replaced since the load.

    Raises:
        ModuleRefused: they were, or ONNX Runtime refuses the file.
    """
    paths = [exports.checked(directory, name, sha256) for name, sha256 in files.items()]
    return onnx_file.open_session(paths[0], [each.name for each in paths[1:]])


def _export(spec: ModuleSpec) -> tuple[Path, Export]:
    """The directory of a module's export, and its description."""
    models = models_directory()
    for directory, export in exports.readable(models):
        if export.key == spec.key:
            allowed().check_links(models or directory, directory)
            return directory, export
    variant = next((each for each in spec.variants if each.engine == "onnx"), None)
    if variant is None or (variant.source.hub or variant.source.url) is None:
        raise ModuleRefused(
            f"{spec.family} needs an export for the engine onnx, and the models directory {models or '(none is set)'} "
            "has none of this module: run `s2m3 models export` on a machine with torch, and copy what it writes there"
        )
    place = repository(variant.source)
    manifest = place.required(MANIFEST)
    if variant.digest is not None and (real := f"sha256:{exports.sha256_of(manifest)}") != variant.digest:
        raise ModuleRefused(f"{manifest} has the digest {real}, the spec says {variant.digest}: correct the task file")
    export = exports.read(manifest.parent)
    if export.key != spec.key:
        raise ModuleRefused(
            f"{manifest} is of the module {export.key}, not of {spec.key}: correct the variant's source"
        )
    for name in (*export.files, *(use.file for use in export.uses.values())):
        place.required(name)
    return manifest.parent, export


def _check_files(directory: Path, export: Export) -> None:
    """Check the sizes and the digests of all files that aren't ONNX files."""
    names = sorted({*export.files, *(use.file for use in export.uses.values())})
    if strange := next((name for name in names if not (directory / name).is_file()), None):
        raise ModuleRefused(f"{directory / strange} is not a file, and {MANIFEST} names it: export the module again")
    most = export.memory_bytes + GRAPH_BYTES * len(export.uses) + FILES_BYTES
    size = sum((directory / name).stat().st_size for name in names)
    if size > most:
        held, allowed, weights = show_sizes(size, most, export.memory_bytes)
        raise ModuleRefused(
            f"the files of {directory} have {held}, and {MANIFEST} allows {allowed} (memory_bytes {weights}, and what "
            "a graph and a tokenizer need): export the module again"
        )
    for name, sha256 in export.files.items():
        exports.checked(directory, name, sha256)


def _check_signature(path: Path, use: ExportedUse, signature: Signature) -> None:
    """Check that an ONNX file takes and gives what its description says."""
    if use.inputs.keys() != signature.inputs.keys():
        raise ModuleRefused(
            f"{path} takes {_listed(signature.inputs)}, and {MANIFEST} says {_listed(use.inputs)}: correct inputs, or "
            "export the module again"
        )
    for name, shape in use.inputs.items():
        if not _fits(shape, real := signature.inputs[name][0]):
            raise ModuleRefused(
                f"{path}: the input {name} has the shape {show_shape(real)}, and {MANIFEST} says {show_shape(shape)}: "
                "correct inputs, or export the module again"
            )
    if missing := sorted(set(use.outputs) - set(signature.outputs)):
        raise ModuleRefused(
            f"{path} gives {_listed(signature.outputs)}, and {MANIFEST} says {missing[0]}: correct outputs, or export "
            "the module again"
        )
    signature.require_arrays(path, use.outputs)
    if strange := sorted(set(use.optional) - use.inputs.keys()):
        raise ModuleRefused(
            f"{path} takes {_listed(signature.inputs)}, and {MANIFEST} says that {strange[0]} is optional: correct "
            "optional, or export the module again"
        )


def _check_steps(path: Path, use: ExportedUse, signature: Signature, made: RequestSteps) -> None:
    """Check that what the steps prepare is what the file takes, by the sample inputs."""
    if (values := made.sample()) is None:
        return
    try:
        prepared: Prepared = made.prepare(values)
    except RequestFailed as error:
        raise ModuleRefused(f"{path}: steps: they can't prepare their sample inputs ({error.message})") from error
    check_arrays(path, signature, prepared.arrays, use.optional)


def check_arrays(path: Path, signature: Signature, arrays: Mapping[str, Array], optional: tuple[str, ...]) -> None:
    """Check that prepared arrays are those that an ONNX file takes.

    Raises:
        ModuleRefused: they aren't; the sentence names the file and the array.
    """
    if not signature.inputs.keys() - set(optional) <= arrays.keys() <= signature.inputs.keys():
        raise ModuleRefused(
            f"{path} takes {_listed(signature.inputs)}, and the preparation gives {_listed(arrays)}: correct the steps"
        )
    for name, array in arrays.items():
        shape, dtype = signature.inputs[name]
        if not _fits(shape, array.shape):
            raise ModuleRefused(
                f"{path}: the input {name} has the shape {show_shape(shape)}, and the preparation gives "
                f"{show_shape(array.shape)}: correct the steps"
            )
        if (array.dtype.kind == "f") != (np.dtype(dtype).kind == "f"):
            raise ModuleRefused(
                f"{path}: the input {name} is {dtype}, and the preparation gives {array.dtype}: correct the steps"
            )


def _fits(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(shape) == len(other) and all(a is None or b is None or a == b for a, b in zip(shape, other, strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
