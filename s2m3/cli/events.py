"""``s2m3 events``: what happens in a site, a line each, as its processes tell it."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime

from broker.protocol.reports import SystemEvent
from broker.protocol.topics import DEVICE_EVENTS, ORCHESTRATOR_EVENTS
from s2m3.cli.arguments import add_connection, positive_seconds
from s2m3.cli.listen import Heard, listening, quiet_end
from s2m3.cli.output import printable

LISTEN_S = 10.0
_SHOWN = frozenset({"type", "at", "device", "task", "module", "why"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--follow", action="store_true", help="until Ctrl-C")
    text = "what arrives in this time, default %(default)g; events aren't kept"
    group.add_argument("--seconds", type=positive_seconds, default=LISTEN_S, metavar="S", help=text)
    add_connection(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print events as they arrive; 0."""
    with quiet_end(), listening(arguments, ORCHESTRATOR_EVENTS, DEVICE_EVENTS) as listener:
        for heard in listener.messages(None if arguments.follow else arguments.seconds):
            print(json.dumps(_document(heard)) if arguments.json else line_of(heard), flush=True)
    return 0


def _document(heard: Heard) -> dict[str, object]:
    """An event for programs, with the process that told it."""
    incoming, event = heard
    return {"from": incoming.ids.get("device", "orchestrator"), **event.model_dump(mode="json", exclude_none=True)}


def line_of(heard: Heard) -> str:
    """An event for people: when its sender's clock says, what, where, and why."""
    incoming, event = heard
    if not isinstance(event, SystemEvent):
        return ""
    device = event.device or incoming.ids.get("device")
    others = {name: value for name, value in (event.model_extra or {}).items() if name not in _SHOWN}
    named = {"task": event.task, "module": event.module, **others}
    words = [f"{name}={value}" for name, value in named.items() if value is not None]
    text = f"{_clock(event.at)}  {event.type:<18} {device or '':<12} {' '.join(words)}".rstrip()
    return printable(text + (f": {event.why}" if event.why else "")).replace("\n", " ")


def _clock(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC).astimezone():%H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return "--:--:--"  # no clock says so
