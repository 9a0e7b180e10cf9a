"""The broker that pip installs (iotcore: rumqttd in a wheel), as a child process.

Owns its configuration, start and end. It is for the demo, tests and a single trusted machine: it listens on 127.0.0.1
only, has no access rules, no sessions that outlive a connection, and keeps retained messages in memory. The child ends
with its parent, also when the parent is killed.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from broker.protocol.errors import TransportError
from broker.servers.plain_door import PlainDoor
from broker.servers.ports import HOST, free_port
from broker.transport.port import MAX_PACKET_BYTES

if TYPE_CHECKING:
    from iotcore import Broker

_FREE_PORT_ATTEMPTS = 5  # another process may take a free port before the broker does

# Its default payload limit, 20,480 bytes, is too small for tensors.
# It keeps a log per filter, also of messages that were read: by default up to 10 segments of 100 MB each.
_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 2

[v5.1]
name = "v5-1"
listen = "{host}:{port}"
next_connection_delay_ms = 1
    [v5.1.connections]
    connection_timeout_ms = 5000
    max_payload_size = {max_packet_bytes}
    max_inflight_count = 100
    dynamic_filters = true
"""


class EmbeddedBroker:
    """An MQTT 5 broker in a child process, as a context manager, with a second port for clients of MQTT 3.1.1.

    Port 0 on 127.0.0.1 takes a free one.

    Raises:
        TransportError: on ``start``: iotcore isn't installed, a port is taken, or the broker doesn't start.
    """

    def __init__(self, port: int = 0, plain_port: int = 0) -> None:
        self._port = port
        self._plain_port = plain_port
        self._running = contextlib.ExitStack()
        self._broker: Broker | None = None

    @property
    def url(self) -> str:
        """The address for clients; known after ``start``."""
        return f"mqtt://{HOST}:{self._port}"

    @property
    def plain_url(self) -> str:
        """The address for clients of MQTT 3.1.1; known after ``start``."""
        return f"mqtt://{HOST}:{self._plain_port}"

    def start(self) -> Self:
        """Start it and wait until it listens, at a restart on the same ports."""
        attempts = 1 if self._port else _FREE_PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self._port or free_port()
            try:
                self._launch(port)
            except OSError as error:
                self.stop()
                if attempt == attempts:
                    raise TransportError(
                        f"port {port} on {HOST} is taken ({error}): end what listens there, or name another port"
                    ) from error
            else:
                self._port = port
                break
        try:
            door = PlainDoor(self._plain_port, self._port)
        except OSError as error:
            self.stop()
            raise TransportError(
                f"port {self._plain_port} on {HOST}, for MQTT 3.1.1, is taken ({error}): end what listens there, or "
                "name another port"
            ) from error
        self._plain_port = door.port
        self._running.callback(door.close)
        return self

    def stop(self) -> None:
        """End it and remove its files. Safe to call twice and before ``start``."""
        self._running.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _launch(self, port: int) -> None:
        try:
            from iotcore import Broker  # noqa: PLC0415 - an extra, needed for this broker only
        except ImportError as error:
            raise TransportError("the embedded broker is not installed: install the [embedded] extra") from error
        folder = self._running.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-broker-"))
        config = Path(folder) / "rumqttd.toml"
        config.write_text(_CONFIG.format(host=HOST, port=port, max_packet_bytes=MAX_PACKET_BYTES))
        self._broker = Broker(config_path=str(config))
        try:
            self._broker.start()
        except RuntimeError as error:
            raise TransportError(f"the embedded broker did not start: {error}") from error
        self._running.callback(self._broker.stop)
