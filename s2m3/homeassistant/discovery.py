"""The discovery messages of Home Assistant for devices and sources. Pure.

Owns the form of these messages, of device-based discovery: one retained message a device, with its entities as
components. An entity reads the site's own topics, so nothing is published twice. Doesn't know connections. Home
Assistant itself was never run against them: tests hold them to its schema.

Invariants: ids differ between sites, kinds and names; all of a site are below one level of topics, so that what is
there without its device or source can be found and removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from broker.protocol.topics import DEVICE_STANDING, DEVICE_STATE, DEVICE_SUMMARY, SOURCE_ANSWER, SOURCES_STATE
from broker.transport.port import Outgoing

PREFIX = "homeassistant"
EXPIRE_S = 90  # three of a device's summaries
MAX_STATE = 255  # characters of a state
MAX_DEVICES = 10_000
_ORIGIN_NAME = "s2m3"
Entity = dict[str, Any]


class Discovery:
    """The discovery messages of one site.

    Args:
        prefix: of all topics of the site.
        site: the site's own prefix, when it has one.
        version: of this software.
        root: Home Assistant's ``discovery_prefix``.
    """

    def __init__(self, prefix: str, *, site: str | None, version: str, root: str = PREFIX) -> None:
        self._prefix, self._version, self._root = prefix, version, root
        levels = (site or "").strip("/").split("/") if site else []
        self._node = "_".join(["s2m3", *levels])
        self._devices: set[str] = set()
        self._versions: dict[str, str] = {}  # device -> that of its agent
        self._sources: set[str] = set()

    # --- topics ---

    @property
    def status_topics(self) -> frozenset[str]:
        """Where Home Assistant says that it has started: its birth message doesn't follow its discovery prefix."""
        return frozenset({f"{PREFIX}/status", f"{self._root}/status"})

    @property
    def config_filter(self) -> str:
        """The filter of all discovery messages of this site."""
        return f"{self._root}/device/{self._node}/+/config"

    @property
    def published(self) -> tuple[str, ...]:
        """The filters of the topics that are written."""
        return (self.config_filter,)

    def owns(self, topic: str) -> bool:
        """Whether it is the topic of one of these messages."""
        return re.fullmatch(rf"{re.escape(self._root)}/device/{re.escape(self._node)}/[^/]+/config", topic) is not None

    # --- what changed ---

    def on_standing(self, device: str, *, is_known: bool) -> list[Outgoing]:
        """The orchestrator knows a device, or forgot it: then its entities go."""
        if is_known == (device in self._devices):
            return []
        if is_known:
            self._devices.add(device)
            return [self._message("device", device, device_config)]
        self._devices.discard(device)
        self._versions.pop(device, None)
        return [self._removal("device", device)]

    def on_summary(self, device: str, version: str) -> list[Outgoing]:
        """A device says the version of its agent."""
        if self._versions.get(device) == version or len(self._versions) >= MAX_DEVICES:
            return []
        self._versions[device] = version
        return [self._message("device", device, device_config)] if device in self._devices else []

    def on_sources(self, sources: set[str]) -> list[Outgoing]:
        """These are the sources; the entities of others go."""
        new, gone = sorted(sources - self._sources), sorted(self._sources - sources)
        self._sources = set(sources)
        return [
            *(self._message("source", name, source_config) for name in new),
            *(self._removal("source", name) for name in gone),
        ]

    def all(self) -> list[Outgoing]:
        """All messages, for Home Assistant that has started."""
        return [
            *(self._message("device", name, device_config) for name in sorted(self._devices)),
            *(self._message("source", name, source_config) for name in sorted(self._sources)),
        ]

    def stale(self, topic: str) -> list[Outgoing]:
        """The removal of a retained message of ours whose device or source isn't there any more."""
        kept = {self._topic("device", name) for name in self._devices}
        kept |= {self._topic("source", name) for name in self._sources}
        return [] if topic in kept or not self.owns(topic) else [Outgoing(topic, b"", retain=True)]

    # --- messages ---

    def _topic(self, kind: str, name: str) -> str:
        return f"{self._root}/device/{self._node}/{kind}_{name}/config"

    def _message(self, kind: str, name: str, config: Callable[[str, str, str], Entity]) -> Outgoing:
        made = config(self._prefix, f"{self._node}_{kind}_{name}", name)
        version = self._versions.get(name, "") if kind == "device" else self._version
        made["dev"] |= {"sw": version} if version else {}
        made["o"] = {"name": _ORIGIN_NAME, "sw": self._version}
        return Outgoing(self._topic(kind, name), json.dumps(made).encode(), retain=True)

    def _removal(self, kind: str, name: str) -> Outgoing:
        return Outgoing(self._topic(kind, name), b"", retain=True)


def device_config(prefix: str, identity: str, name: str) -> Entity:
    """The discovery of a device: its state, the memory of its modules, and the modules that are ready."""
    state, standing, summary = (
        topic.at(prefix, device=name) for topic in (DEVICE_STATE, DEVICE_STANDING, DEVICE_SUMMARY)
    )
    is_there = "{{ 'offline' if value_json.status == 'offline' else 'online' }}"
    of_summary: Entity = {"stat_t": summary, "exp_aft": EXPIRE_S, "avty": [{"t": state, "val_tpl": is_there}]}
    modules = "value_json.modules.values()"
    ready, others = (
        f"{modules} | {test}('state', 'eq', 'ready') | map(attribute='module') | list"
        for test in ("selectattr", "rejectattr")
    )
    return _config(
        identity,
        name,
        "agent",
        {
            "state": {
                "p": "sensor",
                "name": "State",
                "ent_cat": "diagnostic",
                "stat_t": standing,
                "val_tpl": "{{ value_json.standing }}",
                "json_attr_t": standing,
            },
            "memory": of_summary
            | {
                "p": "sensor",
                "name": "Module memory",
                "dev_cla": "data_size",
                "unit_of_meas": "B",
                "stat_cla": "measurement",
                "ent_cat": "diagnostic",
                "val_tpl": f"{{{{ {modules} | map(attribute='memory_bytes') | sum }}}}",
            },
            "modules": of_summary
            | {
                "p": "sensor",
                "name": "Modules",
                "stat_cla": "measurement",
                "ent_cat": "diagnostic",
                "val_tpl": f"{{{{ {ready} | count }}}}",
                "json_attr_t": summary,
                "json_attributes_template": f"{{{{ {{'ready': {ready}, 'not_ready': {others}}} | tojson }}}}",
            },
        },
    )


def source_config(prefix: str, identity: str, name: str) -> Entity:
    """The discovery of a source: its newest answer, and whether it is an error."""
    answer = SOURCE_ANSWER.at(prefix, source=name)
    runs = {"t": SOURCES_STATE.at(prefix), "val_tpl": "{{ 'online' if value_json.online else 'offline' }}"}
    common: Entity = {"stat_t": answer, "json_attr_t": answer, "avty": [runs]}
    return _config(
        identity,
        name,
        "source",
        {
            "answer": common
            | {
                "p": "sensor",
                "name": "Answer",
                # "None" is Home Assistant's word for an unknown state
                "val_tpl": f"{{{{ (value_json.label | default('None', true))[:{MAX_STATE}] }}}}",
            },
            "problem": common
            | {
                "p": "binary_sensor",
                "name": "Problem",
                "dev_cla": "problem",
                "ent_cat": "diagnostic",
                "val_tpl": "{{ 'ON' if value_json.error is defined else 'OFF' }}",
            },
        },
    )


def _config(identity: str, name: str, model: str, components: dict[str, Entity]) -> Entity:
    """A device of Home Assistant, with an id for each of its entities."""
    for key, entity in components.items():
        entity["uniq_id"] = f"{identity}_{key}"
        entity["def_ent_id"] = f"{entity['p']}.{re.sub('[^a-z0-9_]', '_', f'{identity}_{key}')}"
    return {"dev": {"ids": [identity], "name": name, "mf": "S2M3", "mdl": model}, "cmps": components}
