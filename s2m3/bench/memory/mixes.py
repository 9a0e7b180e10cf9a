"""Named mixes: sets of tasks that one site serves. Owns the catalogue's ``mixes.yaml`` (name -> description, tasks)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, RootModel

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import Id, Spec, TaskSpec
from edge_agent import catalog
from s2m3.catalogue import load_task

PATH = catalog.DIRECTORY / "mixes.yaml"


class Mix(Spec):
    """A set of tasks: catalogue names, or files."""

    description: str
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]

    def load(self) -> dict[str, TaskSpec]:
        """The tasks by name.

        Raises:
            BadFile: one is missing or wrong.
        """
        return {name: load_task(name) for name in self.tasks}


class Mixes(RootModel[dict[Id, Mix]]):
    """The file."""


def mixes() -> dict[str, Mix]:
    """All mixes by name.

    Raises:
        BadFile: the file is wrong.
    """
    return load_spec(PATH, Mixes).root


def named(name: str) -> Mix:
    """One mix.

    Raises:
        BadFile: there is no such mix.
    """
    known = mixes()
    if name not in known:
        raise BadFile(
            file=name, problem="is not the name of a mix", fix=f"name one of {', '.join(known)}, or add it to {PATH}"
        )
    return known[name]
