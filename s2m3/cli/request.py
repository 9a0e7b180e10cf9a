"""``s2m3 request``: send one request and print its answer. Owns how files and texts become the task's inputs."""

from __future__ import annotations

import argparse
import json
import mimetypes
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from broker.client import Client, Response
from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, BrokerRefused
from broker.protocol.specs import InputSpec
from s2m3.cli.arguments import add_connection, connection_of, seconds
from s2m3.cli.output import print_result
from s2m3.testbed.observer import Observer

ROUTE_S = 1.0  # a retained message arrives within milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--image", metavar="FILE")
    parser.add_argument(
        "--text", metavar="S", action="append", default=[], help="again for a second text, or one more line"
    )
    parser.add_argument("--audio", metavar="FILE")
    parser.add_argument("--deadline", type=seconds, default=30.0, metavar="S", help="seconds, default 30")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send one request; 0 when it was answered, 1 when it ended in an error."""
    route = None
    connection = connection_of(arguments)
    with suppress(BrokerRefused), Observer(connection, task=arguments.task) as observer:  # not every sensor may read it
        observer.wait_for(lambda seen: arguments.task in seen.routes, ROUTE_S)
        route = observer.routes.get(arguments.task)
    inputs = _inputs(arguments, route.inputs if route else {})
    with Client(connection) as client:
        response = client.request(arguments.task, inputs, deadline_s=arguments.deadline)
    result = response.result.model_dump(mode="json", exclude_none=True)
    document = result | {"latency_s": response.latency_s, "attempts": response.attempts}
    print_result(arguments, document, lambda _: _print(response))
    return 0 if response.ok else 1


def _inputs(arguments: argparse.Namespace, expected: Mapping[str, InputSpec]) -> dict[str, RawInput]:
    """Files and texts under the names of the task's inputs of their kind; further texts are lines of the last one."""
    given: dict[str, RawInput] = {}
    by_kind = {kind: [n for n, spec in expected.items() if spec.kind == kind] for kind in ("image", "audio", "text")}
    for kind, path in (("image", arguments.image), ("audio", arguments.audio)):
        if path:
            name = by_kind[kind][0] if by_kind[kind] else kind
            given[name] = RawInput(_read(path), mimetypes.guess_type(path)[0] or "")
    names = by_kind["text"] or ["text"]
    for position, text in enumerate(arguments.text):
        name = names[min(position, len(names) - 1)]
        before = given[name].data + b"\n" if name in given else b""
        given[name] = RawInput(before + text.encode(), "text/plain")
    if not given:
        wanted = ", ".join(f"{name} ({spec.kind})" for name, spec in expected.items()) or "an input"
        problem = f"nothing to send; {arguments.task} takes {wanted}"
        raise BadFile(file="request", problem=problem, fix="add --image or --text")
    return given


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        problem = error.strerror or "can't be read"
        raise BadFile(file=path, problem=problem, fix="name a file that can be read") from error


def _print(response: Response) -> None:
    result = response.result
    if result.error:
        retry = f" (try again in {result.error.retry_after_s:g} s)" if result.error.retry_after_s else ""
        print(f"{result.error.code}: {result.error.message}{retry}")
        return
    for name, array in response.tensors.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")
    for name, value in (result.answer or {}).items():
        print(f"{name}: {json.dumps(value)}")
    path = " -> ".join(f"{t.node}@{t.device} {1000 * t.compute_s:.0f} ms" for t in result.timings)
    print(f"in {1000 * response.latency_s:.0f} ms: {path}")
