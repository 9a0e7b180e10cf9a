"""Mosquitto for one machine: its configuration, and running it as a child process.

Owns the settings and the process. For a site with several machines an operator runs Mosquitto as a service instead.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from broker.protocol.errors import BadFile, TransportError
from broker.servers.ports import HOST, free_port, listens

SBIN = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # often not in a user's PATH
START_S = 10.0
STOP_S = 5.0
POLL_S = 0.02
GIVEN_BACK_BYTES = 128 * 1024  # larger blocks go back to the system; glibc alone keeps them after a few large messages

# The settings of deploy/mosquitto/development.conf, where the reason of each is explained; a test holds them equal.
CONFIGURATION = """\
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_packet_size 16842752
max_inflight_messages 20
max_queued_messages 10000
max_queued_bytes 268435456
persistence false
log_dest stderr
log_type error
log_type warning
log_type notice
"""


def find_mosquitto() -> str | None:
    """The path of the program, also outside PATH."""
    return shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN)))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait until the block ends: inside ``Popen`` it would leave a process that nobody knows."""
    if threading.current_thread() is not threading.main_thread():  # it is never interrupted
        yield
        return
    came = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came.is_set():
            signal.raise_signal(signal.SIGINT)


class MosquittoBroker:
    """A Mosquitto as a child process, as a context manager. Port 0 on 127.0.0.1 takes a free one.

    ``settings`` are further lines of its configuration.
    """

    def __init__(self, port: int = 0, settings: Sequence[str] = ()) -> None:
        self.port = port or free_port()  # the same after a restart
        self.url = f"mqtt://{HOST}:{self.port}"
        # Without `user`, a Mosquitto that root starts becomes another user, who can't read its configuration's folder.
        self._configuration = "\n".join(
            (CONFIGURATION.format(port=self.port), f"user {getpass.getuser()}", *settings, "")
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: tempfile.TemporaryDirectory[str] | None = None

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
        if listens(self.port):
            raise TransportError(f"port {self.port} is taken: end what listens there, or name another port")
        self._directory = tempfile.TemporaryDirectory(prefix="s2m3-mosquitto-")
        config, output = (Path(self._directory.name) / name for name in ("mosquitto.conf", "output"))
        config.write_text(self._configuration, encoding="utf-8")
        try:
            with output.open("wb") as stream, _uninterrupted():
                self._process = subprocess.Popen(
                    [program, "-c", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # a Ctrl-C in the terminal must not end it
                    env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK_BYTES)},
                )
            self._await_listener(self._process, output)
        except BaseException:  # a caller whose block did not begin stops nothing
            self.stop()
            raise

    def _await_listener(self, process: subprocess.Popen[bytes], output: Path) -> None:
        until_s = time.monotonic() + START_S
        while not listens(self.port):
            if process.poll() is not None or time.monotonic() > until_s:
                said = output.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
                raise TransportError(f"mosquitto did not start on port {self.port}: {said}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Terminate it, or kill it when it doesn't end in time. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """Kill it; ``start`` starts it again on the same port."""
        if self._process is not None:
            self._process.kill()  # does nothing to a process that ended
            self._process.wait()
            self._process = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
