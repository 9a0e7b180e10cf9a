"""A published checkpoint: its configuration, and its tensors by name, from one or several safetensors files.

Owns reading; knows no network and no part. Only safetensors are opened. A repository that has only a pickle is refused
with the file's name; a pickle beside safetensors is ignored. Tensors are read one by one, by name, so that loading a
part takes no more memory than its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from broker.protocol.errors import ModuleRefused, first_line
from edge_agent.modules.weights import precision
from edge_agent.modules.weights.hub import Repository
from edge_agent.modules.weights.layout import INDEX, PICKLES, SINGLE, read_object, tensor_names
from edge_agent.modules.weights.mapped import note

T = TypeVar("T")
_WRAPPERS = {  # the prefix of each name -> how to save the model without it
    "module.": "save `model.module.state_dict()`, without the data-parallel wrapper",
    "_orig_mod.": "save `model._orig_mod.state_dict()`, without torch.compile's wrapper",
    "model.": "save the state of the model inside the training class, `trained.model.state_dict()`",
}
Config = dict[str, Any]


class Checkpoint:
    """The weights and the configuration in a repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    @cached_property
    def config(self) -> Config:
        """``config.json``.

        Raises:
            ModuleRefused: it isn't there, or is not a JSON object.
        """
        return read_object(self.repository.required("config.json"))

    @cached_property
    def model_type(self) -> str:
        """The kind of model that the configuration names."""
        return str(self.config.get("model_type", ""))

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> the file that holds it.

        Raises:
            ModuleRefused: there are no safetensors, or they and their index contradict each other.
        """
        index = self.repository.path(INDEX)
        if index is not None:
            found = read_object(index).get("weight_map")
            if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
                raise ModuleRefused(f"{index} has no weight_map of names and files: fetch it again")
            if strange := sorted(file for file in set(found.values()) if not _plain(file)):
                raise ModuleRefused(
                    f"{index} names {strange[0]}, which is not a safetensors file beside it: fetch it again"
                )
            return dict(found)
        files: dict[str, str] = {}
        for file in self._without_index():
            for name in tensor_names(self.repository.required(file)):
                if name in files:
                    raise ModuleRefused(
                        f"{self.repository} has {name} in {files[name]} and in {file}: leave one of them, or add "
                        f"{INDEX}"
                    )
                files[name] = file
        return files

    @property
    def wrapped(self) -> str:
        """The sentence about a prefix that a wrapper put before the name of every tensor; empty without one."""
        for prefix, way in _WRAPPERS.items():
            if self.files and all(name.startswith(prefix) for name in self.files):
                return f"; the names of all its tensors begin with {prefix}: {way}, or rename the tensors"
        return ""

    def read(self, names: Iterable[str], dtype: str | None = None) -> dict[str, Tensor]:
        """Tensors by name, row-major in memory of their own, in a dtype (``precision.own``), each in memory once.

        Raises:
            ModuleRefused: a file is missing or damaged.
        """
        return self._each(names, lambda opened, name: precision.own(opened.get_tensor(name), dtype))

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; neither is copied into memory.

        Raises:
            ModuleRefused: a file is missing or damaged.
        """
        mapped = self._each((name, other), lambda opened, each: opened.get_tensor(each))
        return torch.equal(mapped[name], mapped[other])

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Shapes of tensors by name, from the files' headers.

        Raises:
            ModuleRefused: a file is missing or damaged.
        """
        return self._each(names, lambda opened, name: tuple(opened.get_slice(name).get_shape()))

    def _each(self, names: Iterable[str], take: Callable[[Any, str], T]) -> dict[str, T]:
        """Take something of each name from the open file that holds it; each file is opened once."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        found: dict[str, T] = {}
        for file, wanted in sorted(by_file.items()):
            path = self.repository.required(file)
            try:
                note(path)
                with safe_open(path, "pt") as opened:
                    for name in wanted:
                        found[name] = take(opened, name)
            except (SafetensorError, OSError, ValueError) as error:
                raise ModuleRefused(f"{path} can't be read ({first_line(error)}): fetch it again") from error
        return found

    def _without_index(self) -> tuple[str, ...]:
        names = self.repository.names()
        found = tuple(name for name in names if name.endswith(".safetensors"))
        if SINGLE in found:  # beside variants of it, such as model.fp16.safetensors
            found = tuple(name for name in found if name == SINGLE or not name.startswith("model."))
        if not names and self.repository.directory is None and self.repository.path(SINGLE) is not None:
            found = (SINGLE,)
        if found:
            return found
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            raise ModuleRefused(
                f"{self.repository}/{pickles[0]} is a pickle or the like, which may run code when it is read: convert "
                f"it to {SINGLE} where you trust it, and remove it"
            )
        raise ModuleRefused(
            f"{self.repository} has no safetensors: pickles aren't read, so name a revision that has {SINGLE}, or "
            "convert it where you trust it"
        )


def _plain(file: str) -> bool:
    return file.endswith(".safetensors") and "/" not in file and "\\" not in file and not file.startswith(".")
