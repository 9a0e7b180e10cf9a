"""Reading real sources: a web server as a camera (MJPEG, single pictures, a video, 401, 404), files and a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from broker.protocol.errors import BadFile
from s2m3.camera import reader as reader_module
from s2m3.camera.backoff import Backoff
from s2m3.camera.reader import Reader, SourceFailed
from s2m3.camera.source import read_source
from tests.patience import until
from tests.videos import COLOURS, SECRET, USER, Camera, a_camera, jpeg, write_video

Start = Callable[..., Reader]


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Camera]:
    with a_camera(tmp_path_factory.mktemp("camera")) as running:
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def start(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setattr(reader_module, "Backoff", lambda: Backoff(0.01, 0.02))
    monkeypatch.setattr(reader_module, "LOOK_S", 0.05)
    started: list[Reader] = []

    def run(source: str, every_s: float = 0.0) -> Reader:
        made = Reader(read_source(source), every_s, said.append)
        started.append(made)
        made.start()
        return made

    yield run
    for each in started:
        each.close()


def middle(data: bytes, folder: Path) -> tuple[int, ...]:
    """The colour in the middle of a picture."""
    path = folder / "seen.jpg"
    path.write_bytes(data)
    with Image.open(path) as image:
        return tuple(np.asarray(image.convert("RGB"))[image.height // 2, image.width // 2].tolist())


def near(found: tuple[int, ...], colour: tuple[int, ...]) -> bool:
    return all(abs(one - other) < 12 for one, other in zip(found, colour, strict=True))


def all_of(reader: Reader) -> list[bytes]:
    found = []
    while (frame := reader.frames.take()) is not None:
        found.append(frame.picture.data)
    return found


@pytest.mark.parametrize(("every_s", "count"), [(0.0, 40), (1.0, 4), (100.0, 1)])
def test_frames_of_a_file_come_by_its_own_time_and_none_is_lost(
    start: Start, tmp_path: Path, every_s: float, count: int
) -> None:
    reader = start(str(write_video(tmp_path / "a.mp4")), every_s)
    found = all_of(reader)
    assert len(found) == count
    assert reader.failure is None
    assert reader.frames.replaced == 0
    if every_s == 1.0:
        assert all(near(middle(each, tmp_path), colour) for each, colour in zip(found, COLOURS, strict=True))


def test_a_video_at_an_address_is_read_as_a_file(camera: Camera, start: Start) -> None:
    reader = start(camera.url("video"), 1.0)
    assert len(all_of(reader)) == len(COLOURS)
    assert reader.failure is None
    assert not reader.is_live


def test_a_picture_is_a_video_of_one_frame(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(COLOURS[1]))
    assert len(all_of(start(str(tmp_path / "a.jpg")))) == 1


def test_what_is_taken_of_a_stream_is_the_newest_frame(camera: Camera, start: Start, tmp_path: Path) -> None:
    camera.colour = COLOURS[0]
    reader = start(camera.url("stream"))
    assert reader.frames.take() is not None
    before = reader.frames.replaced
    until(lambda: reader.frames.replaced > before + 20)  # nobody takes them
    camera.colour = COLOURS[2]
    until(lambda: (taken := reader.frames.take()) and near(middle(taken.picture.data, tmp_path), COLOURS[2]))
    assert reader.is_live


def test_a_camera_that_goes_away_is_reached_again(camera: Camera, start: Start, said: list[str]) -> None:
    camera.frames, before = 5, camera.connections
    try:
        reader = start(camera.url("stream", login=f"{USER}:{SECRET}"))
        until(lambda: camera.connections >= before + 4)
        until(lambda: sum(line.endswith("is back") for line in said) >= 3)
    finally:
        camera.frames = 1_000_000
    assert reader.failure is None
    shown = f"http://127.0.0.1:{camera.port}"
    assert said[:2] == [f"{shown}: the connection was lost; tries again in 0.01 s", f"{shown}: is back"]
    assert set(said[2:]) <= set(said[:2]), "the pauses begin again after a frame, and no line has the password"


@pytest.mark.parametrize("path", ["picture", "snapshot.jpg", "picture?of=door.JPG", "endless.jpg"])
def test_an_address_that_gives_one_picture_is_asked_again_without_a_word(
    camera: Camera, start: Start, said: list[str], path: str
) -> None:
    reader = start(camera.url(path))
    for _ in range(3):
        assert reader.frames.take() is not None
    assert said == []
    assert reader.is_live


def test_a_camera_that_is_not_there_is_tried_with_growing_pauses(start: Start, said: list[str]) -> None:
    start(f"rtsp://{USER}:{SECRET}@127.0.0.1:9/x")
    until(lambda: len(said) >= 3)
    assert [line.rpartition("again in ")[2] for line in said[:3]] == ["0.01 s", "0.02 s", "0.02 s"]
    assert all(line.startswith("rtsp://127.0.0.1:9: Connection refused; tries") for line in said)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("locked", "the camera refuses the user or the password (401); write "),
        ("nothing", "the camera has no such path (404); correct the path"),
        ("text", "is not a video or picture that can be read; name a video"),
    ],
)
def test_what_can_not_become_right_by_itself_ends_with_one_line(
    camera: Camera, start: Start, capfd: pytest.CaptureFixture[str], path: str, says: str
) -> None:
    reader = start(camera.url(path, login=f"{USER}:wrong-{SECRET}"))
    assert all_of(reader) == []
    assert isinstance(reader.failure, BadFile)
    assert str(reader.failure).startswith(f"http://127.0.0.1:{camera.port}: {says}")
    assert SECRET not in str(reader.failure) + "".join(capfd.readouterr())


def test_the_right_password_opens(camera: Camera, start: Start) -> None:
    assert start(camera.url("locked", login=f"{USER}:{SECRET}")).frames.take() is not None


@pytest.mark.parametrize("content", [b"", b"no video\n" * 100])
def test_a_file_that_is_no_video_is_refused(start: Start, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    reader = start(str(tmp_path / "a.mp4"))
    assert all_of(reader) == []
    assert isinstance(reader.failure, BadFile)
    assert "a.mp4: is not a video or picture that can be read; name a video" in str(reader.failure)


def test_a_file_without_a_frame_is_told(start: Start, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])  # this FFmpeg reads no animated WebP
    reader = start(str(tmp_path / "a.webp"))
    assert all_of(reader) == []
    assert "a.webp: has no frame that can be read; name a video" in str(reader.failure)


def test_the_frames_before_the_end_of_a_cut_file_are_read(start: Start, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    reader = start(str(tmp_path / "cut.mp4"))
    assert 10 <= len(all_of(reader)) < 40
    assert reader.failure is None or isinstance(reader.failure, SourceFailed)


def test_pictures_that_appear_in_a_folder_are_frames_as_they_are(start: Start, tmp_path: Path, said: list[str]) -> None:
    folder = tmp_path / "uploads"
    (folder / "today").mkdir(parents=True)
    (folder / "old.jpg").write_bytes(jpeg(COLOURS[0]))
    reader = start(str(folder))
    until(lambda: reader.is_watching)
    (folder / "bad.jpg").write_bytes(b"no picture")
    until(lambda: said)
    sent = jpeg(COLOURS[1])
    (folder / "today" / "new.jpg").write_bytes(sent)
    frame = reader.frames.take()
    assert frame is not None
    assert (frame.picture.data, frame.picture.content_type) == (sent, "image/jpeg")
    assert said == [f"{folder / 'bad.jpg'}: is not a picture that can be read; it is not sent"]


def test_without_pyav_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BadFile) as error:
        Reader(read_source("/dev/null"), 1.0, print).start()
    assert str(error.value) == (
        "camera: needs the Python package av, which is not installed; pip install 's2m3[camera]'"
    )
