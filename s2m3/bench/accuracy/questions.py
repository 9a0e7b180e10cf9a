"""Records into requests for a task, and answers into scores: one class for each kind of question.

Owns which data fits which task, and how answers are scored. Knows no model, and not whether it is split.

Refused in one line: a classifier with classes that it doesn't know; a task that chooses among given answers, with data
that has none; a task for media that the data doesn't have.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import NodeName, TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import heads
from edge_agent.modules.inputs.limits import MAX_LINES
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.layout import read_object
from s2m3.bench.accuracy_metrics import recall_of_captions, recall_of_pictures, vqa_accuracy
from s2m3.bench.datasets import Dataset, Record, prompts
from s2m3.bench.requests import text_input

Requests = list[dict[str, RawInput]]
Verdict = dict[str, Any]  # as in a results file

# The kind of a task's answer, by the family of its last module. Answers of other families have no metric here.
NAMES_CLASSES = {"efficientnet.classifier", "heads.linear", "vit.classifier"}
RANKS_TEXTS = {"align.head", "clap.head", "clip.head", "conse.head", "siglip.head"}
ANSWERS_QUESTIONS = {
    "blip.decoder",
    "conse.head",
    "heads.answer",
    "llava.language",
    "llava.tied_language",
    "smolvlm.language",
    "vilt.answer",
}


class Unfit(BadFile):
    """The data doesn't fit the task."""


class Questions(ABC):
    """The questions of one dataset to one task."""

    metric: ClassVar[str]  # the name of the mean score

    @abstractmethod
    def requests(self, record: Record) -> Requests:
        """The requests for a record."""

    @abstractmethod
    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """A record's result; it has a ``score`` from 0 to 1 if one record alone can have one."""

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """The metrics of all records, by name, from 0 to 1."""
        return {self.metric: sum(float(each["score"]) for each in verdicts) / len(verdicts)}


def about(dataset: Dataset, task: TaskSpec, positions: Sequence[int], *, templates: int | None = None) -> Questions:
    """The questions to a task about the records at these positions, whose captions are the candidates for retrieval.

    Each class gets this number of templates; all by default.

    Raises:
        Unfit: the data doesn't fit the task, with the reason.
    """
    media = [name for name, spec in task.inputs.items() if spec.kind == dataset.medium]
    texts = [name for name, spec in task.inputs.items() if spec.kind == "text"]
    if len(media) != 1 or len(media) + len(texts) != len(task.inputs):
        takes = ", ".join(f"{name} ({spec.kind})" for name, spec in task.inputs.items())
        raise _unfit(dataset, task, f"holds {dataset.medium}s, and the task takes {takes}")
    family = task.module_of(task.output).family
    ranks = family in RANKS_TEXTS and len(texts) == 1
    if dataset.kind == "classification" and family in NAMES_CLASSES and not texts:
        return Named(dataset, task, media[0])
    if dataset.kind == "classification" and ranks:
        return Prompted(dataset, media[0], texts[0], templates)
    if dataset.kind == "retrieval" and ranks:
        return Retrieval(dataset, media[0], texts[0], positions)
    if dataset.kind == "vqa" and family in ANSWERS_QUESTIONS and texts and not (ranks and "question" not in texts):
        return Asked(dataset, task, media[0], texts)
    raise _unfit(dataset, task, f"is {dataset.kind} data, which this task doesn't answer")


def named(verdict: Verdict) -> Any:  # noqa: ANN401 - a text, or a position
    """The answer in a verdict without its score: a text, or the best caption's position."""
    if "predicted" in verdict:
        return verdict["predicted"]
    return int(np.frombuffer(base64.b64decode(verdict["row"]), "<f4").argmax())


def _unfit(dataset: Dataset, task: TaskSpec, problem: str) -> Unfit:
    return Unfit(file=dataset.format, problem=f"{problem}: {task.task}", fix="name another task or other data")


def _line(text: str) -> str:
    return " ".join(text.split())


def scores_of(output: Output, lines: Sequence[str]) -> NDArray[np.float32]:
    """The scores (n,) of n lines: the output's array of n numbers, else those of its ranked answer.

    Raises:
        BadFile: it has neither.
    """
    for name in ("logits", "scores"):
        if name in output.tensors and output.tensors[name].size == len(lines):
            return np.asarray(output.tensors[name], dtype=np.float32).ravel()
    ranked: Any = (output.answer or {}).get("ranked", [])
    by_text = {next(v for k, v in each.items() if k != "score"): each["score"] for each in ranked}
    if by_text.keys() != set(lines):
        raise BadFile(file="answer", problem="has no score for each text", fix="name a task that ranks texts")
    return np.array([by_text[line] for line in lines], dtype=np.float32)


class Named(Questions):
    """Classification by a task with classes of its own: right if it names the record's class."""

    metric = "top1"

    def __init__(self, dataset: Dataset, task: TaskSpec, media: NodeName) -> None:
        self._dataset, self._media = dataset, media
        known = {name for label in labels_of(task) for name in _names(label)}
        if known and (strange := [name for name in dataset.classes if not _names(name) & known]):
            problem = f"{task.task} names no class {strange[0]} ({len(strange)} of {len(dataset.classes)} are unknown)"
            fix = "name the folders as the task does, or take a task that is given the classes as texts"
            raise Unfit(file=dataset.format, field="classes", problem=problem, fix=fix)

    def requests(self, record: Record) -> Requests:
        """The picture or sound alone."""
        return [{self._media: record.media}]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The label of the answer."""
        predicted = str((outputs[0].answer or {}).get("label", ""))
        right = bool(_names(predicted) & _names(self._dataset.classes[_label(record)]))
        return {"predicted": predicted, "score": float(right)}


class _Scoring(Questions):
    """The scores of many lines with each picture or sound, in several requests if one can't hold all lines."""

    def __init__(self, media: NodeName, text: NodeName, lines: Sequence[str]) -> None:
        self._media, self._text = media, text
        self._portions = [lines[start : start + MAX_LINES] for start in range(0, len(lines), MAX_LINES)]

    def requests(self, record: Record) -> Requests:
        """The picture or sound with all lines."""
        return [{self._media: record.media, self._text: text_input(*lines)} for lines in self._portions]

    def _scores(self, outputs: Sequence[Output]) -> NDArray[np.float32]:
        """The scores (n,) of all lines."""
        pairs = zip(outputs, self._portions, strict=True)
        return np.concatenate([scores_of(output, lines) for output, lines in pairs])


class Prompted(_Scoring):
    """Zero-shot classification: the task scores prompts for every class; the class with the best mean is its answer."""

    metric = "top1"

    def __init__(self, dataset: Dataset, media: NodeName, text: NodeName, templates: int | None) -> None:
        self._classes = dataset.classes
        chosen = prompts.templates(dataset.format, dataset.medium)[:templates]
        super().__init__(media, text, [_line(each.format(name)) for name in dataset.classes for each in chosen])

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The class whose prompts have the highest mean score; ties go to the first."""
        scores = self._scores(outputs).astype(np.float64)
        best = int(scores.reshape(len(self._classes), -1).mean(axis=1).argmax())
        return {"predicted": self._classes[best], "score": float(best == _label(record))}


class Retrieval(_Scoring):
    """Pictures and captions: every picture is scored with every caption of the chosen records."""

    def __init__(self, dataset: Dataset, media: NodeName, text: NodeName, positions: Sequence[int]) -> None:
        self._own: list[range] = []
        lines: list[str] = []
        for position in positions:
            captions = [_line(caption) for caption in dataset.texts[position]]
            self._own.append(range(len(lines), len(lines) + len(captions)))
            lines += captions
        super().__init__(media, text, lines)

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:  # noqa: ARG002 - the scores are the result
        """The picture's row of scores, as base64 of little-endian float32."""
        return {"row": base64.b64encode(self._scores(outputs).astype("<f4").tobytes()).decode()}

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Recall at 1, 5 and 10, in both directions, among the pictures of these verdicts and their captions."""
        own = self._own[: len(verdicts)]
        wanted = own[-1].stop
        rows = np.stack([np.frombuffer(base64.b64decode(each["row"]), "<f4")[:wanted] for each in verdicts])
        recalls = {"image-to-text": recall_of_captions(rows, own), "text-to-image": recall_of_pictures(rows, own)}
        return {f"{way}@{k}": value for way, found in recalls.items() for k, value in found.items()}


class Asked(Questions):
    """Questions about pictures, by the official VQA rule."""

    metric = "vqa"

    def __init__(self, dataset: Dataset, task: TaskSpec, media: NodeName, texts: Sequence[NodeName]) -> None:
        self._media = media
        self._question = "question" if "question" in texts else texts[0]
        others = [name for name in texts if name != self._question]
        if len(others) > 1:
            raise _unfit(dataset, task, f"has questions, and the task takes {', '.join(others)} besides")
        self._choices = others[0] if others else None
        if self._choices and dataset.format != "vqa":
            raise _unfit(dataset, task, f"has open questions, and the task chooses among given {self._choices}")

    def requests(self, record: Record) -> Requests:
        """The picture and the question, with the choices if the task needs them.

        Raises:
            BadFile: the task needs choices, and the record has none.
        """
        inputs = {self._media: record.media, self._question: text_input(_line(record.question))}
        if self._choices:
            if not record.choices:
                fix = "write them, or name a task that answers freely"
                raise BadFile(file="vqa.jsonl", field=f"{record.id}: choices", problem="is missing", fix=fix)
            inputs[self._choices] = text_input(*record.choices)
        return [inputs]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The answer, and how well people agree with it."""
        answer = outputs[0].answer or {}
        predicted = str(answer.get("answer", answer.get("text", "")))
        return {"predicted": predicted, "score": vqa_accuracy(predicted, record.answers)}


def labels_of(task: TaskSpec) -> tuple[str, ...]:
    """The labels of a classifying task; empty when the configuration that has them is not on this machine."""
    module = task.module_of(task.output)
    if module.family == "efficientnet.classifier":
        from edge_agent.modules.inputs.imagenet import class_names  # noqa: PLC0415 - its package may be missing

        return class_names()
    if module.source is None or module.source.hub is None:
        return ()
    try:
        config = read_object(hub.repository(module.source).required("config.json"))
    except ModuleRefused:
        return ()
    return tuple(heads.labels(config)) if "id2label" in config else ()


def _names(label: str) -> set[str]:
    """The spellings of a label: those of ImageNet have several names, with commas between."""
    whole = _line(label.replace("_", " ")).casefold()
    return {whole, *(part.strip() for part in whole.split(","))}


def _label(record: Record) -> int:
    if record.label is None:
        raise BadFile(file=record.id, problem="has no label", fix="name labelled data")
    return record.label
