"""Task specs as data, and the weights that no package delivers.

Owns where they lie. Imports nothing of this project, so that every part may read it.
"""

from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """The catalogue's task specs, such as ``pocket/classify``, sorted."""
    return tuple(sorted(path.relative_to(DIRECTORY).with_suffix("").as_posix() for path in DIRECTORY.glob("*/*.yaml")))


def path(name: str) -> Path:
    """The file of one of ``names()``.

    Raises:
        KeyError: the catalogue has no such spec.
    """
    if name not in names():
        raise KeyError(name)
    return DIRECTORY / f"{name}.yaml"
