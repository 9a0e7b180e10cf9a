"""The photographs that pip delivers, and the demo's requests about them.

Owns their place (in the wheels of scikit-image and scikit-learn) and the table of requests. Knows no model.

The requests were chosen, not drawn at random: photographs of things that are among ImageNet's classes, with answers on
which people agree. Pictures of other things (the moon, a page of text, a galaxy, an astronaut) are left out, for a
classifier of 1,000 things can only guess there. So are the class labels of the rocket ("missile"), the motorcycle
("moped") and the horse's silhouette (a dog breed), which are near but wrong.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from broker.protocol.codec import RawInput
from broker.protocol.errors import S2M3Error

_SKIMAGE = "camera.png chelsea.png coffee.png horse.png moon.png motorcycle_left.png page.png rocket.jpg"
_PLACES = dict.fromkeys(_SKIMAGE.split(), ("skimage", "data"))
_PLACES |= dict.fromkeys(("china.jpg", "flower.jpg"), ("sklearn", "datasets/images"))


class PicturesMissing(S2M3Error):
    """The packages that deliver the photographs are not installed."""


@dataclass(frozen=True)
class Picture:
    """One photograph: a file as a camera would send it."""

    path: Path

    @property
    def raw(self) -> RawInput:
        """The photograph as an input of a request."""
        return RawInput(self.path.read_bytes(), "image/jpeg" if self.path.suffix == ".jpg" else "image/png")


@dataclass(frozen=True)
class DemoRequest:
    """One request of the demo: a task, a photograph, texts, and the answer that a person would give."""

    task: str  # of the pocket catalogue
    picture: str
    expected: str
    texts: tuple[tuple[str, str], ...] = ()  # input -> text

    @cached_property
    def inputs(self) -> dict[str, RawInput]:
        """The request's inputs, read once."""
        texts = {name: RawInput(text.encode(), "text/plain") for name, text in self.texts}
        return {"image": picture(self.picture).raw} | texts

    def __str__(self) -> str:
        return self.picture


def _shuffled(*texts: str) -> str:
    """The texts, one a line in alphabetical order, so that the position of the right one tells nothing."""
    return "\n".join(sorted(texts))


def _captions(image: str, expected: str, *others: str) -> DemoRequest:
    return DemoRequest("zero-shot", image, expected, (("text", _shuffled(expected, *others)),))


def _ask(image: str, question: str, expected: str, *others: str) -> DemoRequest:
    return DemoRequest("vqa", image, expected, (("question", question), ("answers", _shuffled(expected, *others))))


REQUESTS = (
    DemoRequest("classify", "chelsea.png", "a cat having a striped coat"),
    DemoRequest("classify", "coffee.png", "espresso"),
    DemoRequest("classify", "camera.png", "tripod"),
    DemoRequest("classify", "china.jpg", "palace"),
    _captions("chelsea.png", "a photo of a cat", "a photo of a dog", "a photo of a horse", "a photo of a bird"),
    _captions("coffee.png", "a cup of coffee", "a glass of water", "a plate of pasta", "a bottle of wine"),
    _captions("rocket.jpg", "a rocket launch", "an airplane landing", "a sailing ship", "a lighthouse at night"),
    _captions("camera.png", "a man with a camera on a tripod", "a man cooking dinner", "a man riding a bicycle"),
    _captions("motorcycle_left.png", "a motorcycle", "a car", "a train", "a boat"),
    _captions("horse.png", "a drawing of a horse", "a drawing of a fish", "a drawing of a bird", "a drawing of a car"),
    _captions("flower.jpg", "a flower in a garden", "a tree in winter", "a bowl of fruit", "a city street"),
    _ask("chelsea.png", "What animal is this?", "a cat", "a dog", "a horse", "a bird"),
    _ask("coffee.png", "What is in the cup?", "coffee", "water", "orange juice", "milk"),
    _ask("rocket.jpg", "What is taking off?", "a rocket", "an airplane", "a helicopter", "a bird"),
    _ask("camera.png", "What does the camera stand on?", "a tripod", "a table", "a car", "a horse"),
    _ask("motorcycle_left.png", "What vehicle is this?", "a motorcycle", "a car", "a bicycle", "a truck"),
    _ask("china.jpg", "What kind of building is this?", "a palace", "a factory", "a skyscraper", "a barn"),
)
"""The demo's requests."""


def names() -> tuple[str, ...]:
    """All photographs, sorted."""
    return tuple(sorted(_PLACES))


def picture(name: str) -> Picture:
    """One photograph by name.

    Raises:
        KeyError: it is not in ``names()``.
        PicturesMissing: its package is not installed.
    """
    package, directory = _PLACES[name]
    found = importlib.util.find_spec(package)  # finds without importing, which would take seconds
    path = Path(found.origin).parent / directory / name if found and found.origin else None
    if path is None or not path.is_file():
        raise PicturesMissing(f"the photograph {name} is missing: install the [pocket] extra")
    return Picture(path)
