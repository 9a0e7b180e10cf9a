"""``s2m3 trace``: where the time of one request went, as a waterfall in text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from broker.protocol.errors import S2M3Error
from broker.protocol.messages import Route
from broker.protocol.reports import Trace, TraceNode
from broker.protocol.sizes import show_bytes, show_count
from broker.protocol.specs import NodeName
from broker.protocol.topics import DEVICE_TRACES, TASK_ROUTE
from broker.protocol.trace_context import trace_id_of
from s2m3.cli.arguments import add_connection, seconds
from s2m3.cli.listen import listening
from s2m3.cli.output import print_result, printable

WAIT_S = 30.0
WIDTH = 48  # columns of the whole request
PHASES = ("transfer", "queue", "compute", "return")
BARS, ASCII_BARS = "░▒█░", ".-#."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    text = (
        "the request's id, as its answer has it (`request`), or its traceparent's trace id; not a sensor's name of it"
    )
    which.add_argument("request", metavar="REQUEST", nargs="?", help=text)
    which.add_argument("--next", metavar="TASK", help="the next request of this task that ends")
    text = "wait so long for it, default %(default)g s; traces aren't kept"
    parser.add_argument("--timeout", type=seconds, default=WAIT_S, metavar="S", help=text)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print one trace; 0 when it arrived, 1 when none did in time."""
    routes: dict[str, Route] = {}
    with listening(arguments, DEVICE_TRACES, TASK_ROUTE) as listener:
        if arguments.request is not None:  # raises LocalProtocolError
            DEVICE_TRACES.at(listener.prefix, device="any", request=arguments.request)
        else:
            TASK_ROUTE.at(listener.prefix, task=arguments.next)
        for _, message in listener.messages(arguments.timeout):
            if isinstance(message, Route):
                routes[message.task] = message
            elif isinstance(message, Trace) and is_asked(message, arguments):
                document = message.model_dump(mode="json")
                print_result(arguments, document, "\n".join(waterfall(message, routes.get(message.task), _bars())))
                return 0
        raise S2M3Error(_why_none(arguments, listener.skipped))


def is_asked(trace: Trace, arguments: argparse.Namespace) -> bool:
    """Whether a trace is the one that the arguments ask for."""
    wanted = {(trace.task, None), (None, trace.request)}
    wanted |= {(None, trace_id_of(trace.traceparent))} if trace.traceparent else set()
    return (arguments.next, arguments.request) in wanted


def _why_none(arguments: argparse.Namespace, skipped: int) -> str:
    what = f"the request {arguments.request}" if arguments.request else f"a request of {arguments.next}"
    text = f"no trace of {what} arrived within {arguments.timeout:g} s: "
    text += "a trace is published when its request ends, at most 20 a second by a device, and isn't kept"
    return text + (f"; {show_count(skipped, 'message')} could not be read" if skipped else "")


def _bars() -> str:
    """The characters of the four phases, as standard output can show them."""
    try:
        BARS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_BARS
    return BARS


def waterfall(trace: Trace, route: Route | None = None, bars: str = BARS) -> list[str]:
    """The lines of a trace: a bar for each node, on one axis from the request's arrival to its end.

    A node begins when the last node that it needs ended: the coordinator measures durations, and the ``route`` has the
    needs. Without a route all nodes begin at 0.
    """
    begins_s = _begins(trace, route)
    end_s = max([trace.total_s, *(begins_s[name] + _whole(node) for name, node in trace.nodes.items())]) or 1.0
    names = sorted(trace.nodes, key=lambda name: (begins_s[name], name))
    name_width = max([4, *map(len, (*names, *trace.unfinished))])
    device_width = max([6, *(len(each.device) for each in trace.nodes.values()), *map(len, trace.unfinished.values())])
    head = f"{'node':<{name_width}}  {'device':<{device_width}}  {'0 ms':<{WIDTH - 10}}{1000 * end_s:>7.0f} ms  "
    lines = [
        f"request {trace.request} of {trace.task}: {trace.outcome} after {1000 * trace.total_s:.0f} ms",
        *([f"traceparent {trace.traceparent}"] if trace.traceparent else []),
        head + "  ".join(f"{phase:>8}" for phase in PHASES) + " (ms)",
    ]
    for name in names:
        node = trace.nodes[name]
        bar = _bar(node, begins_s[name], end_s, bars)
        figures = "  ".join(f"{1000 * each:>8.1f}" for each in _durations(node))
        line = (
            f"{name:<{name_width}}  {node.device:<{device_width}}  {bar:<{WIDTH}}  {figures}  {', '.join(_notes(node))}"
        )
        lines.append(line.rstrip())
    for name, device in sorted(trace.unfinished.items()):
        lines.append(f"{name:<{name_width}}  {device:<{device_width}}  did not finish")
    lines.append("  ".join(f"{bars[place]} {phase}" for place, phase in enumerate(PHASES[:3])) + f"  {bars[3]} return")
    return [printable(line) for line in lines]


def _durations(node: TraceNode) -> tuple[float, ...]:
    return node.transfer_s, node.queue_s, node.compute_s, node.return_s


def _whole(node: TraceNode) -> float:
    return sum(_durations(node))


def _begins(trace: Trace, route: Route | None) -> Mapping[NodeName, float]:
    """The second at which each node begins, by the graph."""
    begins_s = dict.fromkeys(trace.nodes, 0.0)
    if route is None:
        return begins_s
    for name in route.order:
        if name in trace.nodes:
            needs = [need for need in route.nodes[name].needs if need in trace.nodes]
            ends = [begins_s[need] + _whole(trace.nodes[need]) - trace.nodes[need].return_s for need in needs]
            begins_s[name] = max([0.0, *ends])
    return begins_s


def _bar(node: TraceNode, begin_s: float, end_s: float, bars: str) -> str:
    """A node's bar; each phase that took any time has its share of the columns, the longest at least one."""
    columns, at_s = [" "] * WIDTH, begin_s
    for character, duration_s in zip(bars, _durations(node), strict=True):
        first, last = round(WIDTH * at_s / end_s), round(WIDTH * (at_s + duration_s) / end_s)
        columns[first:last] = character * (min(last, WIDTH) - min(first, WIDTH))
        at_s += duration_s
    if not any(column != " " for column in columns):
        columns[min(WIDTH - 1, round(WIDTH * begin_s / end_s))] = bars[2]
    return "".join(columns[:WIDTH])


def _notes(node: TraceNode) -> list[str]:
    notes = [show_bytes(node.bytes)] if node.bytes else []
    notes += ["output was kept"] if node.cache_hit else []
    notes += [f"{node.attempts} attempts"] if node.attempts > 1 else []
    return [*notes, *([f"one of {node.batch} in a pass"] if node.batch > 1 else [])]
