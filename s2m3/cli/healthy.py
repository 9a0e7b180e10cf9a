"""``s2m3 healthy``: whether the service of this container serves. Owns its options, for a container's health check."""

from __future__ import annotations

import argparse
import os

from broker.arguments import number
from broker.protocol.errors import BadFile, S2M3Error
from broker.service_manager import health

WAIT_S = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Exit 0 if the service beside this command serves and its main loop runs, else 1 with the reason. Both need "
        "the same NOTIFY_SOCKET in their environment, a path; the service also WATCHDOG_USEC, as systemd sets it: it "
        "speaks four times in that time."
    )
    seconds = number(0, 3600, above=True, unit="seconds")
    text = "how long to wait for the service's next word; default %(default)g"
    parser.add_argument("--wait", type=seconds, default=WAIT_S, metavar="S", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Listen to the service; returns the exit status 0."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        fix = "set it for the service and for this command alike, to a path such as /tmp/s2m3-notify"
        raise BadFile(file="NOTIFY_SOCKET", problem="isn't set in the environment", fix=fix)
    try:
        problem = health(os.environ, arguments.wait)
    except OSError as error:
        problem = f"can't listen at {place}: {error.strerror or error}"
        fix = "name a path that this user can write, and that no supervisor uses"
        raise BadFile(file="NOTIFY_SOCKET", problem=problem, fix=fix) from error
    if problem is not None:
        raise S2M3Error(f"the service isn't healthy: {problem}")
    return 0
