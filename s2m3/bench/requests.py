"""Three requests for any task, of real photographs, spoken sentences and texts. Owns the choice. Imports no torch."""

from __future__ import annotations

from broker.protocol.codec import RawInput
from broker.protocol.specs import TaskSpec
from s2m3.reference.pictures import picture
from s2m3.reference.speech import spoken

PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg")
SOUNDS = ("pump", "what-animal", "window")
QUESTIONS = ("What is this?", "What is in the cup?", "What is taking off?")
CAPTIONS = ("a photo of a cat", "a cup of coffee", "a rocket at its launch", "somebody speaks")  # phrase ok


def text_input(*lines: str) -> RawInput:
    """Texts, one a line."""
    return RawInput("\n".join(lines).encode(), "text/plain")


def requests(task: TaskSpec) -> list[dict[str, RawInput]]:
    """The inputs of the requests, each by its name in the task, or else by its kind."""
    captions = text_input(*CAPTIONS)
    asks = task.module_of(task.output).family.endswith("language")  # a language model's text is a question
    found = []
    for photograph, sound, words in zip(PICTURES, SOUNDS, QUESTIONS, strict=True):
        question = text_input(words)
        if {spec.kind for spec in task.inputs.values()} == {"text"}:  # nothing else differs
            captions = text_input(words, *CAPTIONS)
        given = {"image": picture(photograph).raw, "audio": spoken(sound), "text": question if asks else captions}
        given |= {"question": question, "answers": captions}  # inputs of these names
        found.append({name: given.get(name, given[spec.kind]) for name, spec in task.inputs.items()})
    return found
