"""Sources as a person names them, and that no password of an address is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.errors import BadFile
from s2m3.camera.source import read_source

SECRET = "S3cret"  # noqa: S105 - of no camera


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"rtsp://admin:{SECRET}@10.0.0.7:554/stream1", "rtsp://10.0.0.7:554"),
        (f"rtsp://admin:p/{SECRET}@10.0.0.7/x", "rtsp://10.0.0.7"),
        (f"rtsp://admin:p@{SECRET}#?@cam/x", "rtsp://cam"),
        (f"rtsp://10.0.0.7:554/user=admin_password={SECRET}_channel=1_stream=0.sdp", "rtsp://10.0.0.7:554"),
        (f"http://cam/videostream.cgi?user=admin&pwd={SECRET}", "http://cam"),
        (f"HTTP://cam?pwd={SECRET}", "HTTP://cam"),
        (f"rtsp://u:{SECRET}@[fe80::1]:554/x", "rtsp://[fe80::1]:554"),
    ],
)
def test_an_address_is_shown_without_anything_that_may_be_a_password(address: str, shown: str) -> None:
    source = read_source(address)
    assert (source.kind, source.shown) == ("stream", shown)
    assert SECRET not in f"{source} {source!r}"


@given(user=st.text("ab:@/?#%", max_size=6), password=st.text("cd:@/?#%", max_size=6))
def test_whatever_signs_a_password_has_it_is_not_shown(user: str, password: str) -> None:
    source = read_source(f"rtsp://{user}:{password}@host/path")
    assert source.shown == "rtsp://host"


def test_files_folders_and_devices_are_told_apart(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.touch()
    kinds = {read_source(str(place)).kind for place in (video, tmp_path, Path("/dev/null"))}
    assert kinds == {"file", "folder", "device"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nowhere.mp4", "nowhere.mp4: No such file or directory; name a file, a folder, a device such as /dev/video0"),
        (f"ftp://u:{SECRET}@cam/x", "ftp://cam: this kind of address is not known; use one of rtsp,"),
        (f"rtsp://u:{SECRET}@/x", "rtsp://: the address names no host"),
        ("a\0b", "name a file"),
        ("", "the source: is empty; name a camera, a video or a folder"),
    ],
)
def test_a_wrong_source_is_one_line_that_says_what_to_do(text: str, says: str) -> None:
    with pytest.raises(BadFile) as error:
        read_source(text)
    assert says in str(error.value)
    assert SECRET not in str(error.value)
