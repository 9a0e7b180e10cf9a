"""The verdict: a site in some numbers, and notices of what a person should look at.

Owns what counts as a notice. Pure: reads the entries of devices and tasks, as the page shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from broker.protocol.errors import ErrorCode
from broker.protocol.reports import Trace
from broker.protocol.sizes import show_count

MOST_NOTICES = 12
P95 = 0.95
_BAD = frozenset({"dead", "offline", "unresponsive"})
_WORTH_A_LOOK = frozenset({"suspect", "probation", "draining", "drained"})
Entry = Mapping[str, Any]


def verdict_of(
    devices: Mapping[str, Entry],
    tasks: Mapping[str, Entry],
    *,
    leader: Any,  # noqa: ANN401 - an entry
    bridge: Any,  # noqa: ANN401 - an entry
    requests: Iterable[Trace],
    minutes: Iterable[Entry],
    failed_at: float | None,
    unanswered: Any,  # noqa: ANN401 - an entry
    left_out: int,
) -> dict[str, Any]:
    """The verdict about these devices and tasks.

    Args:
        devices: by name.
        tasks: by name.
        leader: the entry of the orchestrator; None where none was ever heard.
        bridge: the entry of the site's bridge, at a core; else None.
        requests: the last ones.
        minutes: what each device counted in its last minute.
        failed_at: when a device died last.
        unanswered: requests at names that no task has, by name.
        left_out: the devices that are too many for the page.
    """
    notices = [*_of_the_site(leader, bridge, left_out, unanswered), *_of_devices(devices), *_of_tasks(tasks)]
    last = list(requests)
    counted = list(minutes)
    return {
        "devices": [sum(each["here"] for each in devices.values()), len(devices) + left_out],
        "tasks": [sum(each["state"] == "served" for each in tasks.values()), len(tasks)],
        **_memory(devices, tasks),
        "requests": len(last),
        "lost": sum(each.outcome == ErrorCode.DEADLINE_EXCEEDED for each in last),
        "failed": sum(each.outcome != "answered" for each in last),
        "p95_s": _p95([each.total_s for each in last if each.outcome == "answered"]),
        "minute": sum(each.get("minute", 0) for each in counted),
        "minute_failed": sum(each.get("minute_failed", 0) for each in counted),
        "failure_at": failed_at,
        "notices": notices[:MOST_NOTICES],
        "more_notices": max(0, len(notices) - MOST_NOTICES),
    }


def _memory(devices: Mapping[str, Entry], tasks: Mapping[str, Entry]) -> dict[str, int]:
    """The bytes of all tasks' modules, each held once, and what they would be if each task had its own."""
    size = {module["key"]: module["bytes"] for device in devices.values() for module in device["modules"]}
    of_tasks = [{node["key"] for node in task["nodes"].values()} for task in tasks.values()]
    once = set().union(*of_tasks)
    return {
        "shared_bytes": sum(size.get(key, 0) for key in once),
        "unshared_bytes": sum(size.get(key, 0) for keys in of_tasks for key in keys),
    }


def _p95(seconds: list[float]) -> float | None:
    ordered = sorted(seconds)
    return ordered[math.ceil(P95 * len(ordered)) - 1] if ordered else None


def _of_the_site(
    leader: Any,  # noqa: ANN401 - an entry
    bridge: Any,  # noqa: ANN401 - an entry
    left_out: int,
    unanswered: Any,  # noqa: ANN401 - an entry
) -> Iterable[dict[str, str]]:
    if bridge is not None and not bridge["up"]:
        yield _notice("bad", bridge["why"])
    elif leader is None or not leader["online"]:
        yield _notice("bad", "no orchestrator leads: nothing is placed or moved until one does")
    if left_out:
        yield _notice(
            "look",
            f"this site has {show_count(left_out, 'device')} more: the page shows the first 1,000 that it heard of",
        )
    for name, number in list((unanswered or {}).items())[:MOST_NOTICES]:
        yield _notice(
            "look",
            f"{show_count(number, 'request')} at {name or 'other names'!r}, which no task has or which name no answer",
        )


def _of_devices(devices: Mapping[str, Entry]) -> Iterable[dict[str, str]]:
    for name, device in sorted(devices.items()):
        word, why = device["standing"], device["why"]
        if word in _BAD | _WORTH_A_LOOK:
            known = f": {why}" if why and word != "offline" else ""
            yield _notice("bad" if word in _BAD else "look", f"{name} is {_spoken(word)}{known}")
        for module in device["modules"]:
            if module["state"] == "failed":
                yield _notice("bad", f"{module['name']} failed on {name}: {module['error'] or 'no reason is given'}")


def _of_tasks(tasks: Mapping[str, Entry]) -> Iterable[dict[str, str]]:
    for name, task in sorted(tasks.items()):
        if task["state"] != "served":
            yield _notice(
                "bad" if task["state"] == "unavailable" else "look", f"{name} is {task['state']}: {_why(task)}"
            )
        candidate = task["candidate"]
        if candidate and candidate["state"] == "refused":
            yield _notice(
                "look", f"a new revision of {name} is refused: {candidate.get('why') or 'no reason is given'}"
            )


def _why(task: Entry) -> str:
    missing = sorted({node["module"] for node in task["nodes"].values() if not node["devices"]})
    verb = "are" if len(missing) > 1 else "is"
    return task["why"] or f"{', '.join(missing) or 'its front door'} {verb} not ready yet"


def _spoken(standing: str) -> str:
    return {"probation": "on probation"}.get(standing, standing)


def _notice(level: str, text: str) -> dict[str, str]:
    return {"level": level, "text": text[:400]}
