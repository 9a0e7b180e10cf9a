"""Records into requests for a task, and answers into what is right: one class a kind of question.

Owns which task can be asked about which data, and how its answers are scored. Knows no model, and not who answers.

What can't be asked, and is refused in one line: a classifier about classes that it doesn't name; a chooser among
answers about data that names no choices; a task about media that the data hasn't.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.protocol.codec import RawInput
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import NodeName, TaskSpec
from edge_agent.modules import Output
from edge_agent.modules.families import heads
from edge_agent.modules.inputs.decoding import MAX_LINES
from edge_agent.modules.weights import hub
from edge_agent.modules.weights.checkpoint import read_object
from s2m3.bench import accuracy_metrics
from s2m3.bench.datasets import Dataset, Record, prompts

Requests = list[dict[str, RawInput]]
Verdict = dict[str, Any]  # as it stands in a results file

# What a task's last module does, by its family; a family that isn't here answers nothing that has a metric here.
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


class Questions(Protocol):
    """How one dataset is asked of one task."""

    def requests(self, record: Record) -> Requests:
        """What is sent for a record."""

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """What the answers say; with ``score`` from 0 to 1 where a record has one by itself."""

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """The metrics of all records, by name, from 0 to 1."""


def about(dataset: Dataset, task: TaskSpec, positions: Sequence[int], *, templates: int | None = None) -> Questions:
    """The questions of a dataset to a task.

    Args:
        dataset: What is asked about.
        task: Who is asked.
        positions: The records that will be asked about, for retrieval: their captions are the candidates.
        templates: How many prompts a class gets; all by default.

    Raises:
        BadFile: this task can't be asked about this data, with the reason.
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
    """What a verdict names, without its score: the answer, or the best caption's position."""
    if "predicted" in verdict:
        return verdict["predicted"]
    return int(np.frombuffer(base64.b64decode(verdict["row"]), "<f4").argmax())


def _unfit(dataset: Dataset, task: TaskSpec, problem: str) -> BadFile:
    return BadFile(file=dataset.format, problem=f"{problem}: {task.task}", fix="name another task or other data")


def _line(text: str) -> str:
    return " ".join(text.split())


def _sent(lines: Sequence[str]) -> RawInput:
    return RawInput("\n".join(lines).encode(), "text/plain")


def _portions(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many lines as one request may have."""
    for start in range(0, len(lines), MAX_LINES):
        yield lines[start : start + MAX_LINES]


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


class Named:
    """Classification by a task that names what it sees: right when it names the record's class."""

    def __init__(self, dataset: Dataset, task: TaskSpec, media: NodeName) -> None:
        self._dataset, self._media = dataset, media
        known = {name for label in labels_of(task) for name in _names(label)}
        if known and (strange := [name for name in dataset.classes if not _names(name) & known]):
            problem = f"{task.task} names no class {strange[0]} ({len(strange)} of {len(dataset.classes)} are unknown)"
            fix = "name the folders as the task does, or take a task that is given the classes as texts"
            raise BadFile(file=dataset.format, field="classes", problem=problem, fix=fix)

    def requests(self, record: Record) -> Requests:
        """The picture or sound alone."""
        return [{self._media: record.media}]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The label that was named."""
        predicted = str((outputs[0].answer or {}).get("label", ""))
        right = bool(_names(predicted) & _names(self._dataset.classes[_label(record)]))
        return {"predicted": predicted, "score": float(right)}

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Top-1 accuracy."""
        return {"top1": _mean(verdicts)}


class Prompted:
    """Zero-shot classification: each class as prompts, of which the task ranks all; the best mean is its answer."""

    def __init__(self, dataset: Dataset, media: NodeName, text: NodeName, templates: int | None) -> None:
        self._dataset, self._media, self._text = dataset, media, text
        self._templates = prompts.templates(dataset.format, dataset.medium)[:templates]
        self._lines = [_line(template.format(name)) for name in dataset.classes for template in self._templates]

    def requests(self, record: Record) -> Requests:
        """The picture or sound with all prompts, a portion at a time."""
        return [{self._media: record.media, self._text: _sent(lines)} for lines in _portions(self._lines)]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The class whose prompts have the highest mean score; of equals the first."""
        found = np.concatenate(
            [scores_of(output, lines) for output, lines in zip(outputs, _portions(self._lines), strict=True)]
        )
        by_class = found.astype(np.float64).reshape(len(self._dataset.classes), len(self._templates)).mean(axis=1)
        best = int(by_class.argmax())
        return {"predicted": self._dataset.classes[best], "score": float(best == _label(record))}

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Top-1 accuracy."""
        return {"top1": _mean(verdicts)}


class Retrieval:
    """Pictures and captions: every picture is scored with every caption of the chosen records."""

    def __init__(self, dataset: Dataset, media: NodeName, text: NodeName, positions: Sequence[int]) -> None:
        self._media, self._text = media, text
        self._own: list[range] = []
        self._lines: list[str] = []
        for position in positions:
            captions = [_line(caption) for caption in dataset.texts[position]]
            self._own.append(range(len(self._lines), len(self._lines) + len(captions)))
            self._lines += captions

    def requests(self, record: Record) -> Requests:
        """The picture with all captions, a portion at a time."""
        return [{self._media: record.media, self._text: _sent(lines)} for lines in _portions(self._lines)]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:  # noqa: ARG002 - the row says all
        """The picture's row of scores, as base64 of little-endian float32."""
        found = [scores_of(output, lines) for output, lines in zip(outputs, _portions(self._lines), strict=True)]
        return {"row": base64.b64encode(np.concatenate(found).astype("<f4").tobytes()).decode()}

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """Recall at 1, 5 and 10, both ways; of the first verdicts with all captions of their own."""
        own = self._own[: len(verdicts)]
        wanted = own[-1].stop
        rows = np.stack([np.frombuffer(base64.b64decode(each["row"]), "<f4")[:wanted] for each in verdicts])
        captions, pictures = (
            accuracy_metrics.recall_of_captions(rows, own),
            accuracy_metrics.recall_of_pictures(rows, own),
        )
        return {f"image-to-text@{k}": value for k, value in captions.items()} | {
            f"text-to-image@{k}": value for k, value in pictures.items()
        }


class Asked:
    """Questions about pictures, by the official VQA rule."""

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
        """The picture and the question, and the choices for a task that needs them.

        Raises:
            BadFile: it needs them, and the record has none.
        """
        inputs = {self._media: record.media, self._question: _sent([_line(record.question)])}
        if self._choices:
            if not record.choices:
                fix = "write them, or name a task that answers freely"
                raise BadFile(file="vqa.jsonl", field=f"{record.id}: choices", problem="is missing", fix=fix)
            inputs[self._choices] = _sent(record.choices)
        return [inputs]

    def verdict(self, record: Record, outputs: Sequence[Output]) -> Verdict:
        """The answer and how many people agree."""
        answer = outputs[0].answer or {}
        predicted = str(answer.get("answer", answer.get("text", "")))
        return {"predicted": predicted, "score": accuracy_metrics.vqa_accuracy(predicted, record.answers)}

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, float]:
        """VQA accuracy."""
        return {"vqa": _mean(verdicts)}


def labels_of(task: TaskSpec) -> tuple[str, ...]:
    """What a classifying task can name; nothing when its weights' configuration isn't at hand to say it."""
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
    """How a label may be written: ImageNet's have several names with commas between."""
    whole = _line(label.replace("_", " ")).casefold()
    return {whole, *(part.strip() for part in whole.split(","))}


def _label(record: Record) -> int:
    if record.label is None:
        raise BadFile(file=record.id, problem="has no label", fix="name labelled data")
    return record.label


def _mean(verdicts: Sequence[Verdict]) -> float:
    return sum(float(each["score"]) for each in verdicts) / len(verdicts)
