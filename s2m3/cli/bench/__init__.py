"""``s2m3 bench``: what is measured, one command a question. Owns only the list of those commands."""

from __future__ import annotations

import argparse

from s2m3.cli.commands import add_commands

COMMANDS = {
    "accuracy": (
        "accuracy of the split and the unsplit model on labelled data, and how many answers differ",
        "s2m3.cli.bench.accuracy",
    ),
    "latency": (
        "seconds to an answer: split against cloud and local over shaped links, or branches at once against in turn",
        "s2m3.cli.bench.latency",
    ),
    "memory": (
        "memory: a task split over devices, tasks that share modules, and what real processes take",
        "s2m3.cli.bench.memory",
    ),
    "placement": (
        "how near to the optimum the placements are, and how long they take, on 95 instances",
        "s2m3.cli.bench.placement",
    ),
    "throughput": (
        "answers in time over offered load, from a quarter to three times the capacity, and the tasks' shares of it",
        "s2m3.cli.bench.throughput",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands under ``s2m3 bench``."""
    add_commands(parser, "bench_command", COMMANDS)
