"""``s2m3 models``: what the catalogue's models are made of, without their weights, and what local checkpoints share.

Owns these commands' arguments and output. ``list`` reads the catalogue's own numbers. The other commands count or read
networks, so torch is imported when one of them runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.sizes import mebibytes, show_bytes, show_count
from s2m3.catalogue import models
from s2m3.cli.arguments import add_json
from s2m3.cli.extras import imports_of
from s2m3.cli.models_store import add_serve, add_store, serve, store
from s2m3.cli.output import console, print_result, printable, table

_DTYPES = ("float32", "float16", "bfloat16")
_STATES = {"not needed": "needs no export", "refused": "can't be exported"}
WEIGHTS = {
    "safetensors": "safetensors",
    "pickle": "only a pickle, which is refused; edge_agent/catalog/hub/README.md says how to convert it",
    None: "not verified by this project",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands under ``s2m3 models``."""
    verbs = parser.add_subparsers(dest="models_command", required=True, metavar="COMMAND")

    def verb(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    listing = verb("list", "all models of the catalogue and their modules", list_models)
    inspecting = verb(
        "inspect", "one model: parameters, sizes in each dtype, operations, and what crosses the wire", inspect
    )
    inspecting.add_argument("name", metavar="NAME", help="such as hub/retrieval-clip-b16, or a task file")
    numbers = verb("numbers", "compare the catalogue's numbers with those of the real configurations", write_numbers)
    numbers.add_argument("--write", action="store_true", help="correct the catalogue's files")
    scanning = verb("scan", "which modules local checkpoints share, byte for byte, and what that saves", scan)
    scanning.add_argument(
        "paths", nargs="+", metavar="PATH", help="a checkpoint's directory, or one that holds several: DIR/org/name"
    )
    scanning.add_argument("--dtype", choices=_DTYPES, default=_DTYPES[0], help="held in which; default %(default)s")
    random = verb("random", "write a checkpoint of random weights in the published layout", write_random)
    random.add_argument("repository", metavar="ORG/NAME", help="one that the catalogue knows")
    random.add_argument("--into", required=True, metavar="DIR", help="the models directory")
    random.add_argument("--seed", type=int, default=0, help="default 0")
    exporting = verb("export", "write modules as ONNX files, and compare these with torch", export)
    exporting.add_argument(
        "name", metavar="TASK|MODULE", help="such as pocket/vqa, a task file, or clip-b16/vision in all of its uses"
    )
    exporting.add_argument("--to", required=True, metavar="DIR", help="the models directory of agents")
    exporting.add_argument(
        "--models", type=Path, metavar="DIR", help="the models directory that has checkpoints of your own"
    )
    exporting.add_argument(
        "--precision", choices=("float32", "int8"), default="float32", help="of matrices; default %(default)s"
    )
    storing = verb("store", "put weights into a folder by their digests, for devices without Internet", store)
    add_store(storing)
    serving = verb("serve", "serve such a folder over HTTP", serve)
    add_serve(serving)
    writing = verb(
        "task", "print a task file for a checkpoint or an ONNX file of your own, with its numbers counted", write_task
    )
    writing.add_argument(
        "directory",
        type=Path,
        metavar="DIR|FILE.onnx",
        help="its folder MODELS/ORG/NAME, or model.onnx in it",
    )
    writing.add_argument(
        "--head", metavar="KIND", help="such as retrieval or embed-image; default: that with the most modules"
    )
    writing.add_argument(
        "--dtype", choices=_DTYPES, help="of its weights in memory; default: that of the catalogue's tasks"
    )
    writing.add_argument(
        "--labels",
        metavar="A,B,…|FILE",
        help="of an ONNX classifier: its classes, or a file beside it with one a line",
    )
    writing.add_argument(
        "--prepare",
        metavar="YAML",
        help="how an ONNX file's input is made, such as 'picture: {size: [224, 224]}'; default: what its shapes tell",
    )
    writing.add_argument(
        "--digest", action="store_true", help="state the digests of its weights, too: devices then refuse others"
    )
    for command in (listing, inspecting, numbers, scanning, exporting, storing):
        add_json(command)


def list_models(arguments: argparse.Namespace) -> int:
    """Print every model of the catalogue."""
    print_result(arguments, models(), _print_models)
    return 0


def _print_models(found: list[dict[str, Any]]) -> None:
    columns = ("parameters", "MiB", "GFLOP", "sends")
    made = table("model", "module", *columns, right=columns)
    for model in found:
        for index, module in enumerate(model["modules"]):
            made.add_row(
                model["name"] if index == 0 else "",
                module["module"],
                f"{module['parameters']:,}",
                mebibytes(module["memory_bytes"]),
                f"{module['flops'] / 1e9:,.3f}",
                show_bytes(module["output_bytes"]),
            )
    console().print(made)


def inspect(arguments: argparse.Namespace) -> int:
    """Print one model in full."""
    with imports_of("agent", "models inspect needs"):
        from s2m3.reference import zoo  # noqa: PLC0415 - torch

    print_result(arguments, zoo.details(arguments.name), _print_model)
    return 0


def _print_model(found: dict[str, Any]) -> None:
    printed = console()
    printed.print(f"[bold]{found['name']}[/bold]: {found['description']}; {show_bytes(found['unsplit_bytes'])} unsplit")
    for entry in found["modules"]:
        printed.print(f"\n[bold]{entry['module']}[/bold] ({entry['family']}) from {entry['source']}")
        if (entry["source"] or "").startswith("hub:"):
            printed.print(f"  weights at this revision: {WEIGHTS[entry['weights']]}")
        for name in ("parameters", "flops"):
            printed.print(f"  {name}: {entry[name]:,}")
        printed.print(f"  output: {show_bytes(entry['output_bytes'])}")
        for dtype, size_bytes in entry["bytes_by_dtype"].items():
            printed.print(f"  in {dtype}: {show_bytes(size_bytes)}")
        printed.print(f"  uses: {', '.join(entry['uses'])}; counted on: {entry['typical']}")


def write_numbers(arguments: argparse.Namespace) -> int:
    """Compare, or correct, the numbers in edge_agent/catalog/hub; 1 when they differ and weren't corrected."""
    from s2m3.reference import zoo  # noqa: PLC0415 - torch

    differences = zoo.compare_numbers(write=arguments.write)
    lines = [f"{d['name']}: {d['module']}: {d['field']}: {d['written']} -> {d['counted']}" for d in differences]
    lines.append(f"{show_count(len(differences), 'number')} {'corrected' if arguments.write else 'to correct'}")
    print_result(arguments, differences, "\n".join(lines))
    return 0 if arguments.write or not differences else 1


def scan(arguments: argparse.Namespace) -> int:
    """Print what checkpoints share; 1 when something is wrong with one, 2 when nothing could be read."""
    with imports_of("agent", "models scan needs"):
        from s2m3.reference import scan as scanner  # noqa: PLC0415 - torch

    found = scanner.report(scanner.scan([Path(path) for path in arguments.paths], arguments.dtype), arguments.dtype)
    print_result(arguments, found, _print_scan)
    if not found["modules"]:
        return 2
    return 0 if found["ok"] else 1


def _print_scan(found: dict[str, Any]) -> None:
    printed, made = console(), table("module", "MiB", "digest", "in", right={"MiB"})
    for module in found["modules"]:
        size = mebibytes(module["memory_bytes"])
        made.add_row(module["family"], size, module["digest"][7:19], "\n".join(module["checkpoints"]))
    if found["modules"]:
        printed.print(made)
    for checkpoint in found["checkpoints"]:
        for problem in checkpoint["problems"]:
            printed.print(problem, style="red", markup=False, highlight=False)
        if unclaimed := checkpoint["unclaimed"]:
            more = f" and {len(unclaimed) - 1} more" if len(unclaimed) > 1 else ""
            printed.print(f"{checkpoint['path']}: no family reads {unclaimed[0]}{more}", markup=False, highlight=False)
    unshared, shared, saved = (mebibytes(found[f"{name}_bytes"]) for name in ("unshared", "shared", "saved"))
    print(
        f"held in {found['dtype']}: unshared {unshared} MiB, shared {shared} MiB: "
        f"sharing saves {saved} MiB, {found['saved_percent']:.1f} %"
    )


def write_random(arguments: argparse.Namespace) -> int:
    """Write a random checkpoint of the real size."""
    with imports_of("agent", "models random needs"):
        from s2m3.reference import random_weights, zoo  # noqa: PLC0415 - torch

    print(random_weights.write(zoo.published(arguments.repository), Path(arguments.into), seed=arguments.seed))
    return 0


def write_task(arguments: argparse.Namespace) -> int:
    """Print a task file for a checkpoint; returns the exit status 0."""
    directory, options = arguments.directory, (arguments.labels, arguments.prepare)
    if is_onnx(directory):
        _need_package("onnxruntime", "[onnx]")
        from s2m3.reference import onnx_task  # noqa: PLC0415 - onnxruntime

        for name in ("head", "dtype"):
            if getattr(arguments, name) is not None:
                raise BadFile(file=f"--{name}", problem="is for checkpoints, not for ONNX files", fix="remove it")
        sys.stdout.write(onnx_task.task_of(directory, *options, digest=arguments.digest))
        return 0
    if options != (None, None):
        problem = "are for ONNX files, and this folder has no model.onnx"
        raise BadFile(file="--labels and --prepare", problem=problem, fix="remove them, or name a .onnx file")
    _need_package("torch", "[agent]")
    from s2m3.reference import own_task  # noqa: PLC0415 - torch

    sys.stdout.write(own_task.task_of(arguments.directory, arguments.head, arguments.dtype, digest=arguments.digest)[0])
    return 0


def is_onnx(path: Path) -> bool:
    """Whether this is an ONNX file, or a folder with one and no checkpoint."""
    return path.suffix == ".onnx" or ((path / "model.onnx").is_file() and not any(path.glob("*.safetensors")))


def _need_package(package: str, extra: str) -> None:
    if find_spec(package) is None:
        problem = f"needs the Python package {package}, which is missing"
        raise BadFile(file="models task", problem=problem, fix=f"install the {extra} extra")


def export(arguments: argparse.Namespace) -> int:
    """Export modules; 1 when one of them can't be exported, or an answer isn't torch's."""
    if missing := [name for name in ("torch", "onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        problem = f"needs the Python package {missing[0]}, which is missing"
        raise BadFile(file="models export", problem=problem, fix="install the [export] extra")
    from s2m3.export import write  # noqa: PLC0415 - torch
    from s2m3.reference.onnx_task import models_directory_at  # noqa: PLC0415 - onnxruntime

    models: Path | None = arguments.models
    if models is not None and not models.is_dir():
        raise BadFile(file="--models", problem=f"{models} is not a folder", fix="name a models directory")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with models_directory_at(models.absolute()) if models else nullcontext():
            found = write.export(arguments.name, Path(arguments.to), arguments.precision, say)
    except ModuleRefused as error:
        if models is not None or not Path(arguments.name).is_file():
            raise
        raise ModuleRefused(f"{error}; for a checkpoint of your own: --models DIR, its models directory") from error
    print_result(arguments, found, _print_export)
    return 0 if found["ok"] else 1


def _print_export(found: dict[str, Any]) -> None:
    columns = ("MiB", "largest difference", "torch ms", "ONNX ms", "same answers")
    made = table("module", "use", *columns, right=columns)
    reasons = []
    for module in found["modules"]:
        if module["state"] != "exported":
            reasons.append(f"{module['module']}: {_STATES[module['state']]}: {module['why']}")
        for use, each in module.get("uses", {}).items():
            same = "" if each["same_answers"] is None else f"{each['same_answers']} of {each['compared']}"
            times = (f"{each[engine] * 1e3:,.2f}" for engine in ("torch_s", "onnx_s"))
            size, difference = mebibytes(each["bytes"]), f"{each['largest_difference']:.1e}"
            made.add_row(module["module"], use or "(ordinary)", size, difference, *times, same)
    if made.rows:
        console().print(made)
    print("\n".join(printable(reason) for reason in reasons), end="\n" if reasons else "")
    if "requests" in found:
        print(f"{found['name']}: {found['same_answers']} of {found['requests']} answers are the same as torch's")
