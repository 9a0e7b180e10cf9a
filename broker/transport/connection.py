"""How to reach a broker: its address, the TLS files, this client's login, id and site; and where a person writes them.

Owns the format of addresses (``mqtt[s]://[user:password@]host[:port]``), the keys of a connection file, the variables
of the environment, and which of several places counts. Doesn't know sockets. No password ever appears in a
representation or an error.

Places, the first that says something counts: the command line, the file of ``--connection``, the agent's own file, the
environment (``S2M3_BROKER`` and so on), and the default, which is this machine.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import Field, ValidationError

from broker.directories import in_home
from broker.files import bad_field, load_spec
from broker.protocol.errors import BadFile
from broker.protocol.sentences import describe
from broker.protocol.specs import Host, LoginName, SitePrefix
from broker.protocol.values import Spec
from broker.structured_log import structlog

PORT, TLS_PORT = 1883, 8883
FORMS = "write mqtt://host:port, mqtts://host:port or mqtt://user:password@host:port"
MOST_PASSWORD_BYTES = 65_535  # MQTT counts them in 16 bits
_ENVIRONMENT = ("broker", "ca", "cert", "key", "user", "password_file", "site")
VARIABLES = tuple(f"S2M3_{key.upper()}" for key in _ENVIRONMENT)
_TLS_FILES = ("ca", "cert", "key")

_log = structlog.get_logger(__name__)
_warned: set[str] = set()  # what this process has warned of


def _log_warning(sentence: str) -> None:
    _log.warning("insecure_connection", problem=sentence)


@dataclass(frozen=True)
class Connection:
    """How to reach one broker as one client. ``str`` gives ``host:port``, for sentences."""

    host: str = "127.0.0.1"
    port: int = PORT
    tls: bool = False
    ca: Path | None = None  # PEM file of the authorities that sign brokers' certificates; None: the system's
    cert: Path | None = None  # PEM file of this client's certificate
    key: Path | None = None  # of its key; None: it is in the certificate's file
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str | None = None  # where an account is bound to one; None: the program chooses
    site: str | None = None  # the prefix in front of all topics
    server_name: str | None = None  # that the broker's certificate must have, where the address has another name
    password_file: Path | None = None  # read again at each connection, so that a new password needs no restart

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address without the login."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self}"

    @property
    def is_loopback(self) -> bool:
        """Whether the broker is on this machine, by its address."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def renewed(self) -> Connection:
        """The same with the password that its file holds now; with the one that is known if the file can't be read."""
        if self.password_file is None or not self.password_file.is_file():  # a pipe could be read only once
            return self
        try:
            return replace(self, password=read_password(self.password_file))
        except BadFile as error:
            _log.warning("password_not_read_again", reason=str(error))
            return self


class ConnectionKeys(Spec):
    """The keys of every file with a connection. Only agents have a second account, for their second connection."""

    broker: Annotated[str | None, Field(repr=False)] = None  # it may have a password
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: Host | None = None
    user: LoginName | None = None
    password_file: str | None = None
    data_user: LoginName | None = None
    data_password_file: str | None = None
    site: SitePrefix | None = None


class ConnectionFile(ConnectionKeys):
    """The keys of a connection file. An agent's client ids follow from its id, so its own file has no ``client_id``."""

    client_id: LoginName | None = None


@dataclass(frozen=True)
class Place:
    """One place's words about the connection."""

    keys: ConnectionFile
    file: str = ""  # the file's path; empty for the command line and the environment
    names: Mapping[str, str] = field(default_factory=dict)  # key -> what a person calls it there

    def path(self, key: str) -> Path | None:
        """The path under this key; a relative one is relative to the file."""
        text = getattr(self.keys, key)
        return Path(self.file).parent / in_home(text) if text else None

    def bad(self, key: str, problem: str, fix: str) -> BadFile:
        """The error of one of its keys."""
        if self.file:
            return bad_field(self.file, [key], problem=problem, fix=fix)
        return BadFile(file=self.names.get(key, key), problem=problem, fix=fix)


def command_line(**given: str | None) -> Place:
    """The place of a command's options; raises BadFile."""
    return _named(given, {key: f"--{key.replace('_', '-')}" for key in ConnectionFile.model_fields})


def argument(broker: str | None) -> Place:
    """The place of an address that a program gives; raises BadFile."""
    return _named({"broker": broker}, {"broker": "the broker's address"})


def connection_file(path: Path | str) -> Place:
    """The place of a file of ``--connection``; raises BadFile."""
    return Place(load_spec(path, ConnectionFile), str(path))


def environment(variables: Mapping[str, str] = os.environ) -> Place:
    """The place of the environment; an empty variable says nothing. Raises BadFile."""
    names = dict(zip(_ENVIRONMENT, VARIABLES, strict=True))
    return _named({key: variables.get(name) or None for key, name in names.items()}, names)


def read_connection(*places: Place, data: bool = False, warn: Callable[[str], object] = _log_warning) -> Connection:
    """The connection that these places and the environment describe, the first place first.

    With ``data`` it is that of an agent's second account, where there is one. A password of another user counts for
    nothing, nor does a key of another certificate.

    Args:
        places: where a person says it.
        data: whether it is for an agent's data connection.
        warn: called with what is insecure, once in this process.

    Raises:
        BadFile: a value is wrong, or a password file can't be used.
    """
    places = (*places, environment())
    at = next((place for place in places if place.keys.broker), None)
    address = Connection() if at is None else _address_of(at)
    reaching = places if at is None else places[: places.index(at) + 1]  # what is below may be about another broker
    if not address.tls:
        for place in reaching:
            for name in _TLS_FILES:
                if getattr(place.keys, name):
                    problem = f"is for a connection with TLS, and the broker's address is {address.url}"
                    raise place.bad(name, problem, f"write mqtts://{address.host}, with the broker's TLS port")
    ca = next((path for place in places if (path := place.path("ca"))), None) if address.tls else None
    named = (place.keys.server_name for place in reaching)
    cert, key = _certificate(places) if address.tls else (None, None)
    user, password, password_file = _login(places, data=data and any(place.keys.data_user for place in places))
    found = replace(
        address,
        ca=ca,
        cert=cert,
        key=key,
        server_name=next((name for name in named if name), None),
        user=user,
        password=password,
        password_file=password_file,
        client_id=next((place.keys.client_id for place in places if place.keys.client_id), None),
        site=next((place.keys.site for place in places if place.keys.site), None),
    )
    written = Path(at.file) if at is not None and at.file and address.password else None
    for warning in _warnings(found, written):
        if warning not in _warned:
            _warned.add(warning)
            warn(warning)
    return found


def parse_url(url: str) -> Connection:
    """Read a broker's address.

    Raises:
        BadFile: the address is not valid. The sentence shows nothing that can be a part of a password.
    """
    scheme, sign, rest = url.strip().partition("://")
    if not sign or scheme.lower() not in {"mqtt", "mqtts"}:
        shown = f"begins with {scheme}://" if re.fullmatch("[a-z0-9.+-]{1,12}", scheme) and sign else "has no mqtt://"
        raise _bad(shown)
    login, at, place = rest.rpartition("@")
    if any(character in login for character in "#?/"):
        raise _bad("has #, ? or / before the last @", "percent-encode the password: # is %23, ? is %3F, / is %2F")
    place = place.removesuffix("/")
    matched = re.fullmatch(r"(\[[^\[\]@/?#\s]+\]|[^\[\]@/?#\s\\:]+)(?::(.*))?", place)
    if matched is None:
        fix = "put an IPv6 address in brackets: mqtt://[::1]:1883" if place.count(":") > 1 and not at else FORMS
        raise _bad("must have a host, and nothing after its port: no path, ? or #", fix)
    port = matched[2]
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise _bad("must have a number from 1 to 65535 as its port")
    tls = scheme.lower() == "mqtts"
    user, password = _login_of(login)
    host = matched[1]
    return Connection(
        host=host[1:-1] if host.startswith("[") else host.lower(),
        port=int(port) if port else TLS_PORT if tls else PORT,
        tls=tls,
        user=user,
        password=password,
    )


def read_password(path: Path, what: str = "password") -> str:
    """The password, or the token, that a file holds: its only line.

    Raises:
        BadFile: the file can't be read, or holds none.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_PASSWORD_BYTES + 3)
    except OSError as error:
        problem = f"the {what} file can't be read: {error.strerror or error}"
        raise BadFile(file=str(path), problem=problem, fix="name a file that this user can read") from error
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    if not line:
        raise BadFile(file=str(path), problem=f"the {what} file is empty", fix=f"write the {what} into it")
    problem = f"the {what} file must hold one line of UTF-8 text, and no more"
    bad = BadFile(file=str(path), problem=problem, fix=f"write only the {what} into it")
    if len(line) > MOST_PASSWORD_BYTES or any(sign in line for sign in b"\n\r\0"):
        raise bad
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise bad from None


def _named(given: Mapping[str, Any], names: Mapping[str, str]) -> Place:
    """The place of these values, which a person knows by these names."""
    try:
        return Place(ConnectionFile.model_validate(given), names=names)
    except ValidationError as error:
        key, problem = describe(error.errors()[0])
        raise BadFile(file=names.get(key, key), problem=problem, fix="change it") from error


def _warnings(connection: Connection, written: Path | None) -> list[str]:
    """The sentences about what is insecure; ``written`` is a person's file with a password in its address."""
    found = []
    if connection.password and not connection.tls and not connection.is_loopback:
        found.append(f"the password for {connection.url} crosses the network in plain text: use mqtts://")
    for path in (connection.password_file, connection.key or connection.cert, written):
        with suppress(OSError):
            if path is not None and path.is_file() and path.stat().st_mode & 0o007:
                found.append(f"every user of this machine can read {path}: chmod 600 {path}")
    return found


def _address_of(place: Place) -> Connection:
    try:
        return parse_url(place.keys.broker or "")
    except BadFile as error:
        raise place.bad("broker", error.problem, error.fix) from None


def _certificate(places: tuple[Place, ...]) -> tuple[Path | None, Path | None]:
    number = next((number for number, place in enumerate(places) if place.keys.cert), None)
    if number is None:
        for place in places:
            if place.keys.key:
                raise place.bad("key", "is of no use without a certificate", "name the certificate (cert), too")
        return None, None
    return places[number].path("cert"), next((key for each in places[: number + 1] if (key := each.path("key"))), None)


def _login(places: tuple[Place, ...], *, data: bool) -> tuple[str | None, str | None, Path | None]:
    """User, password and the password's file: the first user, and the first password that isn't another user's."""
    logins = [_login_at(place, data=data) for place in places]
    user = next((each for each, _, _ in logins if each), None)
    for place, (own, password, file) in zip(places, logins, strict=True):
        if own not in {None, user} or not (password or file):
            continue
        if user is None:
            raise place.bad("password_file", "is of no use without a user", "name the user, too")
        return user, read_password(file) if file else password, file
    return user, None, None


def _login_at(place: Place, *, data: bool) -> tuple[str | None, str | None, Path | None]:
    """The user, the password and the password file that one place names."""
    if data:
        return place.keys.data_user, None, place.path("data_password_file")
    user, file = place.keys.user, place.path("password_file")
    written = _address_of(place) if place.keys.broker else Connection()
    for key, value in (("user", user), ("password_file", file)):
        if value is not None and written.user is not None:
            raise place.bad(key, "names a login, and the broker's address has one, too", "remove one of them")
    return user or written.user, written.password, file


def _login_of(login: str) -> tuple[str | None, str | None]:
    user, _, password = login.partition(":")
    try:
        decoded = [unquote(part, errors="strict") for part in (user, password)]
    except UnicodeDecodeError:
        raise _bad("has a user or a password that isn't UTF-8 text") from None
    if password and not user:
        raise _bad("has a password without a user")
    if any(ord(sign) < ord(" ") for part in decoded for sign in part):
        raise _bad("has a control character in its user or password")
    if any(len(part.encode()) > MOST_PASSWORD_BYTES for part in decoded):
        raise _bad(f"has a user or a password of more than {MOST_PASSWORD_BYTES} bytes")
    return decoded[0] or None, decoded[1] or None


def _bad(problem: str, fix: str = FORMS) -> BadFile:
    return BadFile(file="broker address", problem=problem, fix=fix)
