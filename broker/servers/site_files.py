"""The files of a site's setup: its settings, Mosquitto's configuration, certificates, and a client's folder.

Owns their contents and their modes: keys and passwords are readable by their owner only. Doesn't know when they change
(``site_setup``).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from broker.protocol.errors import BadFile
from broker.protocol.specs import Host, SitePrefix
from broker.protocol.values import Spec
from broker.servers import certificates
from broker.servers.certificates import Certificate
from broker.servers.dynamic_security import Login
from broker.transport.connection import Connection

PORT = 8883
PLUGIN = "mosquitto_dynamic_security.so"
PLUGIN_FOLDERS = ("/usr/lib/*-linux-gnu*", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
BROKER_USER = "mosquitto"  # Mosquitto becomes this user when root starts it
ANY = ("0.0.0.0", "::")  # noqa: S104 - addresses that a broker listens on, never a client's

CONFIGURATION = """\
# Mosquitto (2.0 or newer) for one site; `s2m3 broker init` wrote it, and reads it never again: change what you like.
#     mosquitto -c {folder}/broker/mosquitto.conf

# TLS only, 1.2 or newer; a client needs a certificate of this site's authority, and then its user name and password.
# The user name is never taken from the certificate: an account that is deleted is gone, whatever its certificate says.
listener {port}{bind}
cafile {folder}/broker/ca.crt
certfile {folder}/broker/broker.crt
keyfile {folder}/broker/broker.key
tls_version tlsv1.2
require_certificate {certificates}
use_identity_as_username false
allow_anonymous false

# Who may do what: each account's own rules; what no rule allows is forbidden. The plugin writes this file itself:
# change it with `s2m3 broker add`, `revoke` and `rotate`.
plugin {plugin}
plugin_opt_config_file {folder}/broker/dynamic-security.json

# Small packets leave at once. Without this a message of 100 kB waits 40 ms for the acknowledgement of its header.
set_tcp_nodelay true

# Limits. One packet: payloads have at most 16 MiB, topic and properties 64 KiB.
max_packet_size 16842752
# Connections: each agent has two, an orchestrator two, other clients one.
max_connections 1000
# Messages without an acknowledgement per client, in each direction.
max_inflight_messages 20
# What waits for one slow client. Beyond these the broker DROPS messages, though it acknowledged them: they hold a burst
# of 3,000 requests of 80 kB at one agent. Agents log `broker_drops_messages` when the broker has dropped any.
max_queued_messages 10000
max_queued_bytes 268435456
# Retained messages: Mosquitto has no limit of its own for them. Who may retain what is a matter of the accounts' rules,
# and the orchestrator clears retained requests. Don't set `memory_limit`: the plugin's changes of accounts make the
# count of 2.0.11 wrong, and from then on every client is disconnected as `out of memory`.
# The session of a client that stays away is forgotten, a bridged site's, too: it hears of no task that was undeployed
# earlier than this.
persistent_client_expiration 30d
# The connection of a client that is silent ends within 1.5 times this many seconds.
max_keepalive 600

# Retained messages (deployed tasks, drains) outlive a restart. The file is written every 30 seconds, which spares flash
# memory; the processes publish again what the broker forgot. It also holds what waits for slow clients: pictures, too.
persistence true
persistence_location {folder}/broker/data/
autosave_interval 30

# Errors, and connecting and disconnecting clients, on standard error.
log_dest stderr
log_type error
log_type warning
log_type notice
user {user}
"""


class Settings(Spec):
    """The options of ``init``, in ``setup.yaml``."""

    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65_535)] = PORT
    bind: Host | None = None  # the address that the broker listens on; None: all
    site: SitePrefix | None = None
    client_certificates: bool = True


@dataclass(frozen=True)
class Setup:
    """A folder that ``init`` wrote."""

    folder: Path
    settings: Settings

    @property
    def authority(self) -> Certificate:
        """The site's own certificate authority; raises BadFile."""
        try:
            return Certificate((self.folder / "ca.crt").read_bytes(), (self.folder / "ca.key").read_bytes())
        except OSError as error:
            raise BadFile(
                file=str(self.folder), problem=f"the authority can't be read: {error.strerror}", fix="run as its owner"
            ) from error

    @property
    def url(self) -> str:
        """The broker's address for clients."""
        return Connection(host=self.settings.hosts[0], port=self.settings.port, tls=True).url

    @property
    def configuration(self) -> Path:
        """Mosquitto's configuration."""
        return self.folder / "broker" / "mosquitto.conf"

    @property
    def plugin_file(self) -> Path:
        """The plugin's file."""
        return self.folder / "broker" / "dynamic-security.json"

    def client_folder(self, name: str) -> Path:
        """The folder that is copied to a client's box."""
        return self.folder / "clients" / name


def write_client(setup: Setup, place: Path, logins: Sequence[Login], now: datetime, *, site: str | None) -> None:
    """Write a client's folder: its connection, and the files that this names. The first login is the main one."""
    main = logins[0]
    keys: dict[str, str] = {"broker": setup.url, "ca": "ca.crt"}
    write_file(place / "ca.crt", setup.authority.certificate)
    until = f"the site's authority until {certificates.day(setup.authority.ends)}"
    if setup.settings.client_certificates:
        own = certificates.issue(setup.authority, main.user, now)
        write_file(place / "client.crt", own.certificate)
        write_file(place / "client.key", own.key)
        keys |= {"cert": "client.crt", "key": "client.key"}
        until += f", this client's until {certificates.day(own.ends)}"
    for login, which in zip(logins, ("", "data_"), strict=False):
        file = f"{which.replace('_', '-')}password"
        write_file(place / file, login.password.encode())
        keys |= {f"{which}user": login.user, f"{which}password_file": file}
    if main.client_id is not None and len(logins) == 1:  # an agent's client ids follow from its own id
        keys["client_id"] = main.client_id
    if site:
        keys["site"] = site
    head = f"# How {main.user} reaches the broker. Certificates: {until}; `s2m3 status` warns 30 days before.\n"
    write_file(place / "connection.yaml", (head + yaml.safe_dump(keys, sort_keys=False)).encode())


def write_brokers_certificate(setup: Setup, now: datetime) -> None:
    """Write a new certificate for the broker, over the one that is there."""
    settings = setup.settings
    bind = (settings.bind,) if settings.bind and settings.bind not in ANY else ()
    own = certificates.issue(setup.authority, settings.hosts[0], now, hosts=(*settings.hosts, *bind))
    replace_file(setup.folder / "broker" / "broker.key", own.key)
    replace_file(setup.folder / "broker" / "broker.crt", own.certificate)


def configuration(folder: Path, settings: Settings, *, user: str, plugin: Path) -> str:
    """Mosquitto's configuration for a setup in this folder."""
    return CONFIGURATION.format(
        folder=folder,
        port=settings.port,
        bind=f" {settings.bind}" if settings.bind else "",
        certificates=str(settings.client_certificates).lower(),
        plugin=plugin,
        user=user,
    )


def write_file(path: Path, content: bytes, owner: os.stat_result | None = None) -> None:
    """Write a new file that only its owner can read. No link is followed: others may write to its folder."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        if owner is not None:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(content)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file at once, or write a new one; the owner stays."""
    building = path.with_name(f".{path.name}.new")
    building.unlink(missing_ok=True)
    write_file(building, content, path.lstat() if path.exists() and os.geteuid() == 0 else None)
    building.replace(path)


def find_plugin() -> Path:
    """Mosquitto's dynamic security plugin; raises BadFile if this machine lacks it."""
    found = (path for place in PLUGIN_FOLDERS for path in sorted(Path("/").glob(f"{place.strip('/')}/{PLUGIN}")))
    if (plugin := next(found, None)) is None:
        fix = "install Mosquitto 2.0 or newer (`apt-get install mosquitto`), or say where it is with --plugin"
        raise BadFile(file=PLUGIN, problem="Mosquitto's dynamic security plugin isn't on this machine", fix=fix)
    return plugin


def default_user(folder: Path) -> str:
    """The user that runs Mosquitto: this one; where this is root, ``BROKER_USER`` if it can reach the folder."""
    if os.geteuid() == 0 and not closed_above(folder, BROKER_USER):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(BROKER_USER).pw_name
    return getpass.getuser()


def is_user(name: str) -> bool:
    """Whether this machine has a user of this name."""
    with contextlib.suppress(KeyError, ValueError):
        return bool(pwd.getpwnam(name))
    return False


def closed_above(folder: Path, user: str) -> Path | None:
    """A folder above this one that the user can't enter; None if it can reach it."""
    if user == getpass.getuser():
        return None
    closed = (each for each in folder.parents if each.exists() and not each.stat().st_mode & stat.S_IXOTH)
    return next(closed, None)


def give(folder: Path, user: str | int) -> None:
    """Make a folder and its files the broker's; only root can."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, user)
