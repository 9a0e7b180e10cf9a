"""``s2m3 demo``: the demonstration's arguments and its JSON document. The demonstration is in ``s2m3.testbed.demo``."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from broker.protocol.errors import BadFile
from s2m3.cli.arguments import add_json, add_site_broker, site_broker
from s2m3.cli.output import console, print_json
from s2m3.testbed.demo import Report, run_demo
from s2m3.testbed.keep import keep
from s2m3.testbed.site import Site


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_site_broker(parser, "default embedded")
    text = "of the agents; onnx exports the modules first, and compares answers within a tolerance; default %(default)s"
    parser.add_argument("--engine", choices=("torch", "onnx"), default="torch", help=text)
    text = "the site stays up afterwards, with lines to paste; Ctrl-C ends it"
    parser.add_argument("--keep", action="store_true", help=text)
    text = "with --keep: a page shows the site from the beginning, for a browser on this machine"
    parser.add_argument("--dashboard", action="store_true", help=text)
    add_json(parser, "print one JSON document and nothing else")


def run(arguments: argparse.Namespace) -> int:
    """Run the demonstration; 0 when every answer was equal and no request was lost."""
    if arguments.dashboard and not arguments.keep:
        raise BadFile(file="--dashboard", problem="would end with the demo", fix="add --keep")
    printed = console(to_stderr=arguments.json, quiet=arguments.json)

    def stay(site: Site, report: Report) -> None:
        if arguments.json:
            print_json(report.__dict__)
        keep(site, partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True))

    report = run_demo(
        site_broker(arguments) or "embedded",
        printed,
        arguments.engine,
        dashboard=arguments.dashboard,
        then=stay if arguments.keep else None,
    )
    if arguments.json and not arguments.keep:
        print_json(report.__dict__)
    return 0 if report.ok else 1
