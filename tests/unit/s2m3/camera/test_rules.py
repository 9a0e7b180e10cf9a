"""The rules of ``s2m3 camera`` that need no camera: still frames, the newest frame, pauses, and files that are new."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from s2m3.camera.backoff import Backoff
from s2m3.camera.change import HEIGHT, LEAST_STEP, WIDTH, Change, Thumbnail, changed_share
from s2m3.camera.folder import Folder
from s2m3.camera.newest import Newest
from tests.patience import PATIENCE_S, until


def scene(*boxes: tuple[int, int], colour: tuple[int, int, int] = (90, 90, 90)) -> Thumbnail:
    """A grey picture in which the cells of each box (first, end) of the first row have a colour."""
    found = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for first, end in boxes:
        found[0, first:end] = colour
    return found


def test_a_frame_is_still_if_less_than_the_share_of_its_cells_changed() -> None:
    change = Change(16 / (WIDTH * HEIGHT))
    white = (255, 255, 255)
    assert not change.is_still(scene()), "the first one"
    assert change.is_still(scene((0, 15), colour=white))
    assert not change.is_still(scene((0, 16), colour=white))
    assert (change.looked, change.still, change.still_share) == (3, 1, 1 / 3)


def test_noise_is_no_change_and_a_colour_of_the_same_grey_is_one() -> None:
    noisy = scene() + np.random.default_rng(1).integers(0, LEAST_STEP, (HEIGHT, WIDTH, 3), np.uint8)
    assert changed_share(scene(), noisy) == 0
    assert changed_share(scene(), scene((0, WIDTH), colour=(220, 30, 30))) == 1 / HEIGHT, "red as light as the grey"


def test_a_slow_change_counts_against_the_last_frame_that_was_sent() -> None:
    change = Change()
    sent = [not change.is_still(np.full((HEIGHT, WIDTH, 3), 100 + step, np.uint8)) for step in range(LEAST_STEP + 1)]
    assert sent == [True, *[False] * (LEAST_STEP - 1), True]


def test_without_a_share_no_frame_is_still() -> None:
    change = Change(0)
    assert [change.is_still(scene()) for _ in range(3)] == [False] * 3
    assert Change().still_share == 0


def test_pauses_double_up_to_the_longest_and_begin_again_after_a_frame() -> None:
    backoff = Backoff(1, 60)
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == 1


def test_a_newer_value_replaces_the_one_that_waits() -> None:
    newest: Newest[int] = Newest()
    for value in range(1, 6):
        newest.put(value)
    newest.close()
    assert (newest.take(), newest.take(), newest.replaced) == (5, None, 4)


def test_a_value_of_a_file_waits_until_the_one_before_is_done() -> None:
    newest: Newest[int] = Newest()
    put: list[int] = []

    def fill() -> None:
        for value in range(3):
            newest.put_when_free(value)
            put.append(value)
        newest.close()

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    for value in range(3):
        assert newest.take() == value
        until(lambda wanted=value: len(put) > wanted)  # type: ignore[misc]
        assert len(put) == value + 1, "the next one waits until this one is done"
    assert newest.take() is None
    thread.join(PATIENCE_S)
    assert newest.replaced == 0


def test_closing_frees_whoever_waits() -> None:
    newest: Newest[int] = Newest()
    newest.put(1)
    thread = threading.Thread(target=newest.put_when_free, args=(2,), daemon=True)
    thread.start()
    newest.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def write(path: Path, size: int, at: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(at, at))
    return path


def test_a_picture_is_taken_once_when_it_no_longer_grows(tmp_path: Path) -> None:
    write(tmp_path / "before.jpg", 1, 1)
    folder = Folder(tmp_path)
    assert folder.new() == []
    later, first = write(tmp_path / "2026" / "b.PNG", 5, 9), write(tmp_path / "a.jpeg", 5, 8)
    for other in (".hidden.jpg", "._a.jpg", "notes.txt", "b.jpg.part", "__MACOSX/c.jpg", ".thumbs/d.jpg"):
        write(tmp_path / other, 5, 7)
    assert folder.new() == [], "they may still grow"
    write(first, 6, 8)
    assert folder.new() == [later]
    assert folder.new() == [first]
    assert folder.new() == []
    write(later, 5, 10)
    assert [folder.new(), folder.new()] == [[], [later]], "a camera that writes one file again and again"
    first.unlink()
    assert folder.new() == []
    os.mkfifo(tmp_path / "c.jpg")
    assert [folder.new(), folder.new()] == [[], []], "a pipe: reading it would wait for ever"


@pytest.mark.parametrize("value", [0.0, 0.2])
def test_a_share_is_of_cells_and_not_of_their_difference(value: float) -> None:
    cells = round(value * WIDTH * HEIGHT)
    after = scene()
    after.reshape(-1, 3)[:cells] = 255
    assert changed_share(scene(), after) == cells / (WIDTH * HEIGHT)
