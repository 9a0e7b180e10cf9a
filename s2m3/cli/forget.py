"""``s2m3 forget DEVICE``: a device that is gone for good leaves the picture of the site.

Owns the order to the orchestrator and the wait until the broker retains nothing of the device. A device that is online
is refused, here with the reason, and by the orchestrator in any case.
"""

from __future__ import annotations

import argparse

from broker.protocol.errors import BadFile
from s2m3.cli.arguments import add_connection, connected, seconds
from s2m3.cli.output import print_result
from s2m3.testbed.observer import Observer

KNOWN_WITHIN_S = 1.5  # retained messages arrive at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("device", metavar="DEVICE")
    parser.add_argument("--timeout", type=seconds, default=10.0, metavar="S", help="seconds to wait, default 10")
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Have a device forgotten; 0 when nothing is retained of it, 1 when it is online or no orchestrator does it."""
    device: str = arguments.device
    with connected(arguments) as observer:
        observer.wait_for(lambda seen: seen.leads and seen.knows(device), KNOWN_WITHIN_S)
        if not observer.knows(device):
            known = ", ".join(sorted(observer.devices.keys() | observer.standings.keys())) or "none"
            raise BadFile(file=device, problem="no such device is known", fix=f"known devices: {known}")
        why = _why_not(observer, device)
        forgotten = why is None and observer.forget(device, arguments.timeout)
        if forgotten:
            text = "forgotten: if it comes back, it is a new device"
        else:
            text = why or "the orchestrator did not confirm it: look at its log, and at the device in `s2m3 status`"
        print_result(arguments, {"device": device, "forgotten": forgotten, "why": why}, f"{device}: {text}")
        return 0 if forgotten else 1


def _why_not(observer: Observer, device: str) -> str | None:
    """The reason why a device isn't forgotten now; None if it is gone."""
    if not observer.leads:
        return "no orchestrator is online, which would forget it: start one"
    state, standing = observer.devices.get(device), observer.standings.get(device)
    if state is None or state.status == "offline" or (standing and standing.standing in {"dead", "away"}):
        return None
    if standing is not None and standing.standing == "suspect":
        return "its heartbeats are late: wait until it is dead, then try again"
    return "it is online, and only a device that is gone can be forgotten: drain it, end its agent, then try again"
