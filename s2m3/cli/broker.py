"""``s2m3 broker``: run the embedded MQTT broker, check any broker, or set up a site's own Mosquitto with accounts."""

from __future__ import annotations

import argparse
import shlex
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from broker.arguments import OneLineParser, site_prefix
from broker.protocol.errors import BadFile
from broker.protocol.sentences import describe
from broker.servers import site_setup
from broker.servers.access import WITH_TASKS, Account, Role, site_at_core
from broker.servers.bridge import OPTION, read_bridge
from broker.servers.certificates import CERTIFICATE_DAYS, day, ends_of
from broker.servers.embedded import EmbeddedBroker
from broker.servers.site_files import ANY, BROKER_USER, PLUGIN, PORT, Settings, Setup
from s2m3.cli import broker_check
from s2m3.cli.arguments import port
from s2m3.cli.output import console, table

MAX_PORT = 65_535
TASKS_HELP = "NAME=TASK,TASK for some tasks only"
TOLD = {
    "running": "the running broker made the change",
    "stopped": "the broker isn't running: the change is in its file, for its next start",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--port", type=port, default=1883, help="default %(default)s; 0 takes a free one")
    text = "for clients of MQTT 3.1.1; default: the one after --port, 0 takes a free one"
    parser.add_argument("--port-311", type=port, metavar="PORT", help=text)
    parser.set_defaults(run=_serve)
    text = "without a command: run the embedded broker; with one: set up a site's own Mosquitto, with TLS and accounts"
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", parser_class=OneLineParser, description=text)
    text = "whether a broker does what a site needs, and the messages of tasks fit"
    broker_check.add_arguments(verbs.add_parser("check", help=text, description=text))
    _add_init(verbs.add_parser("init", help="write a complete Mosquitto setup into a new folder"))
    add = verbs.add_parser("add", help="add an account")
    revoke = verbs.add_parser("revoke", help="delete accounts: their connections end at once")
    rotate = verbs.add_parser(
        "rotate", help="new passwords and certificates for accounts: the old passwords end at once"
    )
    bridge = verbs.add_parser("bridge", help="join this site to a core, or again after its account there changed")
    for verb, run in ((add, _add), (revoke, _revoke), (rotate, _rotate), (bridge, _bridge)):
        verb.add_argument("folder", type=Path, metavar="DIR", help="the folder that init wrote")
        verb.set_defaults(run=run)
    bridge.add_argument("where", metavar="FILE|URL", help="as --bridge-to of init")
    _add_bridge_name(bridge)
    add.add_argument("role", choices=[str(role) for role in Role], metavar="ROLE", help=", ".join(Role))
    add.add_argument("name", nargs="?", metavar="NAME", help=f"default: the role's name; {TASKS_HELP}")
    add.add_argument(
        "--read", action="append", default=[], metavar="FILTER", help="outside the site, for sources or an observer"
    )
    add.add_argument("--write", action="append", default=[], metavar="FILTER", help="the same, to be written")
    revoke.add_argument("names", nargs="+", metavar="NAME")
    rotate.add_argument("names", nargs="*", metavar="NAME")
    rotate.add_argument("--broker-certificate", action="store_true", help="a new certificate for the broker itself")


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder on the broker's machine, new or empty")
    of_role = {
        Role.DEVICE: f"a device; {TASKS_HELP} as a front door",
        Role.SENSOR: f"a sensor; {TASKS_HELP}",
        Role.ORCHESTRATOR: "default: one of this name; orchestrator and its standby may share it",
        Role.OPERATOR: "who deploys and drains; default: one of this name",
        Role.OBSERVER: "a dashboard that only looks, or another reader",
        Role.HTTP: "an HTTP door",
        Role.DASHBOARD: "a dashboard that asks, and drains devices (--allow-control)",
        Role.BRIDGE: "a site that will join this one as its core",
    }
    for role, text in of_role.items():
        parser.add_argument(f"--{role}", action="append", default=[], metavar="NAME", help=text)
    parser.add_argument(
        "--host", nargs="+", action="extend", default=[], help="the broker's names and addresses, as clients call it"
    )
    parser.add_argument("--port", dest="tls_port", type=port, default=PORT, help="default %(default)s")
    parser.add_argument("--bind", metavar="ADDRESS", help="listen on this address only; default: all")
    parser.add_argument("--site", type=site_prefix, metavar="PREFIX", help="the site's topic prefix, when it has one")
    text = "join a core: the connection file of this site's account there, or the core's address with --bridge-name"
    parser.add_argument(OPTION, metavar="FILE|URL", help=text)
    _add_bridge_name(parser)
    parser.add_argument(
        "--no-client-certificates", action="store_true", help="passwords alone, for sensors without TLS keys"
    )
    parser.add_argument(
        "--run-as", metavar="USER", help="who runs Mosquitto; default: mosquitto if you are root, else you"
    )
    parser.add_argument(
        "--plugin", type=Path, metavar="PATH", help="mosquitto_dynamic_security.so, where it isn't found"
    )
    parser.set_defaults(run=_init)


def _add_bridge_name(parser: argparse.ArgumentParser) -> None:
    text = "this site's name at a core without accounts; a connection file has it"
    parser.add_argument("--bridge-name", metavar="NAME", help=text)


def _serve(arguments: argparse.Namespace) -> int:
    """Serve on 127.0.0.1; only an interrupt ends it."""
    number = arguments.port
    plain = arguments.port_311 if arguments.port_311 is not None else number and number + 1
    if plain > MAX_PORT:
        problem = f"the port after it, for MQTT 3.1.1, would be {plain}"
        raise BadFile(file="--port", problem=problem, fix="name one with --port-311, or another --port")
    with EmbeddedBroker(number, plain) as running:
        print(f"the embedded broker listens at {running.url} (this machine only); Ctrl-C ends it", flush=True)
        print(f"clients of MQTT 3.1.1 reach it at {running.plain_url}", flush=True)
        threading.Event().wait()
    return 0


def _init(arguments: argparse.Namespace) -> int:
    """Write the setup, and print what to do with it."""
    accounts = [_account(role, text) for role in Role for text in getattr(arguments, role, [])]
    for role in (Role.OPERATOR, Role.ORCHESTRATOR):
        if all(account.role is not role for account in accounts):
            accounts.insert(0, Account(role, str(role)))
    bind = arguments.bind
    hosts = arguments.host or [bind if bind and bind not in ANY else socket.gethostname()]
    given = {
        "hosts": hosts,
        "port": arguments.tls_port,
        "bind": bind,
        "site": arguments.site,
        "client_certificates": not arguments.no_client_certificates,
    }
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        field, problem = describe(error.errors()[0])
        raise BadFile(file=f"--{field.split('.')[0].removesuffix('s')}", problem=problem, fix="change it") from error
    user, plugin = arguments.run_as, arguments.plugin
    if plugin is not None and not plugin.is_file():
        raise BadFile(file=str(plugin), problem="isn't there", fix=f"name Mosquitto's {PLUGIN}")
    if arguments.bridge_name and arguments.bridge_to is None:
        raise BadFile(file="--bridge-name", problem="names no core", fix=f"add {OPTION} with the core's address")
    bridge = read_bridge(arguments.bridge_to, arguments.bridge_name) if arguments.bridge_to is not None else None
    setup = site_setup.init(arguments.folder, accounts, settings, user=user, plugin=plugin, bridge=bridge)
    print(f"{setup.folder}: a certificate authority, a Mosquitto configuration, and {len(accounts)} accounts")
    shown = table("account", "role", "tasks", "its folder, to be copied to its box")
    for account in accounts:
        tasks = ", ".join(account.tasks) or ("all" if account.role in WITH_TASKS else "")
        shown.add_row(account.name, account.role, tasks, str(setup.client_folder(account.name)))
    console().print(shown)
    if (setup.folder / "broker").stat().st_uid == 0:
        reason = f"the user {BROKER_USER} isn't there, or can't reach {setup.folder}"
        print(f"Mosquitto will run as root, because {reason}: a folder such as /etc/s2m3 is safer", file=sys.stderr)
    print(f"the broker, on this machine: mosquitto -c {shlex.quote(str(setup.configuration))}")
    print(f"its clients reach it at {setup.url}: s2m3 COMMAND --connection FOLDER/connection.yaml")
    if bridge is not None:
        print(f"its bridge joins the core at {bridge.core.url}, where this site is {site_at_core(bridge.name)}")
    print(_lifetimes(setup))
    return 0


def _bridge(arguments: argparse.Namespace) -> int:
    setup = site_setup.open_setup(arguments.folder)
    bridge = read_bridge(arguments.where, arguments.bridge_name)
    site_setup.join(setup, bridge)
    print(f"a bridge joins the core at {bridge.core.url}, where this site is {site_at_core(bridge.name)}")
    print("Mosquitto reads it at its next start: systemctl restart mosquitto")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    setup = site_setup.open_setup(arguments.folder)
    given = _account(Role(arguments.role), arguments.name or arguments.role)
    account = replace(given, reads=tuple(arguments.read), writes=tuple(arguments.write))
    how = site_setup.add(setup, account)
    print(f"{account.name} ({account.role}) added; {TOLD[how]}")
    print(f"copy {setup.client_folder(account.name)} to its box")
    return 0


def _revoke(arguments: argparse.Namespace) -> int:
    setup = site_setup.open_setup(arguments.folder)
    for name in dict.fromkeys(arguments.names):
        how = site_setup.revoke(setup, name)
        print(f"{name} revoked, and its folder removed; {TOLD[how]}")
        print(f"what was copied to the box of {name} opens nothing any more")
    return 0


def _rotate(arguments: argparse.Namespace) -> int:
    setup = site_setup.open_setup(arguments.folder)
    if not arguments.names and not arguments.broker_certificate:
        raise BadFile(file="rotate", problem="names nothing", fix="name accounts, or write --broker-certificate")
    for name in dict.fromkeys(arguments.names):
        how = site_setup.rotate(setup, name)
        print(f"{name} has new passwords, and the old ones end at once; {TOLD[how]}")
        print(f"copy {setup.client_folder(name)} to its box")
    if arguments.broker_certificate:
        site_setup.rotate_broker(setup)
        print("the broker has a new certificate: send SIGHUP to Mosquitto (systemctl reload mosquitto), or restart it")
    print(_lifetimes(setup))
    return 0


def _account(role: Role, text: str) -> Account:
    """The account of ``NAME`` or ``NAME=TASK,TASK``."""
    name, sign, tasks = text.partition("=")
    return Account(role, name, tuple(dict.fromkeys(tasks.split(","))) if sign else ())


def _lifetimes(setup: Setup) -> str:
    """How long the certificates last."""
    authority, broker = (ends_of((setup.folder / name).read_bytes()) for name in ("ca.crt", "broker/broker.crt"))
    clients = f"; those of new clients last {CERTIFICATE_DAYS} days" if setup.settings.client_certificates else ""
    ends = f"the authority's ends on {day(authority)}, the broker's on {day(broker)}{clients}"
    return f"certificates: {ends}; `s2m3 status` warns 30 days before"
