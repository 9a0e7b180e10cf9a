"""One device: ``python -m edge_agent --config FILE``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.errors import BadFile
from broker.files import load_spec
from edge_agent.config import AgentConfig
from edge_agent.modules.hub import DIRECTORY_VARIABLE

if TYPE_CHECKING:
    from edge_agent.service import Agent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The agent's command line."""
    parser.add_argument("--config", required=True, metavar="FILE", help="the device's YAML file")
    parser.add_argument("--broker", metavar="URL", help="instead of the file's broker")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes.

    Raises:
        BadFile: the configuration is wrong.
    """
    config = load_spec(arguments.config, AgentConfig)
    if arguments.broker:
        config = config.model_copy(update={"broker": arguments.broker})
    if config.models:
        os.environ[DIRECTORY_VARIABLE] = config.models
    import torch  # noqa: PLC0415 - after the configuration, so that a wrong one is told at once

    from edge_agent.profile import profile  # noqa: PLC0415 - the same
    from edge_agent.service import Agent  # noqa: PLC0415 - the same
    from edge_agent.store import Store  # noqa: PLC0415 - the same

    torch.set_num_threads(config.threads)
    measured = profile(
        memory_bytes=config.memory,
        speed=config.speed,
        bandwidth_bits_per_s=config.bandwidth_bits_per_s,
        latency_s=config.latency_s,
    )
    agent = Agent(config, profile=measured, store=Store(measured.memory_bytes))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.stop())
    if arguments.until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, args=(agent,), daemon=True).start()
    agent.run()
    return 0


def _stop_at_end_of_input(agent: Agent) -> None:
    sys.stdin.buffer.read()
    agent.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a person's mistake into one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except BadFile as error:
        print(error, file=sys.stderr)  # noqa: T201 - the one line a person needs
        return 2


if __name__ == "__main__":
    sys.exit(main())
