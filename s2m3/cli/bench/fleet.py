"""``s2m3 bench fleet``: its command line and its tables. ``s2m3.bench.fleet`` simulates and measures."""

from __future__ import annotations

import argparse
from typing import Any

from broker.arguments import count, number
from broker.protocol.sizes import show_bytes, show_count
from s2m3.cli.arguments import add_json
from s2m3.cli.bench.measured import print_measured
from s2m3.cli.extras import imports_of
from s2m3.cli.output import console, show_progress, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``s2m3 bench fleet``."""
    parser.add_argument("--devices", type=count(1, 20_000), default=100, metavar="N", help="default %(default)s")
    parser.add_argument("--tasks", type=count(1, 1_000), default=14, metavar="N", help="default %(default)s")
    seconds = number(2, 3600, unit="seconds")
    parser.add_argument("--seconds", type=seconds, default=30.0, metavar="S", help="at rest; default %(default)s")
    text = "from the first device's birth to the last one's; default %(default)s"
    parser.add_argument("--births", type=number(0, 3600, unit="seconds"), default=10.0, metavar="S", help=text)
    text = "from a module's assignment until its device reports it as ready; default %(default)s"
    parser.add_argument("--load", type=number(0, 600, unit="seconds"), default=0.2, metavar="S", help=text)
    text = "measure routing and rest only: no deaths, no restart of the broker, no power-up"
    parser.add_argument("--steady", action="store_true", help=text)
    text = "devices subscribe to all routes, as agents do: one message for each device at each change of a route"
    parser.add_argument("--all-subscriptions", action="store_true", help=text)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; 0 if the run is valid, all tasks were routed, and no failure moved more than it had to."""
    with imports_of("bench", "the measurement needs"):
        from s2m3.bench.fleet.measure import Settings, measure  # noqa: PLC0415 - after the arguments, as for all benches

    settings = Settings(
        devices=arguments.devices,
        tasks=arguments.tasks,
        seconds=arguments.seconds,
        births_s=arguments.births,
        load_s=arguments.load,
        failures=not arguments.steady,
        all_subscriptions=arguments.all_subscriptions,
    )
    found = measure(settings, show_progress)
    show_progress("")
    return print_measured(arguments, found, _show)


def _show(found: dict[str, Any]) -> None:
    printed = console()
    made = table(
        "measured",
        "value",
        title=f"{show_count(found['devices'], 'device')}, {show_count(found['tasks'], 'task')}",
        right={"value"},
    )
    rate, gap = found["bytes_per_s"], found["leader_gap_s"]
    rows = {
        "all tasks routed after": _seconds(found["all_routed_s"]),
        "orchestrator, share of a core": f"{found['orchestrator_core_share']:.3f}",
        "orchestrator, waiting for its core": f"{found['orchestrator_waited_share']:.3f}",
        "orchestrator, resident": show_bytes(found["orchestrator_rss_mb"] * 1e6),
        "broker, share of a core": f"{found['broker_core_share']:.3f}",
        "simulator, share of a core": f"{found['simulator_core_share']:.3f}",
        "from devices, at rest": f"{show_bytes(rate['from_devices'])}/s",
        "from the broker to all, at rest": f"{show_bytes(rate['broker_sent'])}/s",
        "between the leader's heartbeats, p99": _seconds(gap["p99"]),
    }
    if "rerouted_s" in found:
        restart, power_up = found["broker_restart"], found["power_up"]
        rows |= {
            "re-routed after a death, with standby": _seconds(found["rerouted_s"]),
            f"without, {found['load_s']:g} s of loading included": _seconds(found["rerouted_without_standby_s"]),
            "moved by a restart of the broker": str(restart["moves"]),
            "all tasks routed after the first birth of a power-up": _seconds(power_up["served_s"]),
            "the last module moved after": _seconds(power_up["settled_s"]),
            "moves, and needless ones": f"{power_up['moves']}, {power_up['needless_moves']}",
        }
    for name, value in rows.items():
        made.add_row(name, value)
    printed.print(made)
    late = found["heartbeats"]
    printed.print(
        f"{late['sent']} simulated heartbeats, {late['late']} of them more than {late['late_above_s']:g} s late"
    )
    for reason in found["why_not"]:
        printed.print(f"[bold]does not hold:[/bold] {reason}")


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"
