"""An RTSP camera: frames of a real RTSP server, which PyPI has (``pip install aio-rtsp-toolkit av``)."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.protocol.errors import BadFile
from broker.servers.ports import free_port
from s2m3.camera import reader as reader_module
from s2m3.camera.backoff import Backoff
from s2m3.camera.reader import Reader
from s2m3.camera.source import read_source
from tests.patience import PATIENCE_S, until
from tests.videos import SECRET, USER, write_video

pytestmark = pytest.mark.long


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """An RTSP server with the video /door.mp4, six seconds of H.264."""
    pytest.importorskip("aio_rtsp_toolkit", reason="there is no RTSP server: pip install aio-rtsp-toolkit")
    write_video(tmp_path / "door.mp4", each=15, codec="libx264")
    loop, port = asyncio.new_event_loop(), free_port()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    server = importlib.import_module("aio_rtsp_toolkit.server").RtspServer(str(tmp_path), "127.0.0.1", port)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE_S)
    yield f"rtsp://{USER}:{SECRET}@127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(PATIENCE_S)
    loop.call_soon_threadsafe(loop.stop)


def test_a_stream_is_read_and_reached_again_when_it_ends(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "Backoff", lambda: Backoff(0.01, 0.02))
    said: list[str] = []
    reader = Reader(read_source(f"{address}/door.mp4"), 0.0, said.append)
    reader.start()
    for _ in range(5):
        frame = reader.frames.take()
        assert frame is not None
        assert frame.picture.data.startswith(b"\xff\xd8")
    until(lambda: any(line.endswith("is back") for line in said), 2 * PATIENCE_S)
    reader.close()
    assert reader.failure is None
    assert SECRET not in "".join(said)


def test_a_path_that_is_not_there_is_told(address: str) -> None:
    reader = Reader(read_source(f"{address}/nothing.mp4"), 0.0, print)
    reader.start()
    assert reader.frames.take() is None
    assert isinstance(reader.failure, BadFile)
    assert "the camera has no such path (404)" in str(reader.failure)
    assert SECRET not in str(reader.failure)
