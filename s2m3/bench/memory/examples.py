"""One request for any task, the same for both sides. Owns the choice, by the kinds of the task's inputs."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from s2m3.reference import pictures, speech

CAPTIONS = "a photo of a cat\na cup of coffee\na city street\na bird"
QUESTION = "What animal is this?"
ANSWERS = "a cat\na dog\na horse\na bird"
SEVERAL = ("retrieval-", "alignment-", "segmentation-", "zero-shot")  # tasks that take a caption a line


def example(name: str, task: TaskSpec) -> dict[str, RawInput]:
    """One request.

    Args:
        name: The task's catalogue name.
        task: The task.
    """
    return {field: _value(name, field, spec.kind) for field, spec in task.inputs.items()}


def _value(name: str, field: str, kind: str) -> RawInput:
    if kind == "image":
        return pictures.picture("chelsea.png").raw
    if kind == "audio":
        return speech.spoken("what-animal")
    if field == "answers":
        return RawInput(ANSWERS.encode(), "text/plain")
    several = name.rpartition("/")[2].startswith(SEVERAL)
    return RawInput((CAPTIONS if several else QUESTION).encode(), "text/plain")
