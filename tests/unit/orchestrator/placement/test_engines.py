"""A site of several engines over time: where modules go, which variant a device gets, and what its memory counts."""

from __future__ import annotations

from typing import Any

import pytest

from broker.cost_model import runnable
from broker.protocol.messages import About, DeviceProfile
from broker.protocol.specs import ModuleSpec, Source, TaskSpec, Variant
from orchestrator.events import TaskDeployed
from orchestrator.membership import device as one_device
from tests.builders import chain, module, online, profile
from tests.simulated_site import Agent, Site

ABOUT = About(version="1", host="h", machine="m", cpu="c", python="3", engines=("onnxruntime 1.0",))
ONNX = ("onnx", "ctranslate2")
SMALL = Variant(engine="onnx", source=Source(hub="some/export", part="vision"), memory_bytes=30)
VISION = module("vision", 60, 2e9)
HEAD = module("head", 10, 1e7)
WITH_VARIANT = VISION.model_copy(update={"variants": (SMALL,)})
EXPORTS = {VISION.key: 50, HEAD.key: 10}


def task(*modules: ModuleSpec, name: str = "classify", **fields: Any) -> TaskSpec:
    return chain(name, *modules, image_bytes=1000, **fields)


def join(site: Site, name: str, memory_bytes: int = 200, *, speed: float = 10e9, **given: Any) -> None:
    """A device with these engines and exports says that it is there."""
    offered = profile(memory_bytes, compute_flops_per_s=speed, **given)
    agent = Agent()
    if (form := runnable(VISION if VISION.key in offered.exports else WITH_VARIANT, offered)) is not None:
        agent.memory_bytes[VISION.key] = form.memory_bytes
    known = site.agents.get(name)
    agent.session = known.session + 1 if known else 1
    site.join(name, memory_bytes, speed, agent, profile=offered, about=ABOUT)


def homes(site: Site) -> dict[str, str]:
    return {spec.key: home for spec in (VISION, HEAD) if (home := site.state.placement.where.get(spec.key))}


def test_a_module_stands_only_where_an_engine_can_run_it() -> None:
    site = Site(task(VISION, HEAD))
    join(site, "onnx", speed=100e9, engines=ONNX)
    join(site, "torch", speed=1e9)
    site.go_on(6)
    assert homes(site) == {VISION.key: "torch", HEAD.key: "torch"}
    assert site.roles()["standby"] == {}, "no standby where no engine can run it either"


def test_the_reason_names_each_device_and_the_engine_or_export_that_it_lacks() -> None:
    site = Site(task(VISION, HEAD))
    join(site, "gw-b", engines=ONNX, exports={HEAD.key: 10})
    join(site, "gw-c", engines=("ctranslate2",))
    site.go_on(3)
    assert site.route("classify").unavailable == (
        "no device can run vision: gw-b: it runs onnx, ctranslate2 and has no export of vision (s2m3 models export "
        "vision), gw-c: it runs ctranslate2, and vision needs torch; change one of these, and it is placed"
    )
    join(site, "gw-b", engines=ONNX, exports=EXPORTS)
    site.go_on(3)
    assert site.route("classify").complete


def test_an_engine_that_this_version_does_not_know_runs_nothing_and_harms_nothing() -> None:
    site = Site(task(VISION, HEAD))
    join(site, "a", engines=("tensorrt", "torch"))
    join(site, "b", engines=("tensorrt",))
    site.go_on(6)
    assert homes(site) == {VISION.key: "a", HEAD.key: "a"}
    assert site.roles()["standby"] == {}


def test_a_standby_of_another_engine_takes_over_at_once() -> None:
    site = Site(task(VISION, HEAD))
    join(site, "torch")
    join(site, "onnx", speed=5e9, engines=ONNX, exports=EXPORTS)
    site.go_on(6)
    assert site.roles()["standby"] == {"vision": ["onnx"], "head": ["onnx"]}
    site.kill("torch")
    assert site.able("classify", "vision") == ["onnx"]
    assert site.agents["onnx"].loads == 2, "nothing was loaded"


def test_a_device_that_comes_back_with_another_engine_keeps_only_what_it_can_run() -> None:
    site = Site(task(VISION, HEAD))
    join(site, "a")
    join(site, "b", speed=5e9)
    site.go_on(6)
    assert homes(site) == {VISION.key: "a", HEAD.key: "a"}
    join(site, "a", engines=ONNX, exports={HEAD.key: 10})
    site.go_on(6)
    assert site.able("classify", "vision") == ["b"]
    assert "vision" not in site.roles()["standby"]


def test_memory_counts_as_that_of_the_variant_that_a_device_runs() -> None:
    site = Site(task(WITH_VARIANT))
    join(site, "torch", 59)
    join(site, "onnx", 30, speed=1e9, engines=ONNX)
    site.go_on(3)
    assert homes(site) == {VISION.key: "onnx"}
    site = Site(task(VISION))
    join(site, "onnx", 49, engines=ONNX, exports=EXPORTS)
    site.go_on(3)
    assert "no device fits vision (50 bytes): onnx lacks 1 byte" in (site.route("classify").unavailable or "")


def test_an_assignment_has_the_variants_of_all_tasks_for_devices_that_can_read_them() -> None:
    site = Site(task(VISION, HEAD), task(WITH_VARIANT, name="caption"))
    join(site, "new")
    site.go_on(3)
    specs = {each.spec.key: each.spec for each in site.state.assignments["new"].modules}
    assert specs[VISION.key].variants == (SMALL,)
    assert specs[VISION.key].key == VISION.key
    site.join("old", 200, 100e9)
    site.kill("new")
    site.go_on(3)
    assert all(each.spec.variants == () for each in site.state.assignments["old"].modules)
    assert b"variants" not in site.state.assignments["old"].model_dump_json().encode()


def test_each_variant_has_a_measured_footprint_of_its_own() -> None:
    site = Site(task(WITH_VARIANT))
    join(site, "onnx", 100, engines=ONNX)
    site.go_on(3)
    site.agents["onnx"].memory_bytes[VISION.key] = 45
    site.go_on(1)
    assert site.state.footprints == {SMALL.key: 45}
    assert site.state.placement.facts.footprints == {SMALL.key: 45}
    join(site, "torch", 60)
    join(site, "other", 44, engines=ONNX)
    site.kill("onnx")
    site.go_on(3)
    assert homes(site) == {VISION.key: "torch"}, "60 bytes fit there, and 45 not on the other"


def test_an_export_counts_as_what_it_really_needs_on_its_own_device_only() -> None:
    site = Site(task(VISION), task(HEAD, name="other"))
    join(site, "a", 60, engines=ONNX, exports=EXPORTS)
    site.go_on(3)
    assert homes(site) == {VISION.key: "a", HEAD.key: "a"}
    site.agents["a"].memory_bytes[VISION.key] = 55
    site.go_on(3)
    assert site.state.footprints == {}
    refused = {name for name in ("classify", "other") if site.route(name).unavailable}
    assert len(refused) == 1, "55 and 10 don't fit into 60"
    join(site, "b", 60, engines=ONNX, exports=EXPORTS)
    site.go_on(6)
    assert not site.route("classify").unavailable
    assert not site.route("other").unavailable


def test_tasks_that_disagree_on_a_variant_are_told_and_the_first_is_served() -> None:
    other = SMALL.model_copy(update={"memory_bytes": 31})
    site = Site(task(WITH_VARIANT))
    join(site, "a")
    site.feed(TaskDeployed(task(VISION.model_copy(update={"variants": (other,)}), name="caption")))
    site.go_on(3)
    assert site.route("classify").complete
    assert site.route("caption").unavailable == (
        "vision's onnx variant has memory_bytes 31 here and 30 in the task classify, deployed first, for the same "
        "weights: correct one of the two files"
    )


def test_exports_that_a_birth_names_count_against_what_is_kept_of_all_devices() -> None:
    def born(offered: DeviceProfile) -> int:
        known = one_device.on_state(None, "a", online(1, offered), 0.0)
        assert known is not None
        return one_device.entries(known)

    assert born(profile(exports=EXPORTS)) == born(profile()) + 2


@pytest.mark.parametrize("beyond", [{"exports": {f"k{n}": 1 for n in range(257)}}, {"engines": ("torch",) * 9}])
def test_a_birth_with_too_many_of_them_is_refused(beyond: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at most"):
        profile(**beyond)
