"""The bridge of a site's Mosquitto to its core: Mosquitto's own, which carries orders down and reports up.

Owns its configuration, the files that this names, and what can't be a bridge. Doesn't know how the core made the
account (``site_setup``), nor what it allows (``access``).

Invariants:
- Only the topics that the topic table marks cross; never a request, a tensor or an answer.
- Nothing goes round, in any arrangement of bridges: what goes up lands below ``sites/``, from where no bridge takes
  anything up.

Behaviour that was measured (Mosquitto 2.0.11):
- At each connection both brokers send all retained messages of the bridge's topics again. What that misses is the end
  of a retained message. QoS 1 keeps it while the link is away: in the session at the core, and in the queue here. With
  MQTT 5 the bridge states no session expiry, so the core forgets its session at once; with 3.1.1 it doesn't.
- A full queue (``max_queued_messages``) drops what is new, and retained messages that are sent again overtake what is
  queued: so an old state could come last. What is published all the time is carried with QoS 0, which isn't queued.
- Rules of the dynamic security plugin don't bind the local side of a bridge.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.protocol.errors import BadFile
from broker.protocol.topics import (
    ALL_SITES,
    BRIDGE_STATE,
    DEVICE_SUMMARY,
    ORCHESTRATOR_UNANSWERED,
    SITES,
    TOPICS,
    prefix_of,
)
from broker.servers.access import Account, Role, site_at_core
from broker.servers.site_files import Setup, write_file
from broker.transport.connection import Connection, command_line, connection_file, read_connection

OPTION = "--bridge-to"
FOLDER = "bridge"  # in the broker's folder
CONFIGURATION = "bridge.conf"
SYSTEM_AUTHORITIES = "/etc/ssl/certs"
KEEPALIVE_S = 15  # a link that is cut without a word is noticed after 1.5 times this
MOST_PAUSE_S = 10  # between two attempts to reach the core
REPEATED = (DEVICE_SUMMARY, ORCHESTRATOR_UNANSWERED)
"""The states that are published again and again, and never end."""
HEAD = """\
# The bridge to the core at {core}, where this site is `{name}`.
# `s2m3 broker bridge` writes another one; Mosquitto reads it when it starts.
connection {name}
address {core}
remote_clientid {name}
# Not mqttv50: Mosquitto 2.0's bridge asks for no session there, and so would miss what is undeployed during a cut.
bridge_protocol_version mqttv311
try_private true
# The core keeps what it deploys, and this broker keeps what goes up, while the link is away.
cleansession false
keepalive_interval {keepalive_s}
restart_timeout 1 {most_pause_s}
bridge_attempt_unsubscribe false
# Whether the link is up, as a retained message at the core: 1, or 0 as the bridge's will.
notification_topic {notification}
"""


@dataclass(frozen=True)
class Bridge:
    """The way to a core, and the name of this site there."""

    core: Connection
    name: str


def read_bridge(where: str, name: str | None = None) -> Bridge:
    """The bridge to a core.

    Args:
        where: the connection file of this site's account at the core, or the core's address.
        name: of this site at the core; a connection file has it.

    Raises:
        BadFile: it can't be a bridge.
    """
    if is_file := "://" not in where:
        path = Path(where)
        if not where or not path.exists():
            fix = "name the connection file of this site's account at the core, or the core as mqtts://HOST:PORT"
            raise BadFile(file=where or OPTION, problem="No such file" if where else "names no core", fix=fix)
        core = read_connection(connection_file(path / "connection.yaml" if path.is_dir() else path))
        above, sign, found = (core.site or "").rpartition("/")
        if not sign or above != SITES or name not in {None, found}:
            problem = "isn't the connection file of a bridge" + (f" of the name {name}" if name else "")
            fix = f"have one written at the core: `s2m3 broker add DIR {Role.BRIDGE} {name or 'NAME'}`"
            raise BadFile(file=where, problem=problem, fix=fix)
        name = found
    else:
        core = read_connection(command_line(broker=where))
    shown = where if is_file else f"{OPTION} {core.url}"
    if name is None:
        fix = "add --bridge-name NAME, or name the connection file that `s2m3 broker add DIR bridge NAME` wrote there"
        raise BadFile(file=shown, problem="doesn't say what this site is called at the core", fix=fix)
    Account(Role.BRIDGE, name)  # refuses a name that no site can have
    if ":" in core.host:
        raise BadFile(file=shown, problem="Mosquitto's bridge takes no IPv6 address", fix="name the core by its name")
    if core.server_name not in {None, core.host}:
        problem = f"Mosquitto's bridge looks for {core.host} in the core's certificate, not for {core.server_name}"
        raise BadFile(file=shown, problem=problem, fix="use the name in the certificate as the address")
    return Bridge(core, name)


def require_other_broker(bridge: Bridge, setup: Setup) -> None:
    """Check that the core is another broker than the one of this setup.

    Raises:
        BadFile: it is the same, so that the bridge would loop.
    """
    settings, core = setup.settings, bridge.core
    is_here = core.port == settings.port and (core.host in settings.hosts or _is_this_machine(core.host))
    with suppress(OSError):
        is_here = is_here or (core.ca is not None and core.ca.read_bytes() == (setup.folder / "ca.crt").read_bytes())
    if is_here:
        problem = "is this site's own broker, so the bridge would loop"
        fix = "name the core's address, or the connection file that the core's `s2m3 broker add DIR bridge NAME` wrote"
        raise BadFile(file=f"{OPTION} {core.url}", problem=problem, fix=fix)


def write_bridge(place: Path, bridge: Bridge, setup: Setup) -> None:
    """Write the bridge's configuration and its files into a new folder, which Mosquitto will read as ``folder_of``."""
    core, at = bridge.core, folder_of(setup)
    own = prefix_of(site_at_core(bridge.name))
    lines = [
        HEAD.format(
            core=core,
            name=bridge.name,
            keepalive_s=KEEPALIVE_S,
            most_pause_s=MOST_PAUSE_S,
            notification=BRIDGE_STATE.at(own),
        ).rstrip()
    ]
    if core.tls:
        files = {"bridge_cafile": core.ca, "bridge_certfile": core.cert, "bridge_keyfile": core.key or core.cert}
        for key, source in files.items():
            if source is not None:
                lines.append(f"{key} {at / f'{key}.pem'}")
                write_file(place / f"{key}.pem", _read(source))
        lines += [f"bridge_capath {SYSTEM_AUTHORITIES}"] if core.ca is None else []
    lines += [f"remote_username {core.user}"] if core.user else []
    lines += [f"remote_password {core.password}"] if core.password else []
    here = prefix_of(setup.settings.site)
    lines.append("# Orders come down: those for all sites, and those for this one.")
    for topic in (each for each in TOPICS if each.crosses == "down"):
        pattern = _pattern(topic.template)
        lines += [f"topic {pattern} in 1 {here}/ {there}/" for there in (prefix_of(ALL_SITES), own)]
    lines.append("# States, summaries and events go up. Nothing else crosses.")
    for topic in (each for each in TOPICS if each.crosses == "up"):
        lines.append(f"topic {_pattern(topic.template)} out {0 if topic in REPEATED else 1} {here}/ {own}/")
    write_file(place / CONFIGURATION, "".join(f"{line}\n" for line in lines).encode())


def folder_of(setup: Setup) -> Path:
    """Where the broker's folder has the bridge's files."""
    return setup.folder / "broker" / FOLDER


def _pattern(template: str) -> str:
    return "/".join("+" if level.startswith("{") else level for level in template.split("/"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
        raise BadFile(file=str(path), problem=problem, fix="name a file that this user can read") from error


def _is_this_machine(host: str) -> bool:
    """Whether an address of this host is one of this machine's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as trial:
            trial.bind((address[0], 0))
            return True
    return False
