"""``s2m3 head train``: a new task for the price of its head. Everything printed was measured in this run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import yaml

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from s2m3.testbed.observer import Observer

DEPLOY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands under ``s2m3 head``."""
    verbs = parser.add_subparsers(dest="head_command", required=True, metavar="COMMAND")
    text = "fit a linear head on an encoder's features, write it, and deploy it"
    train = verbs.add_parser("train", help=text, description=text)
    train.add_argument(
        "--encoder", default="pocket/vision", metavar="TASK[:NODE]", help="whose features; default %(default)s"
    )
    train.add_argument("--data", required=True, metavar="DIR", help="labelled data, or digits (scikit-learn's)")
    train.add_argument("--format", metavar="NAME", help="of the data; by default what it looks like")
    train.add_argument("--name", metavar="NAME", help="of the head and its task; default: the data's")
    train.add_argument("--limit", type=int, metavar="N", help="take N records, evenly from all of them")
    train.add_argument("--seed", type=int, default=0, help="of the quarter that is held out; default 0")
    train.add_argument("--regularisation", type=float, default=1.0, metavar="C", help="scikit-learn's C; default 1")
    train.add_argument("--models", metavar="DIR", help="the models directory; default: S2M3_MODELS")
    train.add_argument("--out", metavar="FILE", help="the task file; default NAME.yaml")
    train.add_argument("--deploy", action="store_true", help="deploy it into a running site")
    train.add_argument("--broker", default="mqtt://127.0.0.1:1883", metavar="URL", help="default %(default)s")
    train.add_argument("--site", metavar="PREFIX", help="the site's topic prefix, when it has one")
    train.add_argument("--json", action="store_true", help="print one JSON document")
    train.set_defaults(run=train_head)


def train_head(arguments: argparse.Namespace) -> int:
    """Fit, write, try split and unsplit, and deploy; 0 when both answered alike.

    Raises:
        BadFile: the data, the encoder or a name is wrong.
        NotServed: it was to be deployed, and isn't.
    """
    from s2m3.bench.datasets import evenly, open_data  # noqa: PLC0415 - torch is imported when a command needs it
    from s2m3.cli.head import fit, rollout  # noqa: PLC0415 - the same
    from s2m3.reference.split import Split  # noqa: PLC0415 - the same

    dataset = open_data(arguments.data, arguments.format)
    name = fit.check_name(arguments.name or Path(arguments.data).resolve().name.lower())
    models = _models_directory(arguments.models)
    encoder = fit.encoder(arguments.encoder)
    split = Split()
    fit.check_data(dataset, encoder.task, next(iter(encoder.inputs.values())))
    chosen = evenly(dataset.size, arguments.limit)
    print(f"{len(chosen)} records through {encoder.task}", file=sys.stderr)
    found = fit.features(split, encoder, dataset, chosen)
    fitting, trying = fit.parts(found.labels, dataset.classes, arguments.seed)
    fitted = fit.fit(found, fitting, regularisation=arguments.regularisation)
    task = fit.write(models, name, fitted=fitted, found=found, classes=dataset.classes, task=encoder)
    out = Path(arguments.out or f"{name}.yaml")
    _write_task(out, task)
    report = _try(task, dataset, [chosen[at] for at in trying], split)
    head = task.module_of(task.output)
    report |= {"task": str(out), "weights": str(models / "local" / name), "fitted_on": len(fitting)}
    report |= {"head_bytes": head.memory_bytes, "digest": head.digest}
    report |= {"encoder_bytes": sum(module.memory_bytes for module in encoder.modules.values())}
    if arguments.deploy:
        with Observer(arguments.broker, client_id=f"s2m3-{uuid.uuid4().hex[:12]}", site=arguments.site) as observer:
            report["rollout"] = rollout.deploy(observer, arguments.broker, task, DEPLOY_S).document()
    _print(report, as_json=arguments.json)
    return 0 if report["differing"] == 0 else 1


def _models_directory(given: str | None) -> Path:
    from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE, models_directory  # noqa: PLC0415

    directory = Path(given).expanduser() if given else models_directory()
    if directory is None:
        fix = f"set {DIRECTORY_VARIABLE} to the models directory, here and for the agents, or name it"
        raise BadFile(file="--models", problem="says no place for the weights", fix=fix)
    os.environ[DIRECTORY_VARIABLE] = str(directory)  # what was written is read back as an agent reads it
    return directory


def _write_task(path: Path, task: TaskSpec) -> None:
    content = yaml.safe_dump(task.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise BadFile(file=str(path), problem=error.strerror or "can't be written", fix="name another --out") from error
    if load_spec(path, TaskSpec) != task:
        raise BadFile(file=str(path), problem="reads back as another task", fix="report this")


def _try(task: TaskSpec, dataset: Any, positions: list[int], split: Any) -> dict[str, Any]:  # noqa: ANN401 - see train
    """Accuracy on records that the head never saw, split and unsplit."""
    from s2m3.bench.accuracy_metrics import accuracy  # noqa: PLC0415
    from s2m3.reference.whole import load, same  # noqa: PLC0415

    try:
        whole = load(task.task, task)
    except BadFile:
        whole = None
    ((input_, _),) = task.inputs.items()
    right, answered, answered_whole, differing = [], [], [], 0
    for position in positions:
        record = dataset.read(position)
        inputs = {input_: record.media}
        output = split.run(task, inputs)
        right.append(dataset.classes[record.label])
        answered.append(output.answer["label"])
        if whole is not None:
            expected = whole(inputs)
            answered_whole.append((expected.answer or {})["label"])
            differing += not same(output, expected)
    return {
        "tried_on": len(positions),
        "accuracy": accuracy(answered, right),
        "unsplit_accuracy": accuracy(answered_whole, right) if whole is not None else None,
        "differing": differing if whole is not None else None,
    }


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report))
        return
    print(f"head: {report['head_bytes']:,} bytes beside an encoder of {report['encoder_bytes']:,}: {report['weights']}")
    unsplit = report["unsplit_accuracy"]
    compared = (
        f"unsplit {unsplit:.2%}, {report['differing']} answers differ" if unsplit is not None else "no unsplit model"
    )
    print(f"accuracy on {report['tried_on']} held-out records: split {report['accuracy']:.2%}, {compared}")
    print(f"task: {report['task']}")
    if rollout := report.get("rollout"):
        again = "loaded again" if rollout["encoder_loaded_again"] else "not loaded again"
        added = ", ".join(f"{device} +{size:,} bytes" for device, size in rollout["added_bytes"].items()) or "nothing"
        print(f"deployed on {', '.join(rollout['head_on'])}: {added}; the encoder was {again}")
