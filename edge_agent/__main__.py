"""The agent of one device: ``python -m edge_agent --config FILE``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from broker.arguments import OneLineParser, add_broker, add_until_stdin_closes, places_of
from broker.directories import cache_directory, in_home
from broker.files import load_spec
from broker.process import end_at_once, log_to_stderr, stopped_by_signals
from broker.protocol.errors import BadFile, IdInUse
from broker.service_manager import ServiceManager
from broker.structured_log import structlog
from broker.transport.connect import check_files
from broker.transport.connection import Connection
from edge_agent.config import AgentConfig, connections
from edge_agent.device.footprint import share_one_heap
from edge_agent.device.last_start import changes_since
from edge_agent.device.speed import begin_to_measure
from edge_agent.end_guard import EndGuard
from edge_agent.modules.weights.allowed import allow
from edge_agent.modules.weights.digests import Recorded, record_in
from edge_agent.modules.weights.hub import DIRECTORY_VARIABLE, check_endpoint, models_directory
from edge_agent.modules.weights.stored import Cache, keep_in
from edge_agent.restart import PassLost, restart
from edge_agent.runtime import engines
from edge_agent.runtime.accelerator import CPU_BATCH, chosen
from edge_agent.watchdog import Watchdog


def add_arguments(parser: argparse.ArgumentParser, *, needs_config: bool = True) -> None:
    """Add the agent's arguments to the parser of this program or of a command of another one."""
    parser.add_argument("--config", required=needs_config, metavar="FILE", help="the device's YAML file")
    add_broker(parser, "default the file's")
    add_until_stdin_closes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal arrives. ``BadFile`` for a wrong configuration, ``IdInUse`` for an id that is taken.

    A hung forward pass ends in a new process with this one's id, or in ``EXIT_HUNG`` after several. One that keeps the
    interpreter's lock ends this process by SIGPROF (``watchdog``).
    """
    end_at_once()
    log_to_stderr(arguments.log_format)
    share_one_heap()
    manager = ServiceManager(os.environ)
    manager.turn()  # after a hung pass, too: the watchdog goes on over `exec`
    config, reached = _configured(arguments)
    engine = engines.chosen(config.engine, arguments.config, needs_cuda=config.accelerator == "cuda")
    speed = begin_to_measure(engine, config.threads, arguments.config)

    from edge_agent.device.about import about  # noqa: PLC0415 - after the configuration
    from edge_agent.device.calibration import Calibration  # noqa: PLC0415 - the same
    from edge_agent.device.measurements import Measurements, setting  # noqa: PLC0415 - the same
    from edge_agent.device.pass_note import note_of, report_crashes  # noqa: PLC0415 - the same
    from edge_agent.device.profile import profile  # noqa: PLC0415 - the same
    from edge_agent.modules.loader import Loader  # noqa: PLC0415 - the same
    from edge_agent.runtime.output_cache import with_cache  # noqa: PLC0415 - the same
    from edge_agent.runtime.runner import Runner  # noqa: PLC0415 - the same
    from edge_agent.runtime.store import Store  # noqa: PLC0415 - the same
    from edge_agent.service import Agent  # noqa: PLC0415 - the same

    accelerator = chosen(config.accelerator, arguments.config) if engine == "torch" else None
    batch = config.batch or (accelerator.batch if accelerator else CPU_BATCH)
    runner = Runner(threads=config.threads, batch=batch)
    if accelerator:
        runner = Runner(threads=config.threads, batch=batch, device=accelerator.device, problem=accelerator.problem)
    measured_profile = profile(config, speed(runner.device), engine=engine, accelerator=accelerator)
    offered, cache = with_cache(measured_profile, config.cache, beside=accelerator is not None, file=arguments.config)
    # May be deleted: the measurements are repeated, and the next load of each module is trusted.
    directory = in_home(config.state_dir) if config.state_dir else cache_directory("state_dir")
    _load_weights_as(config, directory)
    libraries = engines.version(engine) + (f", {accelerator.name}" if accelerator else "")
    measured = Measurements(directory / f"{config.id}.json", setting(config.threads, libraries))
    full_speed = offered.compute_flops_per_s / config.speed
    loader = Loader(offered=offered)
    calibration = Calibration(
        measured, speed=config.speed, flops_per_s=full_speed, runner=runner, loader=loader, accelerator=accelerator
    )
    store = Store(offered.memory_bytes, loader.load, calibration=calibration)
    start_file = directory / f"{config.id}.start.json"
    note = note_of(config.id, reached[0])
    report_crashes(note)
    watchdog = Watchdog(config.heartbeat_interval_s, config.threads, note.file)
    agent = Agent(
        config,
        profile=offered,
        store=store,
        runner=runner,
        about=about(accelerator, changes_since(start_file, config, models_directory(), accelerator)),
        note=note,
        cache=cache,
        on_turn=watchdog.reset,
        connections=reached,
        manager=manager,
    )
    guard = EndGuard()

    def stop() -> None:
        guard.ask()
        agent.stop()

    with stopped_by_signals(stop, until_stdin_closes=arguments.until_stdin_closes):
        try:
            agent.run()
        except PassLost:
            watchdog.stop()
            note.hang()
            return restart()
    note.remove()
    return 0


def _configured(arguments: argparse.Namespace) -> tuple[AgentConfig, tuple[Connection, Connection]]:
    """The agent's file and its connections, checked, with its models directory in force; raises BadFile."""
    config = load_spec(arguments.config, AgentConfig)
    reached = connections(config, *places_of(arguments), file=arguments.config)
    check_files(reached[0])
    config.downloads.check_files(arguments.config)
    if config.models:
        os.environ[DIRECTORY_VARIABLE] = config.models
    if (models := models_directory()) is not None and not models.is_dir():
        hint = "correct models: in the agent's file, or make it, and start the agent again"
        structlog.get_logger().warning("models_directory_is_missing", models=str(models), hint=hint)
    return config, reached


def _load_weights_as(config: AgentConfig, directory: Path) -> None:
    """Set which weights this process loads, where it keeps what it fetches, and where their digests."""
    check_endpoint()
    allow(config.weights)
    kept = config.downloads.directory
    keep_in(Cache(in_home(kept) if kept else directory / "weights", config.downloads))
    record_in(Recorded(directory / f"{config.id}.weights.json"))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = OneLineParser(prog="python -m edge_agent", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except (BadFile, IdInUse) as error:
        sys.stderr.write(f"edge_agent: {error}\n")
        return 2 if isinstance(error, BadFile) else 1


if __name__ == "__main__":
    sys.exit(main())
