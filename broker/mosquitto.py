"""Mosquitto for one machine: its configuration, and running it as a child process.

Owns the development configuration (``deploy/mosquitto/development.conf`` is this text for port 1883; a test holds them
equal) and the process. For a site with several machines an operator runs Mosquitto as a service instead.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

from broker.errors import BadFile, TransportError
from broker.loopback import HOST, free_port, listens

SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where it hides from a user's PATH
START_S = 10.0
STOP_S = 5.0
POLL_S = 0.02

CONFIGURATION = """\
# Mosquitto for one machine: development, tests, the demo. Loopback only, no passwords.
# For anything that others can reach, use TLS, passwords and access rules.

# Nobody but this machine. Mosquitto listens on all interfaces unless told otherwise.
listener {port} 127.0.0.1
allow_anonymous true

# Without it a round trip waits up to 40 ms for a delayed acknowledgement (Nagle's algorithm).
set_tcp_nodelay true

# S2M3 sends messages of at most 16 MiB; the rest is room for topic and properties. A larger packet closes the
# connection, so S2M3 reads this limit at connect and refuses larger messages before they are sent.
max_packet_size 16842752

# Per client: what is sent and not yet acknowledged, and what waits behind it. Beyond, Mosquitto drops silently and
# still acknowledges, so S2M3 retries end to end; the bounds keep a slow reader from filling the memory.
max_inflight_messages 20
max_queued_messages 1000
max_queued_bytes 268435456

# Retained state is published again by its owners after a restart; nothing here relies on the disk.
persistence false

log_dest stderr
log_type error
log_type warning
log_type notice
"""


def configuration(port: int = 1883) -> str:
    """The text of a ``mosquitto.conf`` that listens on this port of the loopback interface."""
    return CONFIGURATION.format(port=port)


def find_mosquitto() -> str | None:
    """The program's path, also where PATH doesn't look."""
    return shutil.which("mosquitto") or next((hit for d in SBIN if (hit := shutil.which("mosquitto", path=d))), None)


class MosquittoBroker:
    """A Mosquitto of our own, for as long as the ``with`` block runs.

    Args:
        port: where it listens on 127.0.0.1; a free port when 0.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mqtt://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """Its process id, for faults.

        Raises:
            TransportError: it isn't running.
        """
        if self._process is None:
            raise TransportError("this Mosquitto isn't running")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens.

        Raises:
            BadFile: there is no Mosquitto on this machine.
            TransportError: it ended or didn't listen in time; with what it said.
        """
        program = find_mosquitto()
        if program is None:
            raise BadFile(
                file="mosquitto",
                problem="this program is missing",
                fix="install it (`apt-get install mosquitto`), or use the embedded broker",
            )
        self._directory = tempfile.TemporaryDirectory(prefix="s2m3-mosquitto-")
        config, output = (Path(self._directory.name) / name for name in ("mosquitto.conf", "output"))
        config.write_text(configuration(self._port), encoding="utf-8")
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                [program, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # a Ctrl-C in the terminal is for whoever started us
            )
        until_s = time.monotonic() + START_S
        while not listens(self._port):
            if self._process.poll() is not None or time.monotonic() > until_s:
                said = output.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
                self.stop()
                raise TransportError(f"mosquitto did not start on port {self._port}: {said}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ask it to end, or kill it when it doesn't. Safe to call twice."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it without warning; ``start`` starts it again on the same port."""
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is not None:
            if not kill:
                process.terminate()
            try:
                process.wait(0 if kill else STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
