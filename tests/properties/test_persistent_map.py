"""A persistent map is a dict whose older versions stay, and which says where two of them differ."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.membership.persistent_map import PersistentMap

KEYS = st.sampled_from([f"gw-{number}" for number in range(40)])
STEPS = st.lists(st.one_of(st.dictionaries(KEYS, st.integers(1, 5), max_size=8), st.sets(KEYS, max_size=8)))


@given(steps=STEPS)
def test_each_version_is_the_dict_that_the_same_steps_make(steps: list[dict[str, int] | set[str]]) -> None:
    versions: list[tuple[PersistentMap[int], dict[str, int]]] = [(PersistentMap(), {})]
    for step in steps:
        last, known = versions[-1]
        if isinstance(step, dict):
            versions.append((last.changed(step), {**known, **step}))
        else:
            versions.append((last.without(step), {key: value for key, value in known.items() if key not in step}))
    for version, known in versions:
        assert version == known
        assert len(version) == len(known)
        assert dict(version.items()) == known
        assert sorted(version) == sorted(known)
        assert sorted(version.values()) == sorted(known.values())
        assert not version.differences(version)
    (first, known_first), (last, known_last) = versions[len(versions) // 2], versions[-1]
    changed = {key for key in known_first.keys() | known_last if known_first.get(key) != known_last.get(key)}
    assert last.differences(first) == first.differences(last) == sorted(changed)
