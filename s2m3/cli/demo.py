"""``s2m3 demo``: the demonstration's arguments and its JSON document. The demonstration is in ``s2m3.testbed.demo``."""

from __future__ import annotations

import argparse

from s2m3.cli.arguments import add_json, add_site_broker, site_broker
from s2m3.cli.output import console, print_json
from s2m3.testbed.demo import run_demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_site_broker(parser, "default embedded")
    text = "of the agents; onnx exports the modules first, and compares answers within a tolerance; default %(default)s"
    parser.add_argument("--engine", choices=("torch", "onnx"), default="torch", help=text)
    add_json(parser, "print one JSON document and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; 0 when every answer was equal and no request was lost."""
    printed = console(to_stderr=arguments.json, quiet=arguments.json)
    report = run_demo(site_broker(arguments) or "embedded", printed, arguments.engine)
    if arguments.json:
        print_json(report.__dict__)
    return 0 if report.ok else 1
