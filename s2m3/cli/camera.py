"""``s2m3 camera``: ask tasks about the frames of a camera, a video or a folder, and print each answer on a line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from broker.arguments import number
from broker.client import Client
from broker.protocol.errors import BadFile, RequestFailed
from broker.protocol.sizes import show_count
from s2m3.camera.change import LEAST_SHARE, Change
from s2m3.camera.reader import Reader
from s2m3.camera.source import read_source
from s2m3.camera.watch import Asked, Counts, Told, Watch
from s2m3.cli.arguments import add_connection, connection_of, seconds
from s2m3.cli.output import print_json, printable

_every = number(0, unit="seconds")
_share = number(0, 1)


class _Task(argparse.Action):
    """Collects ``--task`` and the ``--text`` behind it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,  # noqa: ANN401 - as argparse calls it
        _: str | None = None,
    ) -> None:
        """Add a task, or a text to the last one."""
        asked: list[tuple[str, list[str]]] = namespace.asked
        if self.dest == "task":
            namespace.asked = [*asked, (values, [])]
        elif not asked:
            parser.error("argument --text: write it behind the --task that it belongs to")
        else:
            asked[-1][1].append(values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(asked=[])
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="an address (rtsp, http), a device (/dev/video0), a video, or a folder to watch",
    )
    parser.add_argument("--task", metavar="TASK", action=_Task, required=True, help="again for a further task")
    parser.add_argument(
        "--text", metavar="S", action=_Task, help="of the --task before it, with each frame; again for one more line"
    )
    parser.add_argument(
        "--every", type=_every, default=1.0, metavar="S", help="seconds between two frames, default 1; 0: all"
    )
    parser.add_argument(
        "--change",
        type=_share,
        default=LEAST_SHARE,
        metavar="SHARE",
        help="the least share of the picture that must change, 0 to 1, or the frame is skipped; default %(default)s",
    )
    parser.add_argument("--deadline", type=seconds, default=10.0, metavar="S", help="of a request, default 10 seconds")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Watch until the source ends, or Ctrl-C; 0 when all requests were answered."""
    source = read_source(arguments.source)
    reader = Reader(source, arguments.every, _say)
    asked = [Asked(task, tuple(texts)) for task, texts in arguments.asked]
    _check_names([each.task for each in asked])

    def tell(told: Told, counts: Counts) -> None:
        if arguments.json:
            print_json(_document(told, counts, source.shown))
        else:
            print(printable(_line(told, counts)), flush=True)
        sys.stdout.flush()

    interrupted = False
    with Client(connection_of(arguments)) as client:
        watch = Watch(
            client,
            reader,
            asked,
            tell,
            every_s=arguments.every,
            change=Change(arguments.change),
            deadline_s=arguments.deadline,
        )
        try:
            watch.run()
        except KeyboardInterrupt:  # the ordinary end of a camera
            interrupted = True
        except BrokenPipeError:  # nobody reads the answers any more, as behind `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    counts = watch.counts
    if arguments.json:
        print_json(
            {"camera": source.shown, "frames": _frames(counts), "requests": counts.sent, "failed": counts.failed}
        )
    else:
        print(
            f"{show_count(counts.looked, 'frame')}, {counts.still} still ({100 * counts.still_share:.0f} %), "
            f"{counts.replaced} replaced by newer ones; {show_count(counts.sent, 'request')}, "
            f"{counts.failed} without an answer",
            file=sys.stderr,
        )
    return 0 if interrupted or (counts.sent and not counts.failed) else 1


def _check_names(tasks: Sequence[str]) -> None:
    twice = next((task for position, task in enumerate(tasks) if task in tasks[:position]), None)
    if twice is not None:
        raise BadFile(file="--task", problem=f"names {twice} twice", fix="name each task once")


def _say(text: str) -> None:
    print(f"s2m3 camera: {printable(text)}", file=sys.stderr, flush=True)


def _line(told: Told, counts: Counts) -> str:
    at = datetime.fromtimestamp(told.at_s).astimezone().strftime("%H:%M:%S")
    still = f"{100 * counts.still_share:.0f} % still"
    if told.answer is None:
        return f"{at} {told.task}: {_why(told)} ({still})"
    output = told.answer.output
    said = (
        told.answer.answer
        or _vectors(output)
        or ", ".join(f"{name} {json.dumps(value)[:60]}" for name, value in output.items())
    )
    score = output.get("score")
    scored = f" {score:.3f}" if isinstance(score, float) else ""
    return f"{at} {told.task}: {said}{scored} ({1000 * told.answer.latency_s:.0f} ms, {still})"


def _vectors(output: Mapping[str, Any]) -> str:
    rows = output.get("embeddings")
    return (
        f"{show_count(len(rows), 'embedding')} of {show_count(len(rows[0]), 'number')}"
        if rows and isinstance(rows, list)
        else ""
    )


def _why(told: Told) -> str:
    if isinstance(told.error, RequestFailed):
        return f"{told.error.code}: {told.error.message}"
    return str(told.error)


def _document(told: Told, counts: Counts, camera: str) -> dict[str, object]:
    found: dict[str, object] = {
        "camera": camera,
        "task": told.task,
        "at": datetime.fromtimestamp(told.at_s, UTC).isoformat(timespec="milliseconds"),
        "frames": _frames(counts),
    }
    if told.answer is None:
        code = str(told.error.code) if isinstance(told.error, RequestFailed) else "not_connected"
        return found | {"error": {"code": code, "message": _why(told)}}
    answer = told.answer
    return found | {"answer": answer.output, "latency_s": answer.latency_s, "path": list(answer.path)}


def _frames(counts: Counts) -> dict[str, object]:
    return {
        "looked": counts.looked,
        "still": counts.still,
        "still_share": round(counts.still_share, 3),
        "replaced": counts.replaced,
    }
