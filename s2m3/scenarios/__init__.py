"""The library of replay scenarios, as data.

Owns where they lie. Imports nothing of this project.
"""

from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """The scenarios' names, such as ``hung-device``, sorted."""
    return tuple(sorted(path.stem for path in DIRECTORY.glob("*.yaml")))


def path(name: str) -> Path:
    """The file of one of ``names()``."""
    return DIRECTORY / f"{name}.yaml"


def goals() -> tuple[Path, ...]:
    """The files of the campaigns that measure the project's goals: one fault many times."""
    return tuple(sorted((DIRECTORY / "goals").glob("*.yaml")))
