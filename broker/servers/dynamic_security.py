"""The accounts of a Mosquitto with the dynamic security plugin: its file, and the commands that change it.

Owns the plugin's format and its commands. A command is applied to the file while the broker is stopped, and sent to the
broker while it runs, which writes the file itself. Doesn't know folders, certificates or roles' meanings.

Invariants, each against a behaviour that was measured (Mosquitto 2.0.11):
- Nothing is allowed by default. Deliveries need a right, too: a session that outlived its account delivers nothing.
- A role is deleted after the clients that have it: the plugin goes on to use the memory of the role's name.
- Deleting an account, or changing its password, ends its connections at once; its will isn't published.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.protocol.errors import BadFile, NotConnected, TransportError
from broker.protocol.topics import SITES
from broker.servers.access import Account, Rights, rights_of
from broker.transport.connect import connect
from broker.transport.connection import Connection
from broker.transport.mailbox import Mailbox
from broker.transport.port import Delivery, Denied, LinkDown, LinkEvent, LinkUp, Outgoing

TOPIC = "$CONTROL/dynamic-security/v1"
ANSWER = f"{TOPIC}/response"
ADMIN = "admin"
"""The account that changes the others."""
SALT_BYTES, HASH_BYTES = 12, 64  # as the plugin of Mosquitto 2.0 demands
ITERATIONS = 101  # the plugin's own number: passwords have 256 random bits, so nothing is gained by more
PASSWORD_BYTES = 32
ANSWER_S = 10.0

_LISTS = (("clients", "username"), ("roles", "rolename"))

Command = dict[str, Any]
Document = dict[str, Any]


@dataclass(frozen=True)
class Login:
    """A user name with its password, and the only client id that it may use; None if it may use any."""

    user: str
    client_id: str | None
    password: str = field(default_factory=lambda: secrets.token_urlsafe(PASSWORD_BYTES), repr=False)


def new_logins(account: Account, site: str | None) -> tuple[Login, ...]:
    """An account's logins with new passwords, the main one first."""
    return tuple(Login(user, bound) for user, bound in account.logins(site).items())


def empty_document(admin: Login) -> Document:
    """The plugin's file with the admin's account alone, which may also end what bridged sites left behind."""
    own = (f"{TOPIC.rpartition('/')[0]}/#", f"{SITES}/#")
    document: Document = {
        "defaultACLAccess": {
            "publishClientSend": False,
            "publishClientReceive": False,
            "subscribe": False,
            "unsubscribe": True,
        },
        "clients": [],
        "groups": [],
        "roles": [],
    }
    rights = Rights(own, own, own)
    apply(document, [_create_role(ADMIN, rights), _create_client(admin, role=ADMIN, kind=ADMIN)])
    return document


def read_document(file: Path) -> Document:
    """The plugin's file.

    Raises:
        BadFile: it is damaged.
        OSError: it can't be read.
    """
    problem = "it has no lists of clients and roles"
    try:
        document = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        document, problem = None, str(error)
    if isinstance(document, dict) and all(_is_list_of_names(document, *each) for each in _LISTS):
        return document
    fix = "restore it from a backup, or set up the site again"
    raise BadFile(file=str(file), problem=f"is not the plugin's file: {problem}", fix=fix)


def creation(account: Account, logins: Sequence[Login], prefix: str) -> list[Command]:
    """The commands that create an account, on a site with this topic prefix."""
    role = _create_role(account.name, rights_of(account, prefix))
    return [role, *(_create_client(login, role=account.name, kind=account.role) for login in logins)]


def deletion(name: str, users: Sequence[str]) -> list[Command]:
    """The commands that delete an account, with all of its user names."""
    clients = [{"command": "deleteClient", "username": user} for user in users]
    return [*clients, {"command": "deleteRole", "rolename": name}]


def new_passwords(logins: Sequence[Login]) -> list[Command]:
    """The commands that change passwords."""
    return [{"command": "setClientPassword", "username": each.user, "password": each.password} for each in logins]


def logins_of(document: Document, name: str | None = None) -> dict[str, str | None]:
    """The user names in the plugin's file, each with its client id; with a name, those of this account."""
    return {
        client["username"]: client.get("clientid")
        for client in document["clients"]
        if name is None or any(role["rolename"] == name for role in client["roles"])
    }


def kind_of(document: Document, user: str) -> str:
    """The name of the role of a user in the plugin's file; empty for a user that another tool made."""
    return next((each.get("textname", "") for each in document["clients"] if each["username"] == user), "")


def apply(document: Document, commands: Sequence[Command]) -> None:
    """Change the plugin's file as the plugin would."""
    for command in commands:
        rest = {key: value for key, value in command.items() if key != "command"}
        clients = document["clients"]
        if command["command"] == "createRole":
            document["roles"].append(rest)
        elif command["command"] == "createClient":
            clients.append({key: value for key, value in rest.items() if key != "password"} | _hashed(rest["password"]))
        elif command["command"] == "deleteClient":
            document["clients"] = [each for each in clients if each["username"] != rest["username"]]
        elif command["command"] == "deleteRole":
            document["roles"] = [each for each in document["roles"] if each["rolename"] != rest["rolename"]]
        elif command["command"] == "setClientPassword":
            next(each for each in clients if each["username"] == rest["username"]).update(_hashed(rest["password"]))
        else:
            raise ValueError(command["command"])


def send(connection: Connection, commands: Sequence[Command], timeout_s: float = ANSWER_S) -> None:
    """Have a running broker carry out commands, as the admin.

    Raises:
        NotConnected: there was no connection, or no answer in time.
        TransportError: the broker refused a command.
    """
    mailbox: Mailbox[LinkEvent] = Mailbox()

    def put(event: LinkEvent) -> None:
        mailbox.put_control(event)

    transport = connect(connection, client_id=ADMIN, inbox=put)
    transport.subscribe(ANSWER)
    transport.start()
    until_s, sent = time.monotonic() + timeout_s, False
    try:
        while (left_s := until_s - time.monotonic()) > 0:
            event = mailbox.get(left_s)
            if isinstance(event, LinkUp):
                transport.publish(Outgoing(TOPIC, json.dumps({"commands": list(commands)}).encode()))
                sent = True
            elif isinstance(event, Denied):
                raise TransportError(f"the broker refused {event.topic}: {event.reason}; nothing changed")
            elif isinstance(event, LinkDown):
                raise _no_answer(connection, event.reason, sent=sent)
            elif isinstance(event, Delivery):
                _check(event.payload)
                return
    finally:
        transport.close()
    raise _no_answer(connection, f"no answer within {timeout_s:g} s", sent=sent)


def _no_answer(connection: Connection, reason: str, *, sent: bool) -> NotConnected:
    undone = "nothing changed; if it takes no more connections, stop it and repeat this, which then changes its file"
    outcome = "the change may have been made: repeat the command" if sent else undone
    return NotConnected(f"the broker at {connection}: {reason}; {outcome}")


def _check(answer: bytes) -> None:
    errors = [each for each in json.loads(answer)["responses"] if "error" in each]
    if errors:
        raise TransportError("; ".join(f"the broker refused {each['command']}: {each['error']}" for each in errors))


def _is_list_of_names(document: Document, key: str, name: str) -> bool:
    listed = document.get(key)
    return isinstance(listed, list) and all(isinstance(each, dict) and name in each for each in listed)


def _create_role(name: str, rights: Rights) -> Command:
    kinds = {
        "publishClientSend": rights.publish,
        "subscribePattern": rights.subscribe,
        "publishClientReceive": rights.receive,
    }
    rules = [
        {"acltype": kind, "topic": topic, "priority": 0, "allow": True}
        for kind, topics in kinds.items()
        for topic in topics
    ]
    return {"command": "createRole", "rolename": name, "acls": rules}


def _create_client(login: Login, *, role: str, kind: str) -> Command:
    command: Command = {
        "command": "createClient",
        "username": login.user,
        "password": login.password,
        "textname": kind,
        "roles": [{"rolename": role, "priority": 0}],
    }
    return command | ({"clientid": login.client_id} if login.client_id else {})


def _hashed(password: str) -> dict[str, Any]:
    salt = secrets.token_bytes(SALT_BYTES)
    derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ITERATIONS, HASH_BYTES)
    encoded = {"password": base64.b64encode(derived).decode(), "salt": base64.b64encode(salt).decode()}
    return {**encoded, "iterations": ITERATIONS}
