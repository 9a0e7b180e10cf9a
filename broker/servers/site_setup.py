"""A site's own broker, set up in one folder: Mosquitto's configuration, its accounts, and a folder for each client.

Owns the folder's layout and how it changes: all of it or nothing. Runs on the broker's machine. Doesn't know roles'
rights (``access``), the plugin's format (``dynamic_security``) or the form of certificates (``certificates``).

    setup.yaml               hosts, port, site
    ca.crt  ca.key           the authority; the key leaves this folder never
    admin/                   the connection of the account that changes the others
    broker/                  what Mosquitto reads and writes: mosquitto.conf, its certificate, accounts, data/
    clients/NAME/            what is copied to a client's box: connection.yaml, passwords, certificates

Invariants: keys and passwords are readable by their owner only. A client's folder stands only when its account does, or
is named in the error. The plugin's file is the only list of accounts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yaml

from broker.files import load_spec
from broker.protocol.errors import BadFile, BrokerRefused, NotConnected, TransportError
from broker.protocol.topics import BRIDGE_STATE, IS_DOWN, SITES, prefix_of
from broker.servers import certificates, dynamic_security
from broker.servers.access import Account, Role, require_outside, site_at_core
from broker.servers.bridge import FOLDER, Bridge, folder_of, require_other_broker, write_bridge
from broker.servers.dynamic_security import ADMIN, Command, Document, Login
from broker.servers.site_files import (
    ANY,
    Settings,
    Setup,
    closed_above,
    configuration,
    default_user,
    find_plugin,
    give,
    is_user,
    replace_file,
    write_brokers_certificate,
    write_client,
    write_file,
)
from broker.transport.connection import Connection
from broker.transport.retained import read_retained, write_retained

LOOK_S = 5.0

How = Literal["running", "stopped"]
"""Whether a change was made by the running broker, or in its file, for its next start."""


# --- the four commands ---


def init(
    folder: Path,
    accounts: Sequence[Account],
    settings: Settings,
    *,
    user: str | None = None,
    plugin: Path | None = None,
    bridge: Bridge | None = None,
) -> Setup:
    """Write a complete setup into a new or empty folder; nothing stays of one that fails.

    Args:
        folder: where to.
        accounts: the accounts beside the admin's.
        settings: of the broker.
        user: who runs Mosquitto; by default as ``default_user`` says.
        plugin: Mosquitto's dynamic security plugin; by default it is looked for.
        bridge: to a core, for a site that joins one.

    Raises:
        BadFile: the folder isn't empty, two accounts collide, or something is missing on this machine.
    """
    folder = folder.absolute()
    with _told(folder):
        _require_empty(folder)
    if settings.site is not None and settings.site.split("/")[0] == SITES:
        problem = f"must not begin with {SITES}/: there a core has the sites that are bridged to it"
        raise BadFile(file="--site", problem=problem, fix="use another prefix, or none")
    if bridge is not None:
        require_other_broker(bridge, Setup(folder, settings))
    plugin = plugin or find_plugin()
    if user is not None and not is_user(user):
        problem = "isn't a user of this machine, and Mosquitto is to run as one"
        raise BadFile(file=user, problem=problem, fix="create it (`adduser --system`), or name another with --run-as")
    if user is not None and (above := closed_above(folder, user)):
        problem = f"is not reachable for the user {user}, who runs Mosquitto: {above} is closed to other users"
        raise BadFile(file=str(folder), problem=problem, fix="name a folder such as /etc/s2m3")
    user = user or default_user(folder)
    admin = Login(ADMIN, ADMIN)
    document = dynamic_security.empty_document(admin)
    logins: dict[str, tuple[Login, ...]] = {}
    for account in accounts:
        logins[account.name], commands = _new(document, account, settings)
        dynamic_security.apply(document, commands)
    now = datetime.now(UTC)
    authority = certificates.make_authority(f"S2M3 site {settings.site or settings.hosts[0]}", now)
    with _told(folder), _folder_for(folder, replaces=False) as building:
        setup = Setup(building, settings)
        write_file(
            building / "setup.yaml", yaml.safe_dump(settings.model_dump(mode="json", exclude_none=True)).encode()
        )
        write_file(building / "ca.crt", authority.certificate)
        write_file(building / "ca.key", authority.key)
        for name in ("admin", "broker", "broker/data", "clients", *(f"clients/{name}" for name in logins)):
            (building / name).mkdir(mode=0o700)
        write_file(setup.plugin_file, json.dumps(document, indent=1).encode())
        write_file(setup.configuration, configuration(folder, settings, user=user, plugin=plugin).encode())
        write_file(building / "broker" / "ca.crt", authority.certificate)
        write_brokers_certificate(setup, now)
        write_client(setup, building / "admin", (admin,), now, site=settings.site)
        for account in accounts:
            place, site = setup.client_folder(account.name), account.site(settings.site)
            write_client(setup, place, logins[account.name], now, site=site)
        if bridge is not None:
            _write_bridge(building, bridge, Setup(folder, settings))
        building.chmod(0o755)  # Mosquitto, as another user, must reach its own folder
        give(building / "broker", user)
    return Setup(folder, settings)


def add(setup: Setup, account: Account) -> How:
    """Add an account, and write its folder.

    Raises:
        BadFile: the name is taken, or the folder can't be changed.
        TransportError: the running broker didn't carry out the change; nothing changed.
    """
    with _changing(setup) as document:
        logins, commands = _new(document, account, setup.settings)
        with _folder_for(setup.client_folder(account.name)) as building:
            site = account.site(setup.settings.site)
            write_client(setup, building, logins, datetime.now(UTC), site=site)
            return _change(setup, document, commands)


def revoke(setup: Setup, name: str) -> How:
    """Delete an account: its connections and sessions end at once. Its folder is removed, and what a bridge reported.

    Raises:
        BadFile: there is no such account.
        TransportError: the running broker didn't carry out the change; nothing changed.
    """
    with _changing(setup) as document:
        logins = tuple(Login(user, bound) for user, bound in _logins(document, name).items())
        if dynamic_security.kind_of(document, name) == Role.DEVICE:
            _renew(setup, document, logins)
        how = _change(setup, document, dynamic_security.deletion(name, tuple(login.user for login in logins)))
        shutil.rmtree(setup.client_folder(name), ignore_errors=True)
        if how == "running" and dynamic_security.kind_of(document, name) == Role.BRIDGE:
            _say_of_bridge(setup, name, is_gone=True)
        return how


def rotate(setup: Setup, name: str) -> How:
    """Give an account new passwords and a new certificate; the old passwords end at once, with their connections.

    Raises:
        BadFile: there is no such account.
        TransportError: the running broker didn't carry out the change; nothing changed.
    """
    with _changing(setup) as document:
        logins = tuple(Login(user, bound) for user, bound in _logins(document, name).items())
        with _folder_for(setup.client_folder(name)) as building:
            is_bridge = dynamic_security.kind_of(document, name) == Role.BRIDGE
            site = site_at_core(name) if is_bridge else setup.settings.site
            write_client(setup, building, logins, datetime.now(UTC), site=site)
            how = _renew(setup, document, logins)
            if how == "running" and is_bridge:
                _say_of_bridge(setup, name)
            return how


def rotate_broker(setup: Setup) -> None:
    """Write a new certificate for the broker. Mosquitto reads it when it gets SIGHUP, or at its next start."""
    with _changing(setup):
        write_brokers_certificate(setup, datetime.now(UTC))


def join(setup: Setup, bridge: Bridge) -> None:
    """Give a site a bridge to a core, or a new one; Mosquitto reads it at its next start.

    Raises:
        BadFile: the core is this broker, or the folder can't be changed.
    """
    require_other_broker(bridge, setup)
    with _changing(setup):
        _write_bridge(setup.folder, bridge, setup)


def open_setup(folder: Path) -> Setup:
    """The setup in a folder that ``init`` wrote.

    Raises:
        BadFile: it isn't one.
    """
    folder = folder.absolute()
    if not (folder / "setup.yaml").is_file():
        problem = "is not a site's setup (it has no setup.yaml)"
        raise BadFile(file=str(folder), problem=problem, fix="name the folder that `s2m3 broker init` wrote")
    return Setup(folder, load_spec(folder / "setup.yaml", Settings))


# --- one change ---


def _write_bridge(folder: Path, bridge: Bridge, setup: Setup) -> None:
    """Write the bridge of a setup, whose files are below ``folder`` now, and have Mosquitto's configuration name it."""
    broker, configuration = folder / "broker", folder / "broker" / setup.configuration.name
    with _folder_for(broker / FOLDER) as building:
        write_bridge(building, bridge, setup)
        give(building, broker.stat().st_uid)
    line = f"include_dir {folder_of(setup)}"
    written = configuration.read_text(encoding="utf-8")
    if line not in written.splitlines():
        text = f"{written}\n# The bridge to a core: `s2m3 broker bridge` writes the file there.\n{line}\n"
        replace_file(configuration, text.encode())


@contextlib.contextmanager
def _changing(setup: Setup) -> Iterator[Document]:
    """The plugin's file, while no other command changes it."""
    with _told(setup.folder), (setup.folder / "setup.yaml").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield dynamic_security.read_document(setup.plugin_file)


def _change(setup: Setup, document: Document, commands: Sequence[Command]) -> How:
    """Have the running broker carry out commands, or change its file while it is stopped."""
    admin = _admin(setup).renewed()
    if _is_listening(admin.host, admin.port):
        dynamic_security.send(admin, commands)
        return "running"
    dynamic_security.apply(document, commands)
    replace_file(setup.plugin_file, json.dumps(document, indent=1).encode())
    return "stopped"


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say which file of a setup can't be read or written."""
    try:
        yield
    except OSError as error:
        problem = f"can't be read or written: {error.strerror or error}"
        fix = "run this as root, or as the folder's owner; a new setup may stand in another folder"
        raise BadFile(file=str(error.filename or folder), problem=problem, fix=fix) from error


def _renew(setup: Setup, document: Document, logins: Sequence[Login]) -> How:
    """Change an account's passwords. Its connections end, and the sessions that a device left behind.

    Such a session stays in the share groups of front doors, and each request that the broker picks it for vanishes.
    """
    how = _change(setup, document, dynamic_security.new_passwords(logins))
    if how == "running" and dynamic_security.kind_of(document, logins[0].user) == Role.DEVICE:
        for login in logins:  # a connection with the client id of a session, and a clean start, ends it
            own = replace(_admin(setup), user=login.user, password=login.password, password_file=None)
            with contextlib.suppress(NotConnected, BrokerRefused):
                write_retained(own, {}, client_id=login.client_id)
    return how


def _admin(setup: Setup) -> Connection:
    """The admin's connection, on the broker's own machine."""
    host, admin = setup.settings.bind or ANY[0], setup.folder / "admin"
    own = (admin / "client.crt", admin / "client.key") if setup.settings.client_certificates else (None, None)
    return Connection(
        host="127.0.0.1" if host in ANY else host,
        port=setup.settings.port,
        tls=True,
        ca=admin / "ca.crt",
        cert=own[0],
        key=own[1],
        user=ADMIN,
        password_file=admin / "password",
    )


def _say_of_bridge(setup: Setup, name: str, *, is_gone: bool = False) -> None:
    """Say that a site's bridge is down, for the broker drops the will of a client that it ends; or forget the site.

    A setup of before bridges has no rule for this: then nothing changes.
    """
    admin, place = _admin(setup).renewed(), site_at_core(name)
    with contextlib.suppress(NotConnected, BrokerRefused):
        known = read_retained(admin, f"{place}/#", client_id=ADMIN) if is_gone else {}
        left = dict.fromkeys(known, b"") if is_gone else {BRIDGE_STATE.at(prefix_of(place)): IS_DOWN}
        write_retained(admin, left, client_id=ADMIN)


def _is_listening(host: str, port: int) -> bool:
    """Whether something listens there.

    Raises:
        TransportError: the system can't say.
    """
    try:
        socket.create_connection((host, port), timeout=LOOK_S).close()
    except ConnectionRefusedError:
        return False
    except OSError as error:
        problem = f"can't tell whether the broker at {host}:{port} runs: {error}"
        raise TransportError(f"{problem}; nothing changed") from error
    return True


@contextlib.contextmanager
def _folder_for(place: Path, *, replaces: bool = True) -> Iterator[Path]:
    """A folder that is renamed to ``place`` at the end of the block, and removed if the block fails."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from error
    try:
        yield building
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if replaces:
        shutil.rmtree(place, ignore_errors=True)
    building.rename(place)  # over an empty folder, too


# --- what is checked ---


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "isn't an empty folder"
        fix = "name another one; to change a site's accounts: `s2m3 broker add`, `revoke` and `rotate`"
        raise BadFile(file=str(folder), problem=problem, fix=fix)
    if folder.is_mount():
        fix = f"name a folder inside it: {folder / 'site'}"
        raise BadFile(file=str(folder), problem="is a mount point, which can't be replaced", fix=fix)


def _new(document: Document, account: Account, settings: Settings) -> tuple[tuple[Login, ...], list[Command]]:
    """The logins of a new account, and the commands that create it; raises BadFile if one of its names is taken."""
    prefix = prefix_of(settings.site)
    require_outside((*account.reads, *account.writes), prefix)
    logins = dynamic_security.new_logins(account, settings.site)
    taken = {role["rolename"] for role in document["roles"]} | dynamic_security.logins_of(document).keys()
    for user in (account.name, *(login.user for login in logins)):
        if user in taken:
            problem = f"the user name {user} is taken"
            fix = f"use another name, revoke it first, or write its files again with `s2m3 broker rotate DIR {user}`"
            raise BadFile(file=account.shown, problem=problem, fix=fix)
    return logins, dynamic_security.creation(account, logins, prefix)


def _logins(document: Document, name: str) -> dict[str, str | None]:
    """The user names of a client's account, with their client ids; raises BadFile if there is no such account."""
    logins = dynamic_security.logins_of(document, name) if name != ADMIN else {}
    if not logins:
        known = sorted({role["rolename"] for role in document["roles"]} - {ADMIN})
        fix = f"name one of {', '.join(known)}" if known else "add one first"
        raise BadFile(file=f"account {name!r}", problem="isn't there", fix=fix)
    return logins
