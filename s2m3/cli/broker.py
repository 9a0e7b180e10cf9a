"""``s2m3 broker``: run the embedded MQTT broker until interrupted."""

from __future__ import annotations

import argparse
import threading

from broker.servers.embedded import EmbeddedBroker
from s2m3.cli.arguments import port


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--port", type=port, default=1883, help="default %(default)s; 0 takes a free one")


def run(arguments: argparse.Namespace) -> int:
    """Serve on 127.0.0.1; only an interrupt ends it."""
    with EmbeddedBroker(arguments.port) as running:
        print(f"the embedded broker listens at {running.url} (this machine only); Ctrl-C ends it", flush=True)
        threading.Event().wait()
    return 0
