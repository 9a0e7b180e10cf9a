"""The thread that reads a source: it opens it, decodes it, and puts the newest frame where others take it.

Owns opening, errors and reconnecting. A live source is read as fast as it sends, so that no old frame waits in a
buffer; a file's frames wait until they are taken, and its end is the end. A camera that goes away is tried again, with
pauses that grow. What can't become right by itself ends the reading: a wrong password, a path that isn't there, a file
without video.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from broker.protocol.codec import MAX_INPUT_BYTES
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.sizes import show_bytes, show_count
from s2m3.camera.backoff import Backoff
from s2m3.camera.folder import SUFFIXES, Folder
from s2m3.camera.newest import Newest
from s2m3.camera.source import Source

OPEN_S, READ_S = 10.0, 10.0  # without a byte, before a connection counts as lost
LOOK_S = 0.5  # between two looks into a folder
MAX_DAMAGED = 100  # packets in a row that can't be decoded
PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto,udp,rtp,rtsp,rtsps,rtmp,rtmps,srt,srtp"  # a playlist opens no file
_ENDED = "the stream ended"
_OPTIONS = {
    "analyzeduration": "1000000",
    "rtsp_transport": "tcp",
    "protocol_whitelist": PROTOCOLS,
}


class SourceFailed(S2M3Error):
    """A source can't be read, or ended early."""


class Reader:
    """Reads a source on a thread of its own, from ``start`` on.

    Args:
        source: where frames come from.
        every_s: seconds between two frames; of a file its own time counts.
        say: takes a sentence for a person, when a camera goes away and when it is back.
    """

    def __init__(self, source: Source, every_s: float, say: Callable[[str], object]) -> None:
        self._source, self._every_s, self._say = source, every_s, say
        self._backoff = Backoff()
        self._stopped = threading.Event()
        self._seen = 0  # frames of all connections
        self._is_away = False
        self._is_picture = False  # an address gave a picture, no stream; it may end without a word of its length
        self.is_live = source.kind != "file"
        self.is_watching = False  # a folder: from now on, new files count
        self.failure: Exception | None = None
        self.frames: Newest[Any] = Newest()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)

    def start(self) -> None:
        """Begin to read.

        Raises:
            BadFile: PyAV is not installed.
        """
        _av()
        self._thread.start()

    def close(self) -> None:
        """Stop; a thread that waits for the network ends a little later."""
        self._stopped.set()
        self.frames.close()
        self._thread.join(1.0)

    def _run(self) -> None:
        try:
            if self._source.kind == "folder":
                self._watch()
            else:
                self._read()
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.failure = error
        finally:
            self.frames.close()

    def _read(self) -> None:
        while not self._stopped.is_set():
            before, problem = self._seen, _ENDED
            try:
                self._read_once()
                if not self.is_live:
                    if not (self._seen or self._stopped.is_set()):  # such as an animation that FFmpeg doesn't know
                        fix = "name a video, a picture, or a camera"
                        raise BadFile(file=self._source.shown, problem="has no frame that can be read", fix=fix)
                    return
            except _av().FFmpegError as error:
                problem = self._problem(error)
            if self._seen > before:
                self._backoff.reset()
            if self._seen == before + 1 and (problem == _ENDED or self._is_picture):  # one picture each time
                self._stopped.wait(max(self._every_s, LOOK_S / 5))
                continue
            if self._stopped.is_set():
                return
            pause_s = self._backoff.next_s()
            self._say(f"{self._source.shown}: {problem}; tries again in {pause_s:g} s")
            self._is_away = True
            self._stopped.wait(pause_s)

    def _read_once(self) -> None:
        """Read until the stream ends."""
        from s2m3.camera.pictures import VideoFrame  # noqa: PLC0415 - Pillow, only where pictures are made

        with _opened(self._source) as container:
            if not container.streams.video:
                raise BadFile(file=self._source.shown, problem="has no video", fix="name a video or a camera")
            if self._source.place.startswith("http") and container.duration is not None:
                self.is_live = False  # a video file, at an address
            self._is_picture = container.format.name.endswith("_pipe")
            next_s = 0.0
            for frame in _decoded(container, self._stopped):
                self._seen += 1
                if self._is_away:
                    self._is_away = False
                    self._say(f"{self._source.shown}: is back")
                if self.is_live:
                    self.frames.put(VideoFrame(frame, time.time()))
                elif frame.time is None or frame.time >= next_s:
                    next_s = (frame.time or 0.0) + self._every_s
                    self.frames.put_when_free(VideoFrame(frame, time.time()))

    def _problem(self, error: Exception) -> str:
        """The problem in words for a person.

        Raises:
            BadFile: trying again is of no use.
            SourceFailed: a file ended early.
        """
        problem, fix = _sentence(error)
        if fix and not self._seen:
            raise BadFile(file=self._source.shown, problem=problem, fix=fix) from None
        if not self.is_live:
            raise SourceFailed(f"{self._source.shown}: {problem} after {show_count(self._seen, 'frame')}") from None
        return problem

    def _watch(self) -> None:
        from s2m3.camera.pictures import PictureFile  # noqa: PLC0415 - Pillow, only where pictures are made

        folder = Folder(Path(self._source.place))
        self.is_watching = True
        while not self._stopped.wait(LOOK_S):
            for path in folder.new():
                try:
                    if path.stat().st_size > MAX_INPUT_BYTES:
                        self._say(f"{path}: has more than {show_bytes(MAX_INPUT_BYTES)} and is not sent")
                        continue
                    self.frames.put(PictureFile(path.read_bytes(), path.stat().st_mtime))
                except (OSError, ValueError) as error:
                    kind = getattr(error, "strerror", None) or "is not a picture that can be read"
                    self._say(f"{path}: {kind}; it is not sent")


def _av() -> Any:  # noqa: ANN401 - a Python module
    try:
        import av  # noqa: PLC0415 - an extra, and slow
        import PIL  # noqa: F401, PLC0415 - the same
    except ImportError as error:
        raise BadFile(
            file="camera",
            problem=f"needs the Python package {error.name}, which is not installed",
            fix="pip install 's2m3[camera]'",
        ) from error
    av.logging.set_level(None)  # FFmpeg's own lines have whole addresses
    return av


def _opened(source: Source) -> Any:  # noqa: ANN401 - av's container
    av = _av()
    if source.kind == "device":
        return av.open(source.place, format="v4l2", timeout=(OPEN_S, READ_S))
    options, place = _OPTIONS if source.kind == "stream" else {"protocol_whitelist": "file"}, source.place
    if source.kind == "stream" and place.lower().endswith(SUFFIXES):
        place += "#"  # not sent; FFmpeg takes an address that ends so for a series of files on a disk
    return av.open(place, options=options, timeout=(OPEN_S, READ_S))


def _decoded(container: Any, stopped: threading.Event) -> Iterator[Any]:  # noqa: ANN401 - the same
    """The frames of a container's first video; packets that can't be decoded are left out."""
    damaged = 0
    for packet in container.demux(container.streams.video[0]):
        try:
            frames = packet.decode()
        except _av().error.InvalidDataError:
            damaged += 1
            if damaged > MAX_DAMAGED:
                raise
            continue
        for frame in frames:
            damaged = 0
            if stopped.is_set():
                return
            yield frame


def _sentence(error: Any) -> tuple[str, str]:  # noqa: ANN401 - av's errors
    """The problem, without any address, and what to do where trying again is of no use."""
    kinds = _av().error
    known: tuple[tuple[str, str, str], ...] = (
        (
            "HTTPUnauthorizedError",
            "the camera refuses the user or the password (401)",
            "write USER:PASSWORD@ in front of the host",
        ),
        ("HTTPForbiddenError", "the camera forbids this address to the user (403)", "correct the user or the path"),
        ("HTTPNotFoundError", "the camera has no such path (404)", "correct the path behind the host"),
        ("InvalidDataError", "is not a video or picture that can be read", "name a video, a picture, or a camera"),
        ("ProtocolNotFoundError", "this build of FFmpeg doesn't know such addresses", "use rtsp or http"),
        ("FileNotFoundError", "No such file or directory", "name a file that is there"),
        ("PermissionError", "Permission denied", "allow this user to read it"),
    )
    for name, problem, fix in known:
        if isinstance(error, getattr(kinds, name)):
            return problem, fix
    if getattr(error, "errno", None) == errno.EIO:
        return "the connection was lost", ""
    if isinstance(error, kinds.ExitError):
        return f"sent nothing for {READ_S:g} s", ""
    return str(getattr(error, "strerror", "") or type(error).__name__), ""
