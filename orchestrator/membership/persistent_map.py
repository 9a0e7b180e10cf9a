"""An immutable map from ids to values whose changed copies cost the same, however large it is.

Owns the sharing between versions: a changed copy has its own path to each changed leaf, and shares all the others. So
two versions also show quickly where they differ. Doesn't know what the values mean.

Invariants:
- no version ever changes;
- the order of iteration follows from the ids and their changes, in every process.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import chain
from typing import Any, Generic, TypeVar
from zlib import crc32

V = TypeVar("V")
_FANOUT = 16  # branches of the map, and leaves of each branch: of 3,000 ids a leaf has some ten
Branches = Sequence[Sequence[Mapping[str, V]]]


class PersistentMap(Mapping[str, V], Generic[V]):
    """The map; ``changed`` and ``without`` return other versions. No value may be None."""

    __slots__ = ("branches", "size")

    def __init__(self, branches: Branches[V] = (({},) * _FANOUT,) * _FANOUT, size: int = 0) -> None:
        self.branches = branches
        self.size = size

    def __getitem__(self, key: str) -> V:
        place = crc32(key.encode())
        return self.branches[place % _FANOUT][place // _FANOUT % _FANOUT][key]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(chain.from_iterable(self.branches))

    def __len__(self) -> int:
        return self.size

    def items(self) -> ItemsView[str, V]:
        """All keys and values, without a search for each key."""
        return self._flat().items()

    def values(self) -> ValuesView[V]:
        """All values, without a search for each key."""
        return self._flat().values()

    def changed(self, items: Mapping[str, V]) -> PersistentMap[V]:
        """The map with these items; the others stay."""
        branches, size = self._copy(items), self.size
        for key, value in items.items():
            leaf = _leaf(branches, key)
            size += key not in leaf
            leaf[key] = value
        return PersistentMap(branches, size)

    def without(self, keys: Collection[str]) -> PersistentMap[V]:
        """The map without the items of these keys, as far as it has any."""
        branches = self._copy(keys)
        gone = sum(_leaf(branches, key).pop(key, None) is not None for key in keys)
        return PersistentMap(branches, self.size - gone)

    def differences(self, other: PersistentMap[V]) -> list[str]:
        """The keys, sorted, whose values are not the same objects in both maps."""
        return sorted(
            key
            for ours, theirs in zip(self.branches, other.branches, strict=True)
            if ours is not theirs
            for leaf, known in zip(ours, theirs, strict=True)
            if leaf is not known
            for key in {**leaf, **known}
            if key not in leaf or key not in known or leaf[key] is not known[key]
        )

    def _flat(self) -> dict[str, V]:
        flat: dict[str, V] = {}
        for leaf in chain.from_iterable(self.branches):
            flat.update(leaf)
        return flat

    def _copy(self, keys: Iterable[str]) -> list[list[dict[str, V]]]:
        """The branches with own copies of the leaves of these keys; the others are shared."""
        branches: list[Any] = list(self.branches)
        for places in {crc32(key.encode()) % _FANOUT**2 for key in keys}:
            branch, leaf = places % _FANOUT, places // _FANOUT
            if branches[branch] is self.branches[branch]:
                branches[branch] = list(branches[branch])
            branches[branch][leaf] = dict(branches[branch][leaf])
        return branches


def _leaf(branches: Sequence[Sequence[Any]], key: str) -> dict[str, Any]:
    place = crc32(key.encode())
    leaf: dict[str, Any] = branches[place % _FANOUT][place // _FANOUT % _FANOUT]
    return leaf
