"""``bench accuracy`` on real photographs, with the pocket's models split and unsplit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s2m3.cli import main as command_line
from s2m3.reference.pictures import picture
from tests.patience import PATIENCE_S

CLASSES = {
    "a_cat_having_a_striped_coat": "chelsea.png",
    "espresso": "coffee.png",
    "palace": "china.jpg",
    "tripod": "rocket.jpg",  # wrong on purpose
}


@pytest.fixture
def benchmarks(tmp_path: Path) -> Path:
    """Labelled, captioned and asked-about photographs."""
    for name, image in CLASSES.items():
        copy(image, tmp_path / "animals-and-things" / name / image)
    captions = [
        {"image": "chelsea.png", "captions": ["a photo of a cat", "a cat looking up"]},
        {"image": "coffee.png", "captions": ["a cup of coffee"]},
        {"image": "china.jpg", "captions": ["a palace"]},
    ]
    questions = [
        {"image": "coffee.png", "question": "What is it?", "answers": ["coffee"], "choices": ["water", "coffee"]},
        {"image": "chelsea.png", "question": "What is it?", "answers": ["the dog"], "choices": ["cat", "dog"]},
    ]
    for folder, index, lines in (("captioned", "captions", captions), ("asked", "vqa", questions)):
        for line in lines:
            copy(str(line["image"]), tmp_path / folder / str(line["image"]))
        (tmp_path / folder / f"{index}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def copy(image: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture(image).path, to)


def without_seconds(line: str) -> dict[str, Any]:
    return {name: value for name, value in json.loads(line).items() if name != "split_s"}


def bench(capsys: pytest.CaptureFixture[str], *arguments: str, expect: int = 0) -> Any:
    assert command_line.main(["bench", "accuracy", *arguments, "--json"]) == expect, capsys.readouterr()
    return json.loads(capsys.readouterr().out)


def test_a_classifier_is_right_where_it_names_the_folder(benchmarks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "--data", str(benchmarks / "animals-and-things"), "--task", "pocket/classify")
    assert found["split"] == found["unsplit"] == {"top1": 0.75}
    assert (found["records"], found["compared"], found["differing"]) == (4, 4, 0)


def test_folders_that_the_classifier_cannot_name_are_refused(
    benchmarks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (benchmarks / "animals-and-things" / "espresso").rename(benchmarks / "animals-and-things" / "a_cup")
    arguments = ["bench", "accuracy", "--data", str(benchmarks / "animals-and-things"), "--task", "pocket/classify"]
    assert command_line.main(arguments) == 2
    assert "classify names no class a cup (1 of 4 are unknown)" in capsys.readouterr().err


def test_the_table_runs_every_fitting_pair_and_resumes_where_it_stopped(
    benchmarks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = (
        "--task",
        "pocket/classify",
        "--task",
        "pocket/zero-shot",
        "--task",
        "pocket/vqa",
        "--task",
        "pocket/vision",
    )
    table = ("--table", str(benchmarks), *tasks)
    first = bench(capsys, *table)
    rows = {(row["data"], row["task"]): row for row in first["rows"] if "unfit" not in row}
    assert first["ok"]
    assert rows.keys() == {
        ("animals-and-things", "pocket/classify"),
        ("animals-and-things", "pocket/zero-shot"),
        ("captioned", "pocket/zero-shot"),
        ("asked", "pocket/vqa"),
    }
    assert all(row["differing"] == 0 and row["split"] == row["unsplit"] for row in rows.values())
    recalls = rows["captioned", "pocket/zero-shot"]["split"]
    assert recalls["image-to-text@1"] == recalls["text-to-image@5"] == 1.0
    assert rows["asked", "pocket/vqa"]["split"] == {"vqa": 0.5}  # it sees a cat, whatever we say

    results = benchmarks / "s2m3-accuracy"
    file = results / "animals-and-things--pocket-classify.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 6  # the run, four records, the summary
    file.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote the third record
    others = {path: path.read_bytes() for path in results.iterdir() if path != file}

    second = bench(capsys, *table)
    (resumed,) = (row for row in second["rows"] if row.get("resumed_at"))
    assert (resumed["data"], resumed["resumed_at"], resumed["records"]) == ("animals-and-things", 2, 4)
    assert resumed["split"] == {"top1": 0.75}
    assert [without_seconds(line) for line in file.read_text().splitlines()[:5]] == list(
        map(without_seconds, lines[:5])
    )
    assert {path: path.read_bytes() for path in results.iterdir() if path != file} == others


def test_each_option_gets_a_row_with_its_cost_and_saving(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", str(benchmarks / "captioned"), "--task", "pocket/zero-shot", "--limit", "3")
    options = ("--dtype", "float32", "--dtype", "int8", "--wire", "float16", "--results", str(tmp_path / "results"))
    found = bench(capsys, *data, *options)
    assert found["ok"]
    rows = {(row["dtype"], row["wire"]): row for row in found["rows"]}
    assert list(rows) == [("float32", "float32"), ("float32", "float16"), ("int8", "float16")]
    assert [row["weight_bytes"] for row in rows.values()] == [110_573_600, 110_573_600, 66_542_248]
    sent = [row["wire_bytes"] for row in rows.values()]
    assert (
        sent[0] == 2 * sent[1] == 2 * sent[2] == 4 * (1280 + 1000 + 4 * 384)
    )  # features, probabilities, four captions
    assert [(row["compared"], row["differing"]) for row in rows.values()] == [(3, 0)] * 3
    assert bench(capsys, *data, *options) == found, "a finished table is read from its results"


def test_an_option_that_does_not_fit_the_task_is_refused(benchmarks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(benchmarks / "captioned"), "--task", "pocket/speech", "--dtype", "int8"]
    assert command_line.main(["bench", "accuracy", *data]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_of_other_settings_are_not_resumed(
    benchmarks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = (
        "--data",
        str(benchmarks / "captioned"),
        "--task",
        "pocket/zero-shot",
        "--results",
        str(tmp_path / "r.jsonl"),
    )
    found = bench(capsys, *base, "--limit", "2", "--unsplit", "1")
    assert (found["records"], found["compared"]) == (2, 1)
    assert command_line.main(["bench", "accuracy", *base]) == 2
    assert "results of another run (limit, unsplit differs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "task", "says"),
    [
        ("asked", "pocket/zero-shot", "is vqa data, which this task doesn't answer"),
        ("captioned", "pocket/classify", "is retrieval data, which this task doesn't answer"),
        ("captioned", "pocket/speech", "holds images, and the task takes audio (audio)"),
    ],
)
def test_data_that_does_not_fit_the_task_is_refused_in_one_line(
    benchmarks: Path, folder: str, task: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["bench", "accuracy", "--data", str(benchmarks / folder), "--task", task]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_the_command_starts_as_a_program(benchmarks: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "s2m3",
        "bench",
        "accuracy",
        "--data",
        str(benchmarks / "none"),
        "--task",
        "pocket/vqa",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * PATIENCE_S, check=False)
    assert done.returncode == 2
    assert "is not a directory" in done.stderr
