"""``s2m3 bench``: what is measured, one command a question. Owns only the list of those commands."""

from __future__ import annotations

import argparse

from s2m3.cli.bench import accuracy, latency, memory, throughput
from s2m3.cli.bench import placement as placing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands under ``s2m3 bench``."""
    verbs = parser.add_subparsers(dest="bench_command", required=True, metavar="COMMAND")
    text = "accuracy of the split and the unsplit model on labelled data, and how many answers differ"
    accuracy.add_arguments(verbs.add_parser("accuracy", help=text, description=text))
    text = "seconds to an answer: split against cloud and local over shaped links, or branches at once against in turn"
    latency.add_arguments(verbs.add_parser("latency", help=text, description=text))
    text = "memory: a task split over devices, tasks that share modules, and what real processes take"
    memory.add_arguments(verbs.add_parser("memory", help=text, description=text))
    text = "how near to the optimum the placements are, and how long they take, on 95 instances"
    placing.add_arguments(verbs.add_parser("placement", help=text, description=text))
    text = "answers in time over offered load, from a quarter to three times the capacity, and the tasks' shares of it"
    throughput.add_arguments(verbs.add_parser("throughput", help=text, description=text))
