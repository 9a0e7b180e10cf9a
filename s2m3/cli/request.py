"""``s2m3 request``: send one request, as ``Client.ask`` does, and print its answer."""

from __future__ import annotations

import argparse
import json

from pydantic import JsonValue

from broker.client import Client, Response
from broker.given_inputs import Given, read_given
from broker.protocol.errors import BadFile, NotConnected
from broker.transport.connection import Connection
from s2m3.cli.arguments import add_connection, connection_of, seconds, when_reached
from s2m3.cli.output import print_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--image", metavar="FILE", action="append", default=[])
    parser.add_argument(
        "--text", metavar="S", action="append", default=[], help="again for a second text, or one more line"
    )
    parser.add_argument("--audio", metavar="FILE", action="append", default=[])
    parser.add_argument("--deadline", type=seconds, default=30.0, metavar="S", help="seconds, default 30")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Send one request; 0 when it was answered, 1 when it ended in an error."""
    given = read_given(_only("--image", arguments.image), arguments.text, _only("--audio", arguments.audio))
    connection = connection_of(arguments)
    response = when_reached(lambda: _ask(arguments, connection, given))
    result = response.result.model_dump(mode="json", exclude_none=True)
    document = result | {"latency_s": response.latency_s, "attempts": response.attempts}
    print_result(arguments, document, lambda _: _print(response))
    return 0 if response.ok else 1


def _only(option: str, files: list[str]) -> str | None:
    if len(files) > 1:  # as elsewhere the last one would count, and the others would be dropped without a word
        raise BadFile(file=option, problem=f"is given {len(files)} times", fix="send a request for each file")
    return files[0] if files else None


def _ask(arguments: argparse.Namespace, connection: Connection, given: Given) -> Response:
    with Client(connection) as client:
        response = client.submit_given(arguments.task, given, deadline_s=arguments.deadline).result()
    if isinstance(response.failure, NotConnected):
        raise response.failure
    return response


def _print(response: Response) -> None:
    result = response.result
    if result.error:
        retry = f" (try again in {result.error.retry_after_s:g} s)" if result.error.retry_after_s else ""
        print(f"{result.error.code}: {result.error.message}{retry}")
        return
    for name, array in response.tensors.items():
        print(f"{name}: {array.dtype} {list(array.shape)}")
    for name, value in (result.answer or {}).items():
        print(f"{name}: {_vectors(value) if name == 'embeddings' else json.dumps(value)}")
    for sentence in (sentence for timing in result.timings for sentence in timing.notes):
        print(f"note: {sentence}")
    path = " -> ".join(f"{t.node}@{t.device} {1000 * t.compute_s:.0f} ms" for t in result.timings)
    print(f"in {1000 * response.latency_s:.0f} ms: {path}")


def _vectors(rows: JsonValue) -> str:
    """Embeddings in a few words; ``--json`` has all numbers."""
    found = rows if isinstance(rows, list) else []
    first = found[0] if found and isinstance(found[0], list) else []
    shown = ", ".join(f"{number:.4f}" for number in first[:4] if isinstance(number, int | float))
    return f"{len(found)} of {len(first)} numbers: [{shown}, ...] (--json has all)"
