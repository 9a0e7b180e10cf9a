"""Mosquitto for one machine: its configuration, and running it as a child process.

Owns the development configuration (``deploy/mosquitto/development.conf`` is this text for port 1883; a test holds them
equal) and the process. For a site with several machines an operator runs Mosquitto as a service instead.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from broker.protocol.errors import BadFile, TransportError
from broker.servers.ports import HOST, free_port, listens

SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # often not in a user's PATH
START_S = 10.0
STOP_S = 5.0
POLL_S = 0.02
GIVEN_BACK_BYTES = (
    128 * 1024
)  # larger blocks go back to the system; by default glibc keeps them after a few large messages

CONFIGURATION = """\
# Mosquitto (2.0 or newer) for development and tests on one machine:
#     mosquitto -c deploy/mosquitto/development.conf
# Nothing outside this machine can connect. For a site, add users, access rules and TLS.

# This machine only: with `allow_anonymous` no other machine may connect.
listener {port} 127.0.0.1
allow_anonymous true

# Small packets leave at once. Without this a message of 100 kB waits 40 ms for the acknowledgement of its header.
set_tcp_nodelay true

# Payloads have at most 16 MiB (MAX_MESSAGE_BYTES in broker/protocol/codec.py), topic and properties 64 KiB. The default
# is 2,000,000 bytes in Mosquitto 2.1, and no limit in 2.0. Clients read it at connect and refuse larger messages.
max_packet_size 16842752

# Messages without an acknowledgement per client, in each direction; clients read it at connect. 20 fill a fast link.
max_inflight_messages 20

# Beyond these limits the broker DROPS messages for a slow client, though it acknowledged them to their publisher. The
# limits bound the broker's memory; deadlines and retries make delivery sure end to end.
max_queued_messages 1000
max_queued_bytes 134217728

# The broker loses retained messages when it ends, so every development run starts clean. At a site it keeps them: the
# deployed tasks outlive a restart. Then it should write them more often than every half hour. (Not with
# `autosave_on_changes`: then it writes at each request.)
#     persistence true
#     autosave_interval 5
#     persistence_location /var/lib/mosquitto/
persistence false

# Errors, and connecting and disconnecting clients, on standard error.
log_dest stderr
log_type error
log_type warning
log_type notice
"""


def configuration(port: int = 1883) -> str:
    """The text of a ``mosquitto.conf`` that listens on this port of the loopback interface."""
    return CONFIGURATION.format(port=port)


def find_mosquitto() -> str | None:
    """The path of the program, also outside PATH."""
    return shutil.which("mosquitto") or next((hit for d in SBIN if (hit := shutil.which("mosquitto", path=d))), None)


class MosquittoBroker:
    """A Mosquitto as a child process, as a context manager.

    Args:
        port: its port on 127.0.0.1; 0 takes a free port.
        settings: further lines of its configuration.
    """

    def __init__(self, port: int = 0, settings: Sequence[str] = ()) -> None:
        self._port = port or free_port()
        # Without `user`, a Mosquitto that root starts becomes another user, who can't read its configuration's folder.
        self._configuration = "\n".join((configuration(self._port), f"user {getpass.getuser()}", *settings, ""))
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> int:
        """Its port; the same after a restart."""
        return self._port

    @property
    def url(self) -> str:
        """The address for clients."""
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
            TransportError: the port is taken, or it ended or didn't listen in time; with its output.
        """
        program = find_mosquitto()
        if program is None:
            raise BadFile(
                file="mosquitto",
                problem="this program is missing",
                fix="install it (`apt-get install mosquitto`), or use the embedded broker",
            )
        if listens(self._port):
            raise TransportError(f"port {self._port} is taken: end what listens there, or name another port")
        self._directory = tempfile.TemporaryDirectory(prefix="s2m3-mosquitto-")
        config, output = (Path(self._directory.name) / name for name in ("mosquitto.conf", "output"))
        config.write_text(self._configuration, encoding="utf-8")
        with output.open("wb") as stream:
            self._process = subprocess.Popen(
                [program, "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,  # a Ctrl-C in the terminal must not end it
                env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK_BYTES)},
            )
        until_s = time.monotonic() + START_S
        while not listens(self._port):
            if self._process.poll() is not None or time.monotonic() > until_s:
                said = output.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
                self.stop()
                raise TransportError(f"mosquitto did not start on port {self._port}: {said}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Terminate it, or kill it when it doesn't end in time. Safe to call twice."""
        self._end(kill=False)

    def kill(self) -> None:
        """Kill it; ``start`` starts it again on the same port."""
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
