"""The questions, their scores, and the results file, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent.modules import Output
from s2m3.bench.accuracy import questions
from s2m3.bench.accuracy.journal import Journal
from s2m3.bench.datasets import Dataset, Record, evenly
from s2m3.catalogue import load_task
from s2m3.reference.whole import same

PICTURE = RawInput(b"picture", "image/png")
ZERO_SHOT = load_task("pocket/zero-shot")


def classified(count: int) -> Dataset:
    classes = tuple(f"thing {index}" for index in range(count))
    return Dataset("folders", "classification", "image", 1, lambda _: Record("r", PICTURE, 0), classes)


def captioned(*captions: tuple[str, ...]) -> Dataset:
    records = [Record(str(at), PICTURE, captions=each) for at, each in enumerate(captions)]
    return Dataset("captions", "retrieval", "image", len(records), records.__getitem__, texts=captions)


def sent(requests: list[dict[str, RawInput]]) -> list[list[str]]:
    return [request["text"].data.decode().splitlines() for request in requests]


def test_all_classes_are_sent_in_as_many_requests_as_the_limit_of_lines_demands() -> None:
    dataset = classified(150)
    asked = questions.about(dataset, ZERO_SHOT, [0])
    portions = sent(asked.requests(dataset.read(0)))
    assert [len(portion) for portion in portions] == [64, 64, 22]
    assert [line for portion in portions for line in portion] == [f"a photo of a thing {at}." for at in range(150)]
    scores = np.zeros(150, dtype=np.float32)
    scores[77] = 1
    outputs = [Output({"logits": scores[None, at : at + 64]}) for at in (0, 64, 128)]
    verdict = asked.verdict(Record("r", PICTURE, 77), outputs)
    assert verdict == {"predicted": "thing 77", "score": 1.0}


def test_the_mean_score_over_a_classes_prompts_decides() -> None:
    dataset = Dataset("cifar-10", "classification", "image", 1, lambda _: Record("r", PICTURE, 0), ("cat", "dog"))
    asked = questions.about(dataset, ZERO_SHOT, [0], templates=2)
    (lines,) = sent(asked.requests(dataset.read(0)))
    assert lines == ["a photo of a cat.", "a blurry photo of a cat.", "a photo of a dog.", "a blurry photo of a dog."]
    output = Output({"scores": np.array([0.9, 0.1, 0.6, 0.6], dtype=np.float32)})  # means 0.5 and 0.6
    assert asked.verdict(Record("r", PICTURE, 0), [output]) == {"predicted": "dog", "score": 0.0}


def test_scores_come_from_the_ranking_when_there_are_no_arrays() -> None:
    ranked: Any = [{"label": "b", "score": 0.5}, {"label": "a", "score": 0.25}]
    assert questions.scores_of(Output({}, {"ranked": ranked}), ["a", "b"]).tolist() == [0.25, 0.5]
    with pytest.raises(BadFile, match="no score for each text"):
        questions.scores_of(Output({}, {"ranked": ranked}), ["a", "c"])


def test_retrieval_scores_a_picture_with_the_captions_of_the_chosen_records() -> None:
    dataset = captioned(("a", "b"), ("c",), ("d",))
    asked = questions.about(dataset, ZERO_SHOT, [0, 2])
    assert sent(asked.requests(dataset.read(0))) == [["a", "b", "d"]]
    rows = ([0.1, 0.9, 0.5], [0.2, 0.1, 0.3])
    verdicts = [
        asked.verdict(dataset.read(at), [Output({"scores": np.array(row, dtype=np.float32)})])
        for at, row in enumerate(rows)
    ]
    summary = asked.summary(verdicts)
    assert summary["image-to-text@1"] == 1.0
    assert summary["text-to-image@1"] == pytest.approx(1 / 3)  # b alone: a and d stand higher with the other picture
    assert asked.summary(verdicts[:1]) == dict.fromkeys(summary, 1.0)  # one picture with its own captions only


def test_open_questions_are_refused_by_a_task_that_chooses() -> None:
    dataset = Dataset("vqa-v2", "vqa", "image", 1, lambda _: Record("r", PICTURE))
    with pytest.raises(BadFile, match="has open questions, and the task chooses among given answers"):
        questions.about(dataset, load_task("pocket/vqa"), [0])


def test_a_task_that_chooses_refuses_a_record_without_choices_by_name() -> None:
    record = Record("line-3", PICTURE, question="What?", answers=("a",))
    dataset = Dataset("vqa", "vqa", "image", 1, lambda _: record)
    asked = questions.about(dataset, load_task("pocket/vqa"), [0])
    with pytest.raises(BadFile, match="line-3: choices: is missing"):
        asked.requests(record)


def test_imagenets_classes_match_by_any_of_their_names() -> None:
    task: TaskSpec = load_task("pocket/classify")
    dataset = Dataset(
        "folders", "classification", "image", 1, lambda _: Record("r", PICTURE, 0), ("Great white shark",)
    )
    asked = questions.about(dataset, task, [0])
    right = Output({}, {"label": "great white shark, white shark, man-eater"})
    assert asked.verdict(dataset.read(0), [right])["score"] == 1.0
    assert asked.verdict(dataset.read(0), [Output({}, {"label": "tench"})])["score"] == 0.0


def test_outputs_are_equal_only_bit_for_bit() -> None:
    one = np.array([1.0], dtype=np.float32)
    assert same(Output({"x": one, "y": one}, {"a": 1}), Output({"x": one}, {"a": 1}))
    assert not same(Output({"x": one}, {"a": 1}), Output({"x": np.nextafter(one, np.float32(2))}, {"a": 1}))
    assert not same(Output({"x": one}, {"a": 1}), Output({"x": one.astype(np.float64)}, {"a": 1}))
    assert not same(Output({}, {"a": 1}), Output({}, {"a": 2}))
    assert not same(Output({}, None), Output({"x": one}, None))


def test_a_limit_takes_records_evenly() -> None:
    assert evenly(10, 4) == [0, 2, 5, 7]
    assert evenly(3, 9) == [0, 1, 2]
    assert evenly(3, None) == [0, 1, 2]


def test_a_limit_of_no_records_is_refused(
    exit_code: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["bench", "accuracy", "--data", "digits", "--task", "pocket/classify", "--limit", "0"]) == 2
    assert "argument --limit: must be a whole number of at least 1, got '0'" in capsys.readouterr().err


def test_a_journal_resumes_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    journal = Journal(path, {"task": "t"})
    journal.add({"id": "0"})
    journal.add({"id": "1"})
    path.write_bytes(path.read_bytes()[:-4])
    journal = Journal(path, {"task": "t"})
    assert (journal.records, journal.summary) == ([{"id": "0"}], None)
    journal.add({"id": "1"})
    journal.finish({"top1": 1.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"run": {"task": "t"}},
        {"id": "0"},
        {"id": "1"},
        {"summary": {"top1": 1.0}},
    ]
    assert Journal(path, {"task": "t"}).summary == {"top1": 1.0}


def test_a_file_of_another_run_or_of_no_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Journal(path, {"task": "t", "limit": 1})
    with pytest.raises(BadFile, match=r"r\.jsonl:1: holds results of another run \(limit differs\)"):
        Journal(path, {"task": "t", "limit": 2})
    path.write_text("no json\n")
    with pytest.raises(BadFile, match=r"r\.jsonl:1: is not a result"):
        Journal(path, {"task": "t"})
    with pytest.raises(BadFile, match="No such file or directory"):
        Journal(tmp_path / "none" / "r.jsonl", {"task": "t"})
