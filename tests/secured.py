"""A real Mosquitto as ``s2m3 broker init`` sets it up, and plain MQTT clients that try what an account may do.

Owns the process, and the clients, which know nothing of this project's own transport: what is forbidden must be so for
any program. Doesn't know roles.
"""

from __future__ import annotations

import getpass
import json
import queue
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import yaml
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from broker.servers import site_setup
from broker.servers.access import Account
from broker.servers.bridge import Bridge
from broker.servers.mosquitto import find_mosquitto
from broker.servers.ports import HOST, free_port, listens
from broker.servers.site_files import Settings, Setup
from tests.patience import PATIENCE_S, until

CONTROL = "$CONTROL/dynamic-security/v1"
WITNESS = "witness"
NEVER_EXPIRES = 2**32 - 1  # of a session


class SecuredSite:
    """A setup in a folder, and its Mosquitto, as a context manager. ``settings`` are further lines of configuration."""

    def __init__(
        self, folder: Path, accounts: Sequence[Account], *settings: str, bridge: Bridge | None = None, **given: Any
    ) -> None:
        port = free_port()
        values = Settings.model_validate({"hosts": [HOST], "port": port, "bind": HOST} | given)
        self.setup: Setup = site_setup.init(folder, accounts, values, user=getpass.getuser(), bridge=bridge)
        self.port = port
        self.log = folder.parent / f"{folder.name}.log"
        with self.setup.configuration.open("a") as file:
            file.writelines(f"{line}\n" for line in settings)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the broker, and wait until it listens."""
        program = find_mosquitto()
        assert program, "install Mosquitto (apt-get install mosquitto mosquitto-clients)"
        with self.log.open("ab") as output:
            command = [program, "-c", str(self.setup.configuration)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        until(lambda: listens(self.port) or self._process is None or self._process.poll() is not None)
        assert self._process.poll() is None, self.log.read_text()

    def stop(self) -> None:
        """End the broker. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)
            self._process = None

    @property
    def pid(self) -> int:
        """The broker's process id."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def keys(self, name: str) -> dict[str, Any]:
        """An account's connection file."""
        keys: dict[str, Any] = yaml.safe_load((self.folder(name) / "connection.yaml").read_text())
        return keys

    def folder(self, name: str) -> Path:
        """An account's folder; the admin's, too."""
        return self.setup.folder / "admin" if name == "admin" else self.setup.client_folder(name)

    def mosquitto_options(self, name: str) -> list[str]:
        """The options of Mosquitto's own clients for an account with one login."""
        keys, folder = self.keys(name), self.folder(name)
        password = (folder / keys["password_file"]).read_text()
        bound = ["-i", keys["client_id"]] if "client_id" in keys else []
        files = [text for option in ("ca", "cert", "key") for text in (f"--{option}", str(folder / keys[option]))]
        files[0] = "--cafile"
        return ["-V", "5", "-h", HOST, "-p", str(self.port), *files, "-u", keys["user"], "-P", password, *bound]

    def login(self, name: str, *, data: bool = False) -> tuple[str, str]:
        """The user name and the password of an account, or of an agent's second one."""
        keys, which = self.keys(name), "data_" if data else ""
        return keys[f"{which}user"], (self.folder(name) / keys[f"{which}password_file"]).read_text()

    def add_witness(self) -> None:
        """Add an account that may do everything, so that it sees what any other did."""
        everything = ("#", "$SYS/#", "$CONTROL/#", "$share/+/#")
        kinds = ("publishClientSend", "subscribePattern", "publishClientReceive")
        acls = [{"acltype": kind, "topic": topic, "allow": True} for kind in kinds for topic in everything]
        made = [
            {"command": "createRole", "rolename": WITNESS, "acls": acls},
            {"command": "createClient", "username": WITNESS, "password": WITNESS, "roles": [{"rolename": WITNESS}]},
        ]
        with Peer(self, "admin", login=self.login("admin"), client_id="admin") as admin:
            admin.subscribe(f"{CONTROL}/response")
            admin.publish(CONTROL, json.dumps({"commands": made}))
            assert "error" not in admin.next(f"{CONTROL}/response").decode()

    def witness(self) -> Peer:
        """A connection that may do everything."""
        return Peer(self, "admin", login=(WITNESS, WITNESS), client_id=uuid.uuid4().hex)


class Peer:
    """A plain MQTT 5 client with an account's certificate, as a context manager; ``refused`` says why it isn't in."""

    def __init__(
        self,
        site: SecuredSite,
        name: str,
        *,
        login: tuple[str, str] | None = None,
        client_id: str | None = None,
        will: tuple[str, str] | None = None,
        certificate: bool = True,
        keeps_session: bool = False,
    ) -> None:
        folder, keys = site.folder(name), site.keys(name)
        user, password = login or site.login(name)
        bound = client_id if client_id is not None else keys.get("client_id", "")
        self._client = client = paho.Client(
            CallbackAPIVersion.VERSION2, bound, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        if user:
            client.username_pw_set(user, password)
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        if certificate:
            context.load_cert_chain(folder / "client.crt", folder / "client.key")
        client.tls_set_context(context)
        if will is not None:
            client.will_set(*will, qos=1)
        self._properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        self._properties.SessionExpiryInterval = NEVER_EXPIRES if keeps_session else 0
        self.refused: str | None = None
        self.lost = threading.Event()
        self._port = site.port
        self._said: queue.Queue[str] = queue.Queue()
        self._acks: queue.Queue[list[str]] = queue.Queue()
        self._changed = threading.Condition()
        self._messages: list[tuple[str, bytes]] = []
        client.on_connect = lambda *given: self._said.put("" if not given[3].is_failure else str(given[3]))
        client.on_disconnect = self._end
        client.on_subscribe = lambda *given: self._acks.put([str(reason) for reason in given[3]])
        client.on_publish = lambda *given: self._acks.put([str(given[3])])
        client.on_message = self._hear

    def __enter__(self) -> Self:
        try:
            self._client.connect(HOST, self._port, keepalive=30, clean_start=True, properties=self._properties)
            if isinstance(sock := self._client.socket(), ssl.SSLSocket):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._client.loop_start()
                self.refused = self._said.get(timeout=PATIENCE_S) or None
            else:
                self.refused = "the connection ended"
        except OSError as error:  # the TLS handshake
            self.refused = str(error)
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: str | bytes, *, retain: bool = False, qos: int = 1) -> str:
        """Publish; returns the broker's word."""
        self._client.publish(topic, payload, qos, retain)
        return self._acks.get(timeout=PATIENCE_S)[0]

    def keep(self, topic: str, payload: bytes) -> None:
        """Publish a retained message, and don't wait for the broker's word."""
        self._client.publish(topic, payload, 1, retain=True)

    def subscribe(self, filter_: str) -> str:
        """Subscribe; returns the broker's word."""
        self._client.subscribe(filter_, 1)
        return self._acks.get(timeout=PATIENCE_S)[0]

    def break_off(self) -> None:
        """End the connection as a power failure does: the broker publishes the will."""
        sock = self._client.socket()
        self._client.loop_stop()
        assert sock is not None
        sock.close()

    def heard(self, payload: str) -> list[str]:
        """The topics on which this payload arrived."""
        with self._changed:
            return [topic for topic, each in self._messages if each == payload.encode()]

    def topics(self) -> set[str]:
        """All topics on which something arrived."""
        with self._changed:
            return {topic for topic, _ in self._messages}

    def all(self) -> list[tuple[str, bytes]]:
        """Everything that arrived, in order."""
        with self._changed:
            return list(self._messages)

    def wait_for(self, payload: str, *, count: int = 1) -> None:
        """Wait until this payload arrived so often."""
        with self._changed:
            arrived = lambda: sum(each == payload.encode() for _, each in self._messages) >= count  # noqa: E731
            assert self._changed.wait_for(arrived, PATIENCE_S), (payload, self._messages)

    def next(self, topic: str) -> bytes:
        """Wait for the first message of a topic."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(each == topic for each, _ in self._messages), PATIENCE_S)
            return next(payload for each, payload in self._messages if each == topic)

    def _end(self, _client: object, _userdata: object, _flags: object, reason: object, _properties: object) -> None:
        self._said.put(str(reason))  # if nothing was said before: the broker refuses a missing certificate this way
        self.lost.set()

    def _hear(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        with self._changed:
            self._messages.append((message.topic, bytes(message.payload)))
            self._changed.notify_all()
