"""``s2m3 models``: what the catalogue's models are made of, without their weights, and what local checkpoints share.

Owns these commands' output. The numbers come from ``zoo``, exact and on the meta device, and from ``scan``; those files
import torch, so they are imported when a command runs, and the other commands do without.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from broker.protocol.errors import BadFile
from edge_agent import catalog
from s2m3.catalogue import load_task

_DTYPES = ("float32", "float16", "bfloat16")
WEIGHTS = {
    "safetensors": "safetensors",
    "pickle": "only a pickle, which is refused; edge_agent/catalog/hub/README.md says how to convert it",
    None: "not verified by this project",
}
_NUMBERS = ("memory_bytes", "flops", "output_bytes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands under ``s2m3 models``."""
    verbs = parser.add_subparsers(dest="models_command", required=True, metavar="COMMAND")

    def verb(name: str, text: str, run: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - a command
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    listing = verb("list", "all models of the catalogue and their modules", list_models)
    inspecting = verb(
        "inspect", "one model: parameters, bytes in each dtype, operations, and what crosses the wire", inspect
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
    for command in (listing, inspecting, numbers, scanning):
        command.add_argument("--json", action="store_true", help="print one JSON document")


def list_models(arguments: argparse.Namespace) -> int:
    """Print every model of the catalogue."""
    from s2m3.reference import zoo  # noqa: PLC0415 - see above

    found = [zoo.inventory(name) for name in catalog.names()]
    if arguments.json:
        print(json.dumps(found))
        return 0
    table = Table("model", "module", "parameters", "MB", "GFLOP", "sends (bytes)")
    for model in found:
        for index, module in enumerate(model["modules"]):
            table.add_row(
                model["name"] if index == 0 else "",
                module["module"],
                f"{module['parameters']:,}",
                f"{module['memory_bytes'] / 1e6:,.1f}",
                f"{module['flops'] / 1e9:,.3f}",
                f"{module['output_bytes']:,}",
            )
    Console().print(table)
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Print one model in full.

    Raises:
        BadFile: there is no such model.
    """
    from s2m3.reference import zoo  # noqa: PLC0415 - see above

    found = zoo.details(arguments.name)
    if arguments.json:
        print(json.dumps(found))
        return 0
    console = Console()
    console.print(f"[bold]{found['name']}[/bold]: {found['description']}; {found['unsplit_bytes']:,} bytes unsplit")
    for entry in found["modules"]:
        console.print(f"\n[bold]{entry['module']}[/bold] ({entry['family']}) from {entry['source']}")
        if (entry["source"] or "").startswith("hub:"):
            console.print(f"  weights at this revision: {WEIGHTS[entry['weights']]}")
        for name in ("parameters", "flops", "output_bytes"):
            console.print(f"  {name}: {entry[name]:,}")
        for dtype, size_bytes in entry["bytes_by_dtype"].items():
            console.print(f"  bytes in {dtype}: {size_bytes:,}")
        console.print(f"  uses: {', '.join(entry['uses'])}; counted on: {entry['typical']}")
    return 0


def write_numbers(arguments: argparse.Namespace) -> int:
    """Compare, or correct, the numbers in edge_agent/catalog/hub; 1 when they differ and weren't corrected."""
    from s2m3.reference import zoo  # noqa: PLC0415 - see above

    differences = []
    for name in zoo.hub_names():
        task, path = load_task(name), catalog.path(name)
        for module, spec in task.modules.items():
            counted = zoo.count(task, module)
            for field in _NUMBERS:
                if getattr(spec, field) != (real := getattr(counted, field) or 1):
                    differences.append(
                        {
                            "name": name,
                            "module": module,
                            "field": field,
                            "written": getattr(spec, field),
                            "counted": real,
                        }
                    )
                    if arguments.write:
                        replace_number(path, module, field, real)
    if arguments.json:
        print(json.dumps(differences))
    else:
        for each in differences:
            print(f"{each['name']}: {each['module']}: {each['field']}: {each['written']} -> {each['counted']}")
        print(f"{len(differences)} numbers {'corrected' if arguments.write else 'differ'}")
    return 0 if arguments.write or not differences else 1


def replace_number(path: Path, module: str, field: str, value: int) -> None:
    """Replace one number of one module in a task file, and nothing else.

    Raises:
        BadFile: the number doesn't stand on a line of its own.
    """
    text = path.read_text(encoding="utf-8")
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for step in ("modules", module, field):
        node = next((each for key, each in getattr(node, "value", []) if key.value == step), None)
        if node is None:
            raise BadFile(file=str(path), field=f"modules.{module}.{field}", problem="is missing", fix="write 1 there")
    lines = text.splitlines(keepends=True)
    line = node.start_mark.line
    lines[line] = re.sub(rf"({field}:\s*)[^\s,}}#]+", rf"\g<1>{value}", lines[line], count=1)
    path.write_text("".join(lines), encoding="utf-8")


def scan(arguments: argparse.Namespace) -> int:
    """Print what checkpoints share; 1 when something is wrong with one, 2 when nothing could be read."""
    from s2m3.cli import scan as scanner  # noqa: PLC0415 - see above

    found = scanner.report(scanner.scan([Path(path) for path in arguments.paths], arguments.dtype), arguments.dtype)
    if arguments.json:
        print(json.dumps(found))
    else:
        _print_scan(found)
    if not found["modules"]:
        return 2
    return 0 if found["ok"] else 1


def _print_scan(found: dict[str, Any]) -> None:
    console = Console()
    table = Table("module", "MB", "digest", "in")
    for module in found["modules"]:
        size = f"{module['memory_bytes'] / 1e6:,.1f}"
        table.add_row(module["family"], size, module["digest"][7:19], "\n".join(module["checkpoints"]))
    if found["modules"]:
        console.print(table)
    for checkpoint in found["checkpoints"]:
        for problem in checkpoint["problems"]:
            console.print(problem, style="red", markup=False, highlight=False)
        if unclaimed := checkpoint["unclaimed"]:
            more = f" and {len(unclaimed) - 1} more" if len(unclaimed) > 1 else ""
            console.print(f"{checkpoint['path']}: no family reads {unclaimed[0]}{more}", markup=False, highlight=False)
    megabytes = {name: f"{found[f'{name}_bytes'] / 1e6:,.1f} MB" for name in ("unshared", "shared", "saved")}
    print(
        f"held in {found['dtype']}: unshared {megabytes['unshared']}, shared {megabytes['shared']}: "
        f"sharing saves {megabytes['saved']}, {found['saved_percent']:.1f} %"
    )


def write_random(arguments: argparse.Namespace) -> int:
    """Write a random checkpoint of the real size."""
    from s2m3.reference import random_weights, zoo  # noqa: PLC0415 - see above

    print(random_weights.write(zoo.published(arguments.repository), Path(arguments.into), seed=arguments.seed))
    return 0
