"""``s2m3 drain DEVICE``: take a device out of service without an error, and print where its modules went.

Owns the order to the orchestrator and the wait until it is carried out. The orchestrator decides which module moves
where; only what was really published is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from broker.protocol.errors import BadFile
from s2m3.cli.arguments import add_connection, connected, seconds
from s2m3.cli.output import print_result, printable
from s2m3.testbed.observer import Observer

KNOWN_WITHIN_S = 1.5  # retained states arrive at once, heartbeats every second


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("device", metavar="DEVICE")
    parser.add_argument("--undo", action="store_true", help="put it back in service")
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="S", help="seconds to wait, default 600")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Drain a device, or put it back in service; 0 when it is done.

    1 when a module must stay there, or the time was over first. The order remains in force.
    """
    device: str = arguments.device
    with connected(arguments) as observer:
        observer.wait_for(lambda seen: device in seen.heartbeats and seen.leader is not None, KNOWN_WITHIN_S)
        if device not in observer.devices and not arguments.undo:
            known = ", ".join(sorted(observer.devices)) or "none"
            raise BadFile(file=device, problem="no such device is known", fix=f"known devices: {known}")
        observer.set_drain(device, drain=not arguments.undo)
        if arguments.undo:
            undone = observer.wait_for(lambda seen: device not in seen.drained, arguments.timeout)
            text = "in service again" if undone else "the broker did not confirm it"
            print_result(arguments, {"device": device, "undone": undone}, f"{device}: {text}")
            return 0 if undone else 1
        served = _assigned(observer, device)
        until_s = time.monotonic() + arguments.timeout
        observer.wait_for(lambda seen: device in seen.drained, arguments.timeout)
        told = _Told(device)
        observer.wait_for(
            lambda seen: told(seen) or seen.is_empty(device) or _stays(seen, device) is not None,
            until_s - time.monotonic(),
        )
        drained, stays = observer.is_empty(device), _stays(observer, device)
        others = sorted(name for name in observer.assignments if name != device)
        moved = {name: [other for other in others if name in _assigned(observer, other)] for name in served}
        document = {"device": device, "drained": drained, "moved": moved, "stays": stays}
        print_result(arguments, document, f"{device}: {_outcome(observer, device, moved, drained=drained)}")
        return 0 if drained else 1


class _Told:
    """Prints what the drain waits for to standard error, once; it is never true."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._last = ""

    def __call__(self, seen: Observer) -> bool:
        """Print what is new."""
        why = _waits(seen, self._device)
        if why and why != self._last:
            print(printable(f"{self._device}: waits while {why}"), file=sys.stderr, flush=True)
            self._last = why
        return False


def _waits(observer: Observer, device: str) -> str:
    """The step that the drain waits for, as the orchestrator says."""
    standing = observer.standings.get(device)
    waits = standing.why.partition("; ")[2] if standing is not None and standing.standing == "draining" else ""
    return "" if " stays: " in waits else waits


def _assigned(observer: Observer, device: str) -> list[str]:
    """The modules that a device is to hold."""
    assignment = observer.assignments.get(device)
    return sorted({assigned.module for assigned in assignment.modules}) if assignment else []


def _stays(observer: Observer, device: str) -> str | None:
    assignment = observer.assignments.get(device)
    return assignment.stays if assignment else None


def _outcome(observer: Observer, device: str, moved: Mapping[str, Sequence[str]], *, drained: bool) -> str:
    if drained:
        places = (f"{name} on {'+'.join(there) or 'no device: nothing needs it'}" for name, there in moved.items())
        return f"drained: {', '.join(places) or 'it held nothing'}"
    if (stays := _stays(observer, device)) is not None:
        return f"goes on serving, for nothing else fits: {stays}. It moves when it can; `--undo` takes it back"
    if not observer.leads:
        return "no orchestrator is online; the order waits for one"
    holds = ", ".join(_assigned(observer, device)) or "what it unloads now"
    waits = _waits(observer, device)
    return f"not yet drained: it holds {holds}" + (f"; it waits while {waits}" if waits else "")
