"""``s2m3 camera`` against a real site: one frame for several tasks, still frames, the newest frame, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2m3.testbed.site import Site
from tests.acceptance.conftest import Run
from tests.patience import PATIENCE_S, until
from tests.videos import SECRET, USER, Camera, a_camera, write_video

TEXTS = ("--text", "a red sign", "--text", "a grey wall")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Camera]:
    with a_camera(tmp_path_factory.mktemp("camera")) as running:
        yield running


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_each_frame_of_a_video_that_changed_is_answered_by_each_task(s2m3: Run, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "a.mp4"))
    tasks = ("--task", "classify", "--task", "zero-shot", *TEXTS)
    *told, end = lines(s2m3("camera", video, *tasks, "--every", "0.5", "--deadline", "60", "--json").stdout)
    assert sorted(each["task"] for each in told) == ["classify"] * 4 + ["zero-shot"] * 4
    assert all(each["answer"]["label"] in {"a red sign", "a grey wall"} for each in told if each["task"] != "classify")
    frames = {"looked": 8, "still": 4, "still_share": 0.5, "replaced": 0}
    assert end == {"camera": video, "frames": frames, "requests": 8, "failed": 0}
    assert [each["frames"]["looked"] for each in told if each["task"] == "classify"] == sorted(
        each["frames"]["looked"] for each in told if each["task"] == "classify"
    )


def test_a_task_that_is_not_there_is_told_with_what_to_do(s2m3: Run, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "a.mp4", each=1))
    done = s2m3("camera", video, "--task", "nope", "--every", "9", "--deadline", "1", expect=1)
    assert "nope: no_route: " in done.stdout
    assert "s2m3 deploy" in done.stdout
    assert "1 request, 1 without an answer" in done.stderr


def test_a_wrong_source_or_argument_is_one_line(s2m3: Run, camera: Camera) -> None:
    for arguments, says in (
        (("/nowhere.mp4", "--task", "classify"), "/nowhere.mp4: No such file or directory; name a file"),
        ((camera.url("locked", login=f"{USER}:no{SECRET}"), "--task", "classify"), "the user or the password (401)"),
        ((camera.url("picture"), "--text", "a cat", "--task", "classify"), "write it behind the --task"),
        ((camera.url("picture"), "--task", "classify", "--task", "classify"), "names classify twice; name each"),
    ):
        done = s2m3("camera", *arguments, expect=2)
        assert says in done.stderr
        assert SECRET not in done.stderr + done.stdout


def test_a_live_camera_is_watched_until_ctrl_c(site: Site, camera: Camera) -> None:
    """Of its frames only those that changed are sent, and no password is printed."""
    url = camera.url("stream", login=f"{USER}:{SECRET}")
    command = [sys.executable, "-m", "s2m3", "camera", url, "--task", "classify", "--every", "0.05", "--json"]
    command += ["--broker", site.url, "--deadline", str(2 * PATIENCE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["answer"]["label"]
        sent = camera.sent
        until(lambda: camera.sent > sent + 100)
        camera.colour = (240, 240, 240)
        second = json.loads(process.stdout.readline())
        assert second["frames"]["still"] > 0
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
    end = json.loads(out.splitlines()[-1])
    assert (process.returncode, err) == (0, "")
    assert end["frames"]["looked"] > end["requests"] >= 2
    assert end["failed"] == 0
    assert SECRET not in out + json.dumps([first, second])
