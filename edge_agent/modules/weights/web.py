"""One file of a web server: fetched with its SHA-256 checked, and continued where it was cut off.

Owns HTTP: which answers are taken, how often a cut is tried again, the token, TLS and the limit of the rate. Knows no
module, and no cache. It needs the standard library alone, so an agent without torch fetches, too.

Invariants:
- A file gets its name only when its bytes have the SHA-256 that they must have. Bytes that have another are removed.
- No redirect leads to another host, port or scheme, or to a URL that the operator's file doesn't allow.
- A token goes only to URLs that begin as its line in the agent's file says, and stands in no error and no log.
- No answer is decompressed. More bytes than were announced are never written.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from broker.directories import in_home
from broker.protocol.errors import BadFile, ModuleRefused, first_line
from broker.protocol.specs import URL_PATTERN
from broker.transport.connection import read_password
from edge_agent.modules.weights.allowed import allowed, begins_with
from edge_agent.modules.weights.download_settings import Downloads
from edge_agent.modules.weights.downloads import CHUNK_BYTES, ROOM_EVERY_BYTES, check_disk
from edge_agent.modules.weights.progress import Progress

SILENT_S = 8.0  # for one packet, and for a connection
ANSWER_S = 20.0  # for the headers of an answer
MAX_REDIRECTS = 3
ATTEMPTS = 3  # one after the other without a new byte
PAUSE_S = 0.5  # before the second attempt; before each further one twice as long
PACKET_BYTES = 64 * 1024
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class _Cut(Exception):
    """The answer broke off, or none came; the sentence says how."""


@dataclass(frozen=True)
class Wanted:
    """A file that must be had: its URL, its SHA-256, its place, and its size where a list says it."""

    url: str
    sha256: str
    path: Path
    size_bytes: int | None = None


@dataclass
class Web:
    """Fetches files as an agent's settings say."""

    settings: Downloads
    sleep: Callable[[float], object] = time.sleep
    _next_s: float = field(default=0.0, init=False)

    def fetch(self, wanted: Wanted, progress: Progress) -> None:
        """Fetch a file. What came of it before is kept in ``NAME.incomplete``, and not fetched again.

        Raises:
            ModuleRefused: it can't be had, is another file, or the disk or the load has no room for it.
        """
        part = wanted.path.with_name(f"{wanted.path.name}.incomplete")
        progress.begin_file()
        in_vain, before = 0, _size_of(part)
        while True:
            try:
                self._attempt(wanted, part, progress)
            except _Cut as cut:
                kept = _size_of(part)
                in_vain = 0 if kept > before else in_vain + 1
                before = max(kept, before)
                if in_vain >= ATTEMPTS:
                    raise ModuleRefused(
                        f"{wanted.url}: {cut}, {ATTEMPTS} times: {kept} bytes are kept, and the next load goes on "
                        "behind them; check that the server runs, and the network to it"
                    ) from cut
                self._pause(PAUSE_S * 2**in_vain, progress)
            else:
                part.replace(wanted.path)
                return

    def _attempt(self, wanted: Wanted, part: Path, progress: Progress) -> None:
        """One request, and the check of the whole file when all of it has come."""
        kept = _size_of(part)
        if wanted.size_bytes is not None and kept > wanted.size_bytes:
            part.unlink()
            kept = 0
        if kept == 0 or kept != wanted.size_bytes:
            with self._asked(wanted.url, kept) as answer:
                kept = _begins_at(answer, kept, wanted)
                progress.resume_file(kept)
                self._write(answer, wanted, part, kept, progress)
        try:
            with part.open("rb") as file:
                real = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _no_disk(error, part) from error
        if real != wanted.sha256:
            part.unlink(missing_ok=True)
            raise ModuleRefused(
                f"{wanted.url} has the SHA-256 {real}, and must have {wanted.sha256}: nothing of it was kept; store "
                "the right file there, or correct the digest in the task file"
            )

    def _write(
        self, answer: http.client.HTTPResponse, wanted: Wanted, part: Path, kept: int, progress: Progress
    ) -> None:
        most = wanted.size_bytes
        if answer.length is not None:
            announced = kept + answer.length
            if most is not None and announced != most:
                raise ModuleRefused(
                    f"{wanted.url} has {announced} bytes by its server, and {most} by its list: store it again"
                )
            most = announced
        if most is not None:
            progress.expect(most)
            check_disk(part.parent, most - kept, "the download", "downloads: {directory: …} in the agent's file")
        unchecked = 0
        with _written_to(part, kept) as write:
            for packet in _packets(answer):
                kept += len(packet)
                if most is not None and kept > most:
                    part.unlink(missing_ok=True)
                    raise ModuleRefused(
                        f"{wanted.url} has more than the {most} bytes that were announced: store it again"
                    )
                progress.on_fetched(len(packet))
                unchecked += len(packet)
                if unchecked >= ROOM_EVERY_BYTES:
                    check_disk(part.parent, 0, "the download", "downloads: {directory: …} in the agent's file")
                    unchecked = 0
                write(packet)
                self._hold_back(len(packet), progress)
        if most is not None and kept < most:
            raise _Cut(f"its server sent {kept} bytes of {most}")

    @contextmanager
    def _asked(self, url: str, kept: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for a file from byte ``kept`` on, after redirects on the same host."""
        here = url
        for _ in range(MAX_REDIRECTS + 1):
            with self._connected(here, kept) as answer:
                if answer.status not in {301, 302, 303, 307, 308}:
                    _check_status(answer, here)
                    yield answer
                    return
                here = _led_to(here, answer.headers.get("Location") or "")
        raise ModuleRefused(f"{url} leads from one place to the next, and never to a file: correct the server")

    @contextmanager
    def _connected(self, url: str, kept: int) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "s2m3", "Connection": "close"}
        if kept:
            headers["Range"] = f"bytes={kept}-"
        if token := self._token(url):
            headers["Authorization"] = f"Bearer {token}"
        connection, answer = self._connection(url), None
        try:
            connection.connect()
            with _ended_after(ANSWER_S, connection.sock):
                connection.request("GET", urlsplit(url).path, headers=headers)
                answer = connection.getresponse()
            yield answer
        except ssl.SSLCertVerificationError as error:
            raise ModuleRefused(
                f"{url}: its certificate isn't trusted ({error.verify_message}): name the authority's file, downloads: "
                "{ca: FILE} in the agent's file"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(f"no whole answer ({first_line(error) or type(error).__name__})") from error
        finally:
            if answer is not None:
                answer.close()
            connection.close()

    def _connection(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        try:
            if parts.scheme == "http":
                return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=SILENT_S)
            context = ssl.create_default_context(cafile=self.settings.ca)
            return http.client.HTTPSConnection(str(parts.hostname), parts.port, timeout=SILENT_S, context=context)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ModuleRefused(f"{url} can't be asked ({first_line(error)}): correct it, or downloads.ca") from error

    def _token(self, url: str) -> str | None:
        """The token for this URL: that of the longest line of the agent's file which it begins with."""
        lines = [each for each in self.settings.tokens if begins_with(url, each)]
        if not lines:
            return None
        try:
            return read_password(in_home(self.settings.tokens[max(lines, key=len)]), "token")
        except BadFile as error:
            raise ModuleRefused(f"downloads.tokens in the agent's file: {error}") from error

    def _hold_back(self, size_bytes: int, progress: Progress) -> None:
        """Wait as long as these bytes take at the highest rate that the operator wants."""
        if self.settings.bytes_per_s is None:
            return
        now_s = time.monotonic()
        self._next_s = max(self._next_s, now_s) + size_bytes / self.settings.bytes_per_s
        self._pause(self._next_s - now_s, progress)

    def _pause(self, pause_s: float, progress: Progress) -> None:
        if progress.stopped:
            raise ModuleRefused(progress.stopped)
        self.sleep(pause_s)


def _begins_at(answer: http.client.HTTPResponse, kept: int, wanted: Wanted) -> int:
    """The byte at which an answer begins; not every server knows ranges."""
    if answer.status == HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range") or "")
        if found is None or int(found[1]) != kept:
            raise ModuleRefused(f"{wanted.url}: its server answered with another part than was asked for: correct it")
        return kept
    return 0


def _check_status(answer: http.client.HTTPResponse, url: str) -> None:
    status = answer.status
    if status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        encoding = (answer.headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise ModuleRefused(f"{url} comes compressed ({encoding[:40]}), which isn't read: correct the server")
        return
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise ModuleRefused(
            f"{url}: its server answers {status}, it wants another token or none came: name a file with the token, "
            f"downloads: {{tokens: {{{url.rpartition('/')[0]}/: FILE}}}} in the agent's file"
        )
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        raise ModuleRefused(f"{url}: its server has no such file ({status}): store it there, or correct the URL")
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _Cut(f"its server answers {status}")
    raise ModuleRefused(f"{url}: its server answers {status}, and a file was asked for: correct the server, or the URL")


def _led_to(here: str, location: str) -> str:
    """Where a redirect leads, on the same host."""
    there = urljoin(here, location)
    if not location or not re.fullmatch(URL_PATTERN[1:-1], there):
        raise ModuleRefused(f"{here} leads to {location[:80]!r}, which is not a URL of weights: correct the server")
    if urlsplit(there)[:2] != urlsplit(here)[:2]:
        raise ModuleRefused(
            f"{here} leads to {there}, on another host, port or scheme: write that one into the task file, if it is "
            "right"
        )
    allowed().check_url(there)
    return there


def _packets(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while packet := answer.read1(PACKET_BYTES):
        yield packet


@contextmanager
def _written_to(part: Path, kept: int) -> Iterator[Callable[[bytes], Any]]:
    """Write bytes behind those that are kept. An error of the disk is not one of the network."""
    try:
        file = part.open("r+b" if kept else "wb", buffering=CHUNK_BYTES)
        file.seek(kept)
        file.truncate()
    except OSError as error:
        raise _no_disk(error, part) from error

    def write(packet: bytes) -> None:
        try:
            file.write(packet)
        except OSError as error:
            raise _no_disk(error, part) from error

    try:
        yield write
    finally:
        try:
            file.close()
        except OSError as error:
            raise _no_disk(error, part) from error


def _no_disk(error: OSError, path: Path) -> ModuleRefused:
    return ModuleRefused(
        f"{path} can't be written ({error.strerror or first_line(error)}): free some room there, or name another "
        "place, downloads: {directory: DIR} in the agent's file"
    )


def _size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


@contextmanager
def _ended_after(time_s: float, sock: socket.socket) -> Iterator[None]:
    """Raise TimeoutError when what uses the socket takes longer, also when a packet comes now and then."""
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(time_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if is_late.is_set():
        raise TimeoutError("its headers took too long")
