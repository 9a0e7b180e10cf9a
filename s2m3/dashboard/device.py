"""A device as the page shows it, from the last message of each kind about it. Pure.

Owns what is kept of a message: only what the page shows, for there may be a thousand devices, and a whole message takes
several times as much memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from broker.protocol.messages import Assignment, DeviceState, Heartbeat
from broker.protocol.reports import Standing, Summary

ABSENT = frozenset({"dead", "away"})
Entry = dict[str, Any]


def facts_of(message: BaseModel, *, at_core: bool = False) -> Entry:
    """The facts of a message that the page shows; of a drain only that it is there.

    No bridge carries heartbeats and assignments, so at a core a summary's modules count.
    """
    match message:
        case DeviceState(about=about, profile=profile):
            shown = {"version", "host", "cpu", "accelerator", "engines"}
            known = about.model_dump(mode="json", include=shown) if about else {}
            budget = profile.memory_bytes if profile else 0
            return {"offline": message.status == "offline", "budget": budget, "about": known}
        case Standing():
            return message.model_dump(mode="json", include={"standing", "since", "until", "why"})
        case Heartbeat():
            modules = {key: _held(each) for key, each in message.modules.items()}
            used, budget = message.memory_used_bytes, message.memory_bytes
            return {"used": used, "budget": budget, "in_flight": message.in_flight, "modules": modules}
        case Assignment():
            return {"modules": [_assigned(each) for each in message.modules]}
        case Summary():
            minute = message.last_minute.values()
            failed = sum(sum(each.errors.values()) for each in minute)
            modules = {"modules": {key: _told(each) for key, each in message.modules.items()}} if at_core else {}
            return modules | {
                "version": message.version,
                "minute": sum(each.requests for each in minute),
                "minute_failed": failed,
            }
    return {}


def _held(module: Any) -> Entry:  # noqa: ANN401 - a module of a heartbeat
    busy, waiting = module.uses, module.queue
    shown = {"name": module.module, "state": module.state, "error": module.error, "bytes": module.memory_bytes}
    return shown | {"busy": busy, "waiting": waiting}


def _told(module: Any) -> Entry:  # noqa: ANN401 - a module of a summary
    shown = {"name": module.module, "state": module.state, "error": module.error, "bytes": module.memory_bytes}
    return shown | {"role": "", "why": "", "busy": 0, "waiting": 0}


def _assigned(module: Any) -> Entry:  # noqa: ANN401 - a module of an assignment
    shown = {"key": module.spec.key, "name": module.module, "role": module.role, "why": module.why}
    return shown | {"state": "loading", "error": None, "bytes": module.spec.memory_bytes, "busy": 0, "waiting": 0}


@dataclass
class Device:
    """The facts of the last message of each kind about a device, by the name of the message's class."""

    said: dict[str, Entry] = field(default_factory=dict)
    modules: list[Entry] = field(default_factory=list)  # that it had when it was last here

    def entry(self) -> Entry:
        """The entry that the page shows of it."""
        state, standing = self.said.get("DeviceState", {}), self.said.get("Standing", {})
        heartbeat, about = self.said.get("Heartbeat", {}), state.get("about", {})
        word, here = self._standing()
        if here:
            self.modules = self._held()
        shown = self.modules if here else [each | {"state": "gone", "busy": 0, "waiting": 0} for each in self.modules]
        return {
            "standing": word,
            "here": here,
            "drain": "Drain" in self.said,
            "since": standing.get("since"),
            "until": standing.get("until"),
            "why": standing.get("why", ""),
            "version": (about or self.said.get("Summary", {})).get("version", ""),
            "host": about.get("host", ""),
            "cpu": about.get("cpu", ""),
            "accelerator": about.get("accelerator"),
            "engines": about.get("engines", []),
            "used": heartbeat.get("used", sum(each["bytes"] for each in self._told().values())) if here else 0,
            "budget": heartbeat.get("budget", 0) or state.get("budget", 0),
            "in_flight": heartbeat.get("in_flight", 0) if here else 0,
            "modules": shown,
        }

    def _standing(self) -> tuple[str, bool]:
        """The word for its standing, and whether it can serve."""
        word = self.said.get("Standing", {}).get("standing", "online")
        if self.said.get("DeviceState", {}).get("offline"):
            return (word if word in ABSENT else "offline"), False
        if "Drain" in self.said and word == "online":
            word = "draining"
        return word, word not in ABSENT

    def _held(self) -> list[Entry]:
        """Its modules: those that it must hold, in order, then others that it still has."""
        held = self._told() | self.said.get("Heartbeat", {}).get("modules", {})
        found: list[Entry] = []
        for each in self.said.get("Assignment", {}).get("modules", ()):
            has = held.pop(each["key"], {})
            found.append(each | has | {"name": each["name"], "bytes": has.get("bytes") or each["bytes"]})
        return [*found, *({"key": key, "role": "leaving", "why": "", **has} for key, has in held.items())]

    def _told(self) -> dict[str, Entry]:
        """The modules of its summary, at a core."""
        return dict(self.said.get("Summary", {}).get("modules", {}))
