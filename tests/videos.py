"""Videos and cameras for tests: generated frames as files, and a web server that acts as a camera."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

USER, SECRET = "admin", "S3cret"
WIDTH, HEIGHT = 320, 240
COLOURS = ((90, 90, 90), (220, 30, 30), (30, 200, 60), (240, 240, 240))


def scene(colour: tuple[int, int, int]) -> np.ndarray:
    """A grey picture with a box of a colour."""
    found = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    found[60:180, 80:240] = colour
    return found


def jpeg(colour: tuple[int, int, int]) -> bytes:
    """That picture as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(scene(colour)).save(file, "JPEG")
    return file.getvalue()


def noise() -> bytes:
    """A JPEG file of many bytes."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_video(
    path: Path, colours: Sequence[tuple[int, int, int]] = COLOURS, *, each: int = 10, codec: str = "mpeg4"
) -> Path:
    """A video of ten frames a second, in which each colour stays for ``each`` frames."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream(codec, rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(scene(colour), format="rgb24")
            for _ in range(each):
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Camera:
    """A web server with the paths of a camera: /stream (MJPEG), /picture, /snapshot.jpg (large), /endless.jpg (which
    says no length), /video, /locked, /text.

    ``colour`` is what it sees. A stream ends after ``frames`` frames, and its connection with it.
    """

    def __init__(self, video: Path) -> None:
        self.video, self.colour, self.frames = video, COLOURS[0], 1_000_000
        self.connections = self.sent = 0
        self.pause_s = 0.01
        camera = self

        class Handler(BaseHTTPRequestHandler):
            """Answers one request."""

            def do_GET(self) -> None:
                camera.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.gone = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str, *, login: str = "") -> str:
        return f"http://{login and login + '@'}127.0.0.1:{self.port}/{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request by its path."""
        self.connections += 1
        path = request.path.partition("?")[0]
        if path == "/stream":
            self._stream(request)
        elif path == "/locked" and not self._knows(request.headers.get("Authorization", "")):
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="camera"')
            request.end_headers()
        elif path in {"/picture", "/locked"}:
            self._send(request, jpeg(self.colour), "image/jpeg")
        elif path == "/snapshot.jpg":
            self._send(request, noise(), "image/jpeg")
        elif path == "/endless.jpg":
            self._send(request, jpeg(self.colour), "image/jpeg", has_length=False)
        elif path == "/video":
            self._send(request, self.video.read_bytes(), "video/mp4")
        elif path == "/text":
            self._send(request, b"<html>the page of a camera</html>", "text/html")
        else:
            request.send_error(404)

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            for _ in range(self.frames):
                data = jpeg(self.colour)
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                request.wfile.write(head.encode() + data + b"\r\n")
                self.sent += 1
                if self.gone.wait(self.pause_s):
                    return
        except OSError:  # the reader has left
            return

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, data: bytes, content_type: str, *, has_length: bool = True) -> None:
        request.send_response(200)
        request.send_header("Content-Type", content_type)
        if has_length:
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    @staticmethod
    def _knows(header: str) -> bool:
        return header == "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()


@contextmanager
def a_camera(folder: Path) -> Iterator[Camera]:
    """A camera that runs."""
    camera = Camera(write_video(folder / "video.mp4"))
    try:
        yield camera
    finally:
        camera.close()
