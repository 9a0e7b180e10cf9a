"""``s2m3 bench``: the measurements, one command each. Owns only the list of those commands."""

from __future__ import annotations

import argparse

from s2m3.cli.commands import add_commands

COMMANDS = {
    "accuracy": "accuracy of the split and the unsplit model on labelled data, and how many answers differ",
    "batch": "batches: a device at saturation without them and with them, and whether the answers are the same",
    "cache": "equal work computed once: one frame to four tasks that share an encoder, with constant texts",
    "fleet": "the orchestrator and the broker under a simulated fleet: processor, memory, time until tasks are served "
    "and after deaths",
    "latency": "seconds to an answer: split against cloud and local over shaped links, or parallel against sequential "
    "routing",
    "memory": "memory: a task split over devices, tasks that share modules, and the memory of real processes",
    "placement": "placement: the distance from the optimum and the time of each solver, on 95 instances",
    "throughput": "throughput: answers in time at loads from a quarter to three times the capacity, and each task's "
    "share",
    "wire": "the wire: a hop of tensors between agents against one of paho alone, and the overhead of a request",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands under ``s2m3 bench``."""
    add_commands(parser, "bench_command", {name: (text, f"{__name__}.{name}") for name, text in COMMANDS.items()})
