"""Modules as exports: written from torch, run again as ONNX files, and compared with torch.

Owns the order of the work and the report. A module is compared on all arrays that ``observed`` has for it. In float32
it is refused if a number differs by more than ``compare.TOLERANCE``; in int8 the difference is stated only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.sizes import show_count
from broker.protocol.specs import ModuleName, ModuleSpec, NodeName, TaskSpec
from broker.protocol.tensors import Array
from edge_agent import catalog
from edge_agent.modules import Module, Prepared, import_family
from edge_agent.modules.inputs import steps
from edge_agent.modules.weights import exports
from edge_agent.modules.weights.exports import Export, ExportedUse, Precision
from edge_agent.runtime.engines import engine
from s2m3.catalogue import load_task
from s2m3.export import graph
from s2m3.export.compare import TOLERANCE, Difference, Run, opened, same_answer, seconds
from s2m3.export.observed import Loaded, Pass, Request, Seen, on_its_engine, requests, see

Say = Callable[[str], object]
Use = str | None
THREADS = 1  # of a pass of either engine


@dataclass
class Work:
    """One module of a task: its nodes, and what they were given."""

    name: ModuleName
    spec: ModuleSpec
    module: Module
    seen: dict[Use, list[Seen]] = field(default_factory=dict)


def export(name: str, to: Path, precision: Precision, say: Say, *, most: int | None = None) -> dict[str, Any]:
    """Export the modules of a task, or one module in all uses that the catalogue's tasks have; gives the report.

    Args:
        name: a task, as ``load_task`` reads it, or the name of a module in the catalogue.
        to: the directory that gets an export for each module.
        precision: of the matrices.
        say: gets a line about each step.
        most: how many requests each task gets; None for all.

    Raises:
        BadFile: there is no such task or module, or the directory can't be written.
        ModuleRefused: a module's weights can't be had.
    """
    tasks, only = _tasks(name)
    torch.set_num_threads(THREADS)
    reasons = {
        (module, spec.key): why_not(spec)
        for task in tasks
        for module, spec in task.modules.items()
        if only in {None, module}
    }
    wanted = {module for (module, _), reason in reasons.items() if reason is None}
    _check_place(to, wanted)
    loaded, works = Loaded(), dict[ModuleName, Work]()
    asked = {task.task: requests(task)[-(most or 0) :] for task in tasks}
    for task in tasks if wanted else ():
        nodes = [each for each, node in task.nodes.items() if only in {None, node.module}]
        say(f"running {task.task} on torch: {show_count(len(asked[task.task]), 'request')}")
        _observe(task, nodes, asked[task.task], loaded, works)
    modules = [
        {"module": module, **(reason or _export(works[module], to, precision, say))}
        for (module, _), reason in reasons.items()
    ]
    report: dict[str, Any] = {"name": name, "to": str(to), "precision": precision, "modules": modules}
    if only is None and wanted:
        say(f"running {tasks[0].task} on its ONNX files")
        report |= compare_task(tasks[0], asked[tasks[0].task], loaded, to)
    refused = any(each["state"] == "refused" for each in modules)
    return report | {"ok": not refused and (precision != "float32" or _all_same(report))}


def why_not(spec: ModuleSpec) -> dict[str, Any] | None:
    """The report of a module that isn't exported, with the reason; None for one that may be."""
    if spec.engine == "ctranslate2":
        return {"state": "not needed", "why": "agents without torch run it with CTranslate2"}
    if spec.engine == "onnx":
        return {"state": "not needed", "why": "it is an ONNX file"}
    if spec.dtype != "float32":
        why = f"its dtype is {spec.dtype}: export the float32 module, for smaller weights with --precision int8"
        return {"state": "refused", "why": why}
    parts: Mapping[str, Any] = getattr(import_family(spec), "PARTS", {})
    part = parts.get(spec.family.partition(".")[2])
    if part is not None and any(each.unrolled is not None for each in part.forwards.values()):
        why = "it generates in a loop, token by token, and an ONNX file is one pass"
        return {"state": "refused", "why": why}
    return None


def _check_place(to: Path, modules: Collection[ModuleName]) -> None:
    """Make the directory, before anything takes long. Only an export is replaced by the new one of its module."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(file=str(to), problem=error.strerror or "can't be made", fix="name another --to") from error
    for target in [to / exports.directory_name(module) for module in sorted(modules)]:
        is_free = not os.path.lexists(target) or (
            target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        )
        if not is_free and (target.is_symlink() or not (target / exports.MANIFEST).is_file()):
            problem = "is not an export, and the new one would take its place"
            raise BadFile(file=str(target), problem=problem, fix="move it away, or name another --to")


def _tasks(name: str) -> tuple[list[TaskSpec], ModuleName | None]:
    """The task of a name; or the tasks of a module, and its name."""
    if name not in catalog.names() and not name.endswith((".yaml", ".yml", ".json")) and not Path(name).is_file():
        every = [load_task(each) for each in catalog.names()]
        if tasks := [task for task in every if name in task.modules]:
            return tasks, name
        raise BadFile(
            file=name,
            problem="is neither a task nor a module of the catalogue",
            fix="name a task file (with --models DIR for your own checkpoint), or a name that `s2m3 models list` has",
        )
    return [load_task(name)], None


def _observe(
    task: TaskSpec, nodes: Sequence[NodeName], asked: Sequence[Request], loaded: Loaded, works: dict[ModuleName, Work]
) -> None:
    passes = see(task, nodes, asked, loaded)
    for node in nodes:
        spec = task.nodes[node]
        work = works.get(spec.module)
        if work is None:
            work = works[spec.module] = Work(spec.module, task.module_of(node), loaded.of(task, node))
        work.seen.setdefault(spec.use, []).extend(each[node] for each in passes)


def _export(work: Work, to: Path, precision: Precision, say: Say) -> dict[str, Any]:
    """Write one module's export; the report says how far it is from torch."""
    target = to / exports.directory_name(work.name)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        before = _uses_before(target, fresh, work, precision)
        uses, described, opset = {}, dict[str, ExportedUse](), 1
        for use in work.seen:
            say(f"exporting {work.name}{f', use {use}' if use else ''}")
            described[use or ""], uses[use or ""], opset = _write_use(work, use, fresh, precision)
            for name, content in steps.files(work.module.passes[use].steps).items():
                (fresh / name).write_bytes(content)
        every = {**before, **described}
        graphs = [each.file for each in every.values()]
        made = Export(
            module=work.name,
            key=work.spec.key,
            family=work.spec.family,
            precision=precision,
            memory_bytes=sum(_size(fresh / each) for each in graphs),
            opset=opset,
            uses=every,
            files={each.name: exports.sha256_of(each) for each in sorted(fresh.iterdir()) if each.name not in graphs},
        )
        (fresh / exports.MANIFEST).write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except ModuleRefused as error:
        return {"state": "refused", "why": str(error)}
    except OSError as error:
        raise BadFile(file=str(to), problem=error.strerror or "can't be written", fix="name another --to") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    digest = exports.sha256_of(target / exports.MANIFEST)
    return {
        "state": "exported",
        "directory": str(target),
        "key": made.key,
        "digest": f"sha256:{digest}",
        "memory_bytes": made.memory_bytes,
        "uses": uses,
    }


def _uses_before(target: Path, fresh: Path, work: Work, precision: Precision) -> dict[str, ExportedUse]:
    """The other uses of an earlier export of the same module: they are kept."""
    with suppress(ModuleRefused):
        found = exports.read(target)
        if (found.key, found.precision) == (work.spec.key, precision):
            new = {use or "" for use in work.seen}
            kept = {use: each for use, each in found.uses.items() if use not in new}
            replaced = {graph.weights_file(each.file) for use, each in found.uses.items() if use in new}
            files = {each.file: each.sha256 for each in kept.values()} | dict(found.files if kept else {})
            for path in [exports.checked(target, name, files[name]) for name in files.keys() - replaced]:
                shutil.copy2(path, fresh / path.name)
            return kept
    return {}


def _size(path: Path) -> int:
    """The bytes of an ONNX file and of its weights beside it."""
    beside = path.with_name(graph.weights_file(path.name))
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _write_use(work: Work, use: Use, directory: Path, precision: Precision) -> tuple[ExportedUse, dict[str, Any], int]:
    module, chosen, seen = work.module, work.module.passes[use], work.seen[use]
    description = steps.described(chosen.steps)
    optional = _optional(chosen.steps)
    examples = [{**optional, **each.prepared.arrays} for each in seen]

    def by_torch(arrays: Mapping[str, Array]) -> Mapping[str, Array]:
        return engine(module.engine).forward(module, chosen, arrays)

    lengths = graph.free_lengths(by_torch, examples)
    lengths = {name: (None, *rest) if name in optional else (first, *rest) for name, (first, *rest) in lengths.items()}
    path = directory / f"{use or 'model'}.onnx"
    written = graph.write(path, module.network, chosen.forward, examples, lengths)
    if precision == "int8":
        whole = path.rename(path.with_suffix(".float32"))
        graph.quantise(whole, path)
        whole.unlink()
    beside = graph.move_weights(path)
    by_onnx = opened(path, written.outputs, {name: lengths[name] for name in optional}, beside)
    difference, same = Difference(), 0
    for each in seen:
        arrays = by_onnx(each.prepared.arrays)
        difference = difference.with_(each.arrays, arrays)
        same += same_answer(each.output.answer, chosen.steps.answer(arrays, each.prepared).answer)
    if precision == "float32" and difference.relative > TOLERANCE:
        raise ModuleRefused(
            f"its ONNX file gives numbers that differ from torch's by up to {difference.largest:.2g}, which is more "
            f"than {TOLERANCE} of the largest one"
        )
    passes = [each.prepared.arrays for each in seen]
    report = {
        "largest_difference": difference.largest,
        "relative_difference": difference.relative,
        "compared": len(seen),
        "same_answers": same if seen[0].output.answer is not None else None,
        "bytes": _size(path),
        "torch_s": seconds(by_torch, passes),
        "onnx_s": seconds(by_onnx, passes),
    }
    described = ExportedUse(
        file=path.name,
        sha256=exports.sha256_of(path),
        inputs=lengths,
        optional=tuple(optional),
        outputs=written.outputs,
        steps=description,
        largest_difference=difference.largest,
    )
    return described, report, written.opset


def compare_task(task: TaskSpec, asked: Sequence[Request], loaded: Loaded, directory: Path) -> dict[str, int]:
    """How many answers of a task are the same by the exports in a directory, one after the other, as by torch.

    A module without an export runs on the engine of its own weights.
    """
    found = {exports.read(each).key: each for each in exports.found_in(directory)}
    keys = {id(loaded.of(task, node)): task.module_of(node).key for node in task.nodes}
    runs: dict[tuple[str, Use], Run] = {}

    def by_onnx(module: Module, use: Use, prepared: Prepared) -> Mapping[str, Array]:
        key = keys[id(module)]
        if key not in found:
            return on_its_engine(module, use, prepared)
        if (key, use) not in runs:
            made = exports.read(found[key])
            own = made.uses[use or ""]
            for name, sha256 in {own.file: own.sha256, **made.files}.items():
                exports.checked(found[key], name, sha256)
            optional = {name: own.inputs[name] for name in own.optional}
            runs[key, use] = opened(found[key] / own.file, own.outputs, optional, made.files)
        return runs[key, use](prepared.arrays)

    def answers(run: Pass) -> list[Mapping[str, JsonValue] | None]:
        return [each[task.output].output.answer for each in see(task, [task.output], asked, loaded, run)]

    pairs = zip(answers(on_its_engine), answers(by_onnx), strict=True)
    same = [same_answer(one, other) for one, other in pairs]
    return {"requests": len(same), "same_answers": sum(same)}


def _all_same(report: Mapping[str, Any]) -> bool:
    uses = [use for each in report["modules"] for use in each.get("uses", {}).values()]
    return report.get("same_answers") == report.get("requests") and all(
        use["same_answers"] in {None, use["compared"]} for use in uses
    )


def _optional(made: object) -> Mapping[str, Array]:
    """The arrays that a request may lack, with a sample of each."""
    if isinstance(made, steps.Ranking) and made.question is not None:
        return made.question.read(made.question.sample())
    return {}
