"""The discovery messages, held to the schema of Home Assistant's device-based discovery; it itself was never run.

The facts are those of its documentation and of its abbreviations: which keys are required, which a platform has, and
how its templates read our messages. Jinja is what it renders templates with.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jinja2.sandbox
import pytest

from broker.protocol.codec import encode
from broker.protocol.messages import DeviceState
from broker.protocol.reports import ModuleSummary, Standing, Summary
from broker.protocol.sources import SourceAnswer, SourceError, SourcesState
from broker.protocol.topics import prefix_of, read
from broker.transport.port import Outgoing
from s2m3.homeassistant.discovery import MAX_STATE, Discovery

PLATFORMS = {"sensor", "binary_sensor"}
OF_THE_PAYLOAD = {"dev", "o", "cmps"}
OF_DEV = {"ids", "name", "mf", "mdl", "sw", "hw", "sn", "cu", "via_device"}
OF_ORIGIN = {"name", "sw", "url"}
OF_ENTITY = {
    *("p", "name", "uniq_id", "def_ent_id", "stat_t", "val_tpl", "json_attr_t", "json_attributes_template"),
    *("unit_of_meas", "dev_cla", "stat_cla", "ent_cat", "exp_aft", "avty"),
}
OF_SENSORS_ONLY = {"unit_of_meas", "stat_cla"}
CLASSES = {"sensor": {"data_size"}, "binary_sensor": {"problem"}}
ID = re.compile(r"[a-zA-Z0-9_-]+")


def made(site: str | None = None) -> Discovery:
    return Discovery(prefix_of(site), site=site, version="0.1.0")


def all_of(discovery: Discovery) -> list[Outgoing]:
    discovery.on_standing("gw-a", is_known=True)
    discovery.on_summary("gw-a", "0.2.0")
    discovery.on_sources({"door"})
    return discovery.all()


def content(message: Outgoing) -> dict[str, Any]:
    read_: dict[str, Any] = json.loads(message.payload)
    return read_


@pytest.mark.parametrize("site", [None, "plant-4", "plant-4/north"])
def test_each_message_has_the_form_that_the_schema_asks_for(site: str | None) -> None:
    messages = all_of(made(site))
    assert len(messages) == 2
    for message in messages:
        assert (message.qos, message.retain) == (1, True)
        root, kind, node, name, end = message.topic.split("/")
        assert (root, kind, end) == ("homeassistant", "device", "config")
        assert ID.fullmatch(node)
        assert ID.fullmatch(name)
        told = content(message)
        assert told.keys() == OF_THE_PAYLOAD
        assert told["dev"].keys() <= OF_DEV
        assert told["dev"]["ids"]
        assert told["o"].keys() <= OF_ORIGIN
        assert told["o"]["name"]
        for entity in told["cmps"].values():
            platform = entity["p"]
            assert platform in PLATFORMS
            assert entity.keys() <= OF_ENTITY
            assert {"uniq_id", "stat_t", "val_tpl"} <= entity.keys()
            assert platform == "sensor" or not entity.keys() & OF_SENSORS_ONLY
            assert entity.get("dev_cla") in {None, *CLASSES[platform]}
            assert entity.get("stat_cla") in {None, "measurement"}
            assert entity.get("ent_cat") in {None, "diagnostic"}
            domain, _, object_id = entity["def_ent_id"].partition(".")
            assert domain == platform
            assert re.fullmatch(r"[a-z0-9_]+", object_id)
            assert all({"t", "val_tpl"} == set(each) for each in entity.get("avty", []))
            for topic in (entity["stat_t"], *(each["t"] for each in entity.get("avty", []))):
                assert read(prefix_of(site), topic, b"") is not None, "it is a topic of this site"
            assert "object_id" not in entity, "which is gone since 2026.4"


def test_no_two_entities_share_an_id_whatever_the_sites_are_called() -> None:
    ids: list[str] = []
    for site in (None, "a", "a/b", "a-b", "device"):
        discovery = made(site)
        for name in ("door", "a-door", "b"):
            discovery.on_standing(name, is_known=True)
        discovery.on_sources({"door", "b"})
        for message in discovery.all():
            told = content(message)
            ids += [message.topic, *told["dev"]["ids"], *(each["uniq_id"] for each in told["cmps"].values())]
    assert len(set(ids)) == len(ids)


def rendered(template: str, message: object) -> str:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    return environment.from_string(template).render(value_json=json.loads(encode(message)))  # type: ignore[arg-type]


def entity(kind: str, name: str) -> dict[str, Any]:
    of_kind = next(each for each in all_of(made()) if f"/{kind}_" in each.topic)
    found: dict[str, Any] = content(of_kind)["cmps"][name]
    return found


def test_what_a_device_shows() -> None:
    modules = {
        "k1": ModuleSummary(module="a/encoder", state="ready", memory_bytes=300),
        "k2": ModuleSummary(module="a/head", state="loading", memory_bytes=45),
    }
    summary = Summary(session=1, at=1.0, version="0.1.0", modules=modules)
    assert rendered(entity("device", "memory")["val_tpl"], summary) == "345"
    assert rendered(entity("device", "modules")["val_tpl"], summary) == "1"
    attributes = rendered(entity("device", "modules")["json_attributes_template"], summary)
    assert json.loads(attributes) == {"ready": ["a/encoder"], "not_ready": ["a/head"]}
    empty = Summary(session=1, at=1.0, version="0.1.0")
    assert rendered(entity("device", "memory")["val_tpl"], empty) == "0"
    standing = Standing(device="gw-a", standing="suspect", since=1.0, why="its heartbeats are late")
    assert rendered(entity("device", "state")["val_tpl"], standing) == "suspect"
    (available,) = entity("device", "memory")["avty"]
    assert rendered(available["val_tpl"], DeviceState(status="online", session=1)) == "online"
    assert rendered(available["val_tpl"], DeviceState(status="offline", session=1)) == "offline"
    assert entity("device", "memory")["exp_aft"] == 90, "three summaries"
    assert "avty" not in entity("device", "state"), "a dead device's state is shown, too"


def test_what_a_source_shows() -> None:
    answer = SourceAnswer(source="door", task="t", at=1.0, label="a courier", score=0.5)
    failed = SourceAnswer(source="door", at=1.0, error=SourceError(code="no_route", message="no device serves it"))
    label, problem = entity("source", "answer"), entity("source", "problem")
    assert rendered(label["val_tpl"], answer) == "a courier"
    assert rendered(label["val_tpl"], failed) == "None", "which is unknown there"
    assert len(rendered(label["val_tpl"], answer.model_copy(update={"label": "x" * 9_000}))) == MAX_STATE
    assert rendered(problem["val_tpl"], answer) == "OFF"
    assert rendered(problem["val_tpl"], failed) == "ON"
    (available,) = label["avty"]
    assert rendered(available["val_tpl"], SourcesState(epoch=1, online=False, session=1)) == "offline"
    assert label["json_attr_t"] == label["stat_t"]


def test_messages_come_when_something_changes_and_not_otherwise() -> None:
    discovery = made()
    assert discovery.on_summary("gw-a", "0.1.0") == [], "the orchestrator doesn't know it"
    (first,) = discovery.on_standing("gw-a", is_known=True)
    assert content(first)["dev"]["sw"] == "0.1.0"
    assert discovery.on_standing("gw-a", is_known=True) == []
    assert discovery.on_summary("gw-a", "0.1.0") == []
    (updated,) = discovery.on_summary("gw-a", "0.2.0")
    assert content(updated)["dev"]["sw"] == "0.2.0"
    assert [each.topic for each in discovery.on_sources({"door", "cams"})] == [
        "homeassistant/device/s2m3/source_cams/config",
        "homeassistant/device/s2m3/source_door/config",
    ]
    assert discovery.on_sources({"door", "cams"}) == []
    assert len(discovery.all()) == 3


def test_a_thing_that_goes_is_removed_by_an_empty_retained_message() -> None:
    discovery = made()
    all_of(discovery)
    (device,) = discovery.on_standing("gw-a", is_known=False)
    (source,) = discovery.on_sources(set())
    assert [(each.payload, each.retain) for each in (device, source)] == [(b"", True)] * 2
    assert discovery.on_standing("gw-a", is_known=False) == []
    assert discovery.all() == []


def test_what_the_broker_kept_of_things_that_are_gone_is_removed_and_nothing_of_others() -> None:
    discovery = made("plant-4")
    all_of(discovery)
    topic = "homeassistant/device/s2m3_plant-4/source_{}/config"
    assert discovery.stale(topic.format("door")) == []
    (removed,) = discovery.stale(topic.format("old"))
    assert (removed.topic, removed.payload) == (topic.format("old"), b"")
    assert discovery.stale("homeassistant/device/s2m3/source_old/config") == [], "of another site"
    assert discovery.stale("homeassistant/device/s2m3_plant-4/x/y/config") == []
