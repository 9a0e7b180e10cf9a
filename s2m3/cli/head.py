"""``s2m3 head train``: a new task for the price of its head. Everything printed was measured in this run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from broker.directories import in_home
from broker.protocol.errors import BadFile
from broker.protocol.sizes import show_bytes
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE, models_directory
from s2m3.cli.arguments import add_connection, connected, positive
from s2m3.cli.extras import imports_of
from s2m3.cli.output import print_result

DEPLOY_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands under ``s2m3 head``."""
    verbs = parser.add_subparsers(dest="head_command", required=True, metavar="COMMAND")
    text = "fit a linear head on an encoder's features, write it, and deploy it"
    train = verbs.add_parser("train", help=text, description=text)
    train.add_argument(
        "--encoder", default="pocket/vision", metavar="TASK[:NODE]", help="whose features; default %(default)s"
    )
    train.add_argument("--data", required=True, metavar="DIR", help="labelled data, or digits (scikit-learn's)")
    train.add_argument("--format", metavar="NAME", help="of the data; by default what it looks like")
    train.add_argument("--name", metavar="NAME", help="of the head and its task; default: the data's")
    train.add_argument("--limit", type=positive, metavar="N", help="take N records, evenly from all of them")
    train.add_argument("--seed", type=int, default=0, help="of the quarter that is held out; default 0")
    train.add_argument("--regularisation", type=float, default=1.0, metavar="C", help="scikit-learn's C; default 1")
    train.add_argument("--models", metavar="DIR", help="the models directory; default: S2M3_MODELS")
    train.add_argument("--out", metavar="FILE", help="the task file; default NAME.yaml")
    train.add_argument("--deploy", action="store_true", help="deploy it into a running site")
    add_connection(train)


def run(arguments: argparse.Namespace) -> int:
    """Train a head and deploy it if asked; 0 when the split and the unsplit task gave equal answers."""
    models = _models_directory(arguments.models)
    with imports_of("pocket", "head train needs"):
        from s2m3.head import rollout  # noqa: PLC0415 - torch, which the arguments do without
        from s2m3.head.train import Training, train  # noqa: PLC0415 - the same

    options = ("encoder", "data", "format", "name", "limit", "seed", "regularisation", "out")
    asked = Training(**{name: getattr(arguments, name) for name in options}, models=models)
    task, report = train(asked, lambda text: print(text, file=sys.stderr))
    if arguments.deploy:
        with connected(arguments) as observer:
            report["rollout"] = rollout.deploy(observer, task, DEPLOY_S)
    print_result(arguments, report, _print)
    return 0 if report["differing"] == 0 else 1


def _models_directory(given: str | None) -> Path:
    directory = in_home(given) if given else models_directory()
    if directory is None:
        fix = f"set {DIRECTORY_VARIABLE} to the models directory, here and for the agents, or name it"
        raise BadFile(file="--models", problem="must name a directory for the weights", fix=fix)
    os.environ[DIRECTORY_VARIABLE] = str(directory)  # the files are read back as an agent reads them
    return directory


def _print(report: dict[str, Any]) -> None:
    head, encoder = show_bytes(report["head_bytes"]), show_bytes(report["encoder_bytes"])
    print(f"head: {head} beside an encoder of {encoder}: {report['weights']}")
    unsplit = report["unsplit_accuracy"]
    compared = (
        f"unsplit {unsplit:.2%}, {report['differing']} answered otherwise"
        if unsplit is not None
        else "no unsplit model"
    )
    print(f"accuracy on {report['tried_on']} held-out records: split {report['accuracy']:.2%}, {compared}")
    print(f"task: {report['task']}")
    if rollout := report.get("rollout"):
        loaded = "loaded again" if rollout["encoder_loaded_again"] else "not loaded again"
        sizes = {device: show_bytes(size) for device, size in rollout["added_bytes"].items()}
        added = ", ".join(f"{device} +{size}" for device, size in sizes.items()) or "nothing"
        print(f"deployed on {', '.join(rollout['head_on'])}: {added}; the encoder was {loaded}")
