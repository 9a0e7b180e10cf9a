"""The usual prompts of zero-shot classification: the text around a class's name.

Picture datasets have the prompts of the CLIP paper (Radford et al. 2021, section 3.1.4; published with its code as
data/prompts.md), sounds that of CLAP (Elizalde et al. 2022). A class's score is the mean over its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

_QUALITIES = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_CIFAR = tuple(
    prompt
    for article in ("a", "the")
    for prompt in (
        *(f"a {quality}photo of {article} {{}}." for quality in _QUALITIES),
        f"a photo of {article} small {{}}.",
        f"a photo of {article} big {{}}.",
    )
)  # 18

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "cifar-10": _CIFAR,
    "cifar-100": _CIFAR,
    "food-101": ("a photo of {}, a type of food.",),
    "flowers-102": ("a photo of a {}, a type of flower.",),
    "country-211": (
        "a photo i took in {}.",
        "a photo i took while visiting {}.",
        "a photo from my home country of {}.",
        "a photo from my visit to {}.",
        "a photo showing the country of {}.",
    ),
    "esc-50": ("this is a sound of {}.",),
}


def templates(format_: str, medium: str) -> tuple[str, ...]:
    """The prompts for a format: its own, or the plain one for its medium."""
    return TEMPLATES.get(format_, ("this is a sound of {}.",) if medium == "audio" else ("a photo of a {}.",))
