"""Revisions: a new spec loads beside the served one, and takes over when it is ready; a broken one changes nothing."""

from __future__ import annotations

from functools import partial

from broker.protocol.messages import OrchestratorState
from broker.protocol.specs import ModuleSpec, TaskName, TaskSpec
from broker.transport.port import LinkDown, LinkUp
from orchestrator.events import (
    Note,
    PublishRoute,
    RetainedRouteReceived,
    TaskDeployed,
    TaskRejected,
    TaskUndeployed,
)
from orchestrator.placement.revisions import why_refused
from tests.builders import all_of, chain, module, only, profile
from tests.simulated_site import Agent, Site

VISION = module("vision", 60, 2e9)
HEAD = module("head", 10, 1e7)
NEWER = module("newer", 60, 2e9)
task = partial(chain, image_bytes=1000)
FIRST = task("classify", VISION, HEAD)
SECOND = task("classify", NEWER, HEAD)
OTHER = task("other", VISION)


def onnx_task(labels: tuple[str, ...], **fields: object) -> TaskSpec:
    described = module("mine", 10, family="onnx.classifier", prepare={"picture": {"size": [8, 8]}}, labels=labels)
    return task("classify", ModuleSpec.model_validate(described.model_dump() | fields))


def onnx_site(spec: TaskSpec) -> Site:
    site = Site(spec)
    site.join("a", 200, 10e9, profile=profile(200, engines=("onnx",)))
    return site


def with_a_revision_that_loads() -> Site:
    """A site that serves the first revision while the second one loads."""
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.agents["a"].slow = True
    site.feed(TaskDeployed(SECOND))
    site.go_on(2)
    return site


def served(site: Site, name: TaskName = "classify") -> str | None:
    """The revision that a complete route serves."""
    route = site.route(name)
    return route.revision if route.complete else None


def test_a_new_revision_loads_beside_the_served_one_and_takes_over_when_it_is_ready() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    assert served(site) == FIRST.revision
    site.agents["a"].slow = True
    site.feed(TaskDeployed(SECOND))
    site.go_on(5)
    assert served(site) == FIRST.revision
    assert site.roles()["active"] == {"vision": ["a"], "head": ["a"], "newer": ["a"]}
    assert why_refused(site.state, "classify") is None
    site.agents["a"].slow = False
    site.go_on(2)
    assert served(site) == SECOND.revision
    assert site.roles()["active"] == {"newer": ["a"], "head": ["a"]}
    assert site.state.served == {}
    assert only(site.told("revision_takes_over"), Note).fields["revision"] == SECOND.revision


def test_the_route_changes_before_the_old_modules_go() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.feed(TaskDeployed(SECOND))
    actions = site.go_on(3)
    assert [a.route.revision for a in all_of(actions, PublishRoute) if a.route.task == "classify"][
        -1
    ] == SECOND.revision
    assert all(route.complete for route in (action.route for action in all_of(actions, PublishRoute)))


def test_a_revision_that_no_device_can_load_leaves_the_served_one_in_peace() -> None:
    site = Site(FIRST, a=200, b=200, c=200, d=200)
    site.go_on(3)
    for agent in site.agents.values():
        agent.refuses[NEWER.key] = "the file is damaged"
    site.feed(TaskDeployed(SECOND))
    site.go_on(8)
    assert served(site) == FIRST.revision
    assert "3 devices refused newer" in (why_refused(site.state, "classify") or "")
    assert "--replace" not in (why_refused(site.state, "classify") or "")
    loads = sum(agent.loads for agent in site.agents.values())
    site.go_on(3)
    assert sum(agent.loads for agent in site.agents.values()) == loads


def test_the_served_revision_is_served_again_at_once_while_another_one_is_refused() -> None:
    other = task("classify", NEWER, module("crown", 10, 1e7))  # no module of the served one
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.agents["a"].refuses = refuses = dict.fromkeys((spec.key for spec in other.modules.values()), "damaged")
    site.feed(TaskDeployed(other))
    site.go_on(8)
    assert served(site) == FIRST.revision
    restarted = Agent(session=2, slow=True, refuses=refuses)
    site.join("a", 200, 10e9, restarted)
    site.go_on(2)
    assert served(site) is None
    restarted.slow = False
    site.heartbeat("a")
    assert served(site) == FIRST.revision


def test_where_memory_does_not_hold_both_the_new_one_is_refused_and_says_what_replace_would_do() -> None:
    site = Site(FIRST, OTHER, a=75)
    site.go_on(3)
    site.feed(TaskDeployed(SECOND))
    site.go_on(3)
    assert (served(site), served(site, "other")) == (FIRST.revision, OTHER.revision)
    why = why_refused(site.state, "classify") or ""
    assert f"the revision {FIRST.revision} is served on" in why
    assert "--replace" in why
    site.feed(TaskUndeployed("other"))
    site.feed(TaskDeployed(SECOND.model_copy(update={"replace": True})))
    site.go_on(3)
    assert served(site) == SECOND.revision


def test_what_is_served_does_not_move_for_a_new_revision() -> None:
    site = Site(FIRST, task("other", module("small", 35)), a=80, b=50)
    site.go_on(3)
    before = site.roles()["active"]
    site.feed(TaskDeployed(task("classify", module("newer", 45), HEAD)))  # fits only if another module moved
    site.go_on(3)
    assert {name: where for name, where in site.roles()["active"].items() if name in before} == before
    assert served(site) == FIRST.revision


def test_standbys_give_way_to_a_new_revision() -> None:
    site = Site(FIRST, a=75, b=75)
    site.go_on(6)
    assert site.roles()["standby"]
    site.feed(TaskDeployed(SECOND))
    site.go_on(3)
    assert served(site) == SECOND.revision


def test_a_changed_checkpoint_under_the_same_source_is_refused_beside_the_served_one() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.feed(TaskDeployed(task("classify", VISION.model_copy(update={"memory_bytes": 61}), HEAD)))
    site.go_on(3)
    assert served(site) == FIRST.revision
    why = why_refused(site.state, "classify") or ""
    assert "digest" in why
    assert "revision" in why


def test_a_corrected_preparation_is_another_module_that_loads_beside_the_served_one() -> None:
    first, second = (onnx_task(labels) for labels in (("a", "b"), ("a", "c")))
    site = onnx_site(first)
    site.go_on(3)
    site.feed(TaskDeployed(second))
    site.go_on(3)
    assert served(site) == second.revision != first.revision


def test_a_corrected_preparation_with_the_digest_of_the_old_one_is_refused_with_what_to_do() -> None:
    digest = f"sha256:{'a' * 64}"
    first, second = (onnx_task(labels, digest=digest) for labels in (("a", "b"), ("a", "c")))
    site = onnx_site(first)
    site.go_on(3)
    site.feed(TaskDeployed(second))
    site.go_on(3)
    assert served(site) == first.revision
    why = why_refused(site.state, "classify") or ""
    assert "mine has another labels here than in the revision that is served, for the same digest" in why
    assert "remove digest, or write the new one" in why


def test_a_refused_revision_promises_nothing_and_more_memory_is_no_advice_where_no_engine_fits() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.agents["a"].refuses[NEWER.key] = "the file is damaged"
    site.feed(TaskDeployed(SECOND))
    site.go_on(8)
    why = why_refused(site.state, "classify") or ""
    assert "it failed there: the file is damaged" in why
    assert "correct the task's file" in why
    site.feed(TaskDeployed(FIRST))
    site.go_on(3)
    site.feed(TaskDeployed(task("classify", NEWER.model_copy(update={"family": "whisper_ct2.encoder"}), HEAD)))
    site.go_on(3)
    for told in (why, why_refused(site.state, "classify") or ""):
        assert "as soon as" not in told
        assert "--replace" not in told


def test_a_corrected_spec_is_not_given_the_reason_of_the_one_before() -> None:
    too_large = task("classify", VISION, module("head", 10, 1e7, output_bytes=2**30))
    site = Site(too_large, a=200)
    site.go_on(3)
    assert "can't pass the broker" in (site.route("classify").unavailable or "")
    actions = [*site.feed(TaskDeployed(FIRST)), *site.go_on(3)]
    told = [action.route for action in all_of(actions, PublishRoute)]
    assert not [route for route in told if route.unavailable and route.revision != too_large.revision]
    assert served(site) == FIRST.revision


def test_going_back_to_the_served_revision_ends_the_new_one() -> None:
    site = with_a_revision_that_loads()
    site.feed(TaskDeployed(FIRST))
    site.go_on(2)
    assert (served(site), site.state.served) == (FIRST.revision, {})
    assert "newer" not in site.roles()["active"]


def test_a_spec_that_can_not_be_read_leaves_the_served_one_in_peace() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.feed(TaskRejected("classify", "its spec is wrong"))
    site.go_on(3)
    assert served(site) == FIRST.revision
    assert why_refused(site.state, "classify") == "its spec is wrong"
    site.feed(TaskDeployed(FIRST))
    assert "classify" not in site.state.invalid


def test_the_new_one_takes_over_when_the_served_one_can_not_be_served_any_more() -> None:
    site = Site(FIRST, a=75, b=65)
    site.go_on(3)
    site.agents["a"].slow = site.agents["b"].slow = True
    site.feed(TaskDeployed(task("classify", module("small", 60))))
    site.go_on(2)
    site.agents["a"].slow = site.agents["b"].slow = False
    site.kill("a")
    site.go_on(8)
    assert served(site) == task("classify", module("small", 60)).revision


def test_the_served_revision_is_in_the_orders_of_the_next_leader() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.agents["a"].refuses[NEWER.key] = "the file is damaged"
    site.feed(TaskDeployed(SECOND))
    site.go_on(3)
    assert "--replace" not in (why_refused(site.state, "classify") or "the file is damaged")
    assert site.state.orders.served == {"classify": FIRST}
    assert site.state.orders.specs == {"classify": SECOND}
    site.restart()
    site.go_on(5)
    assert served(site) == FIRST.revision


def test_undeploying_ends_both() -> None:
    site = with_a_revision_that_loads()
    site.feed(TaskUndeployed("classify"))
    site.go_on(2)
    assert (site.roles()["active"], site.state.served) == ({}, {})


def test_undeploying_while_the_link_is_down_ends_both() -> None:
    site = with_a_revision_that_loads()
    assert site.state.served == {"classify": FIRST}
    before = OrchestratorState(epoch=1, online=True, session=1, change=site.state.orders.change)
    site.feed(LinkDown("lost"))
    site.feed(LinkUp(2))
    site.feed(before)  # the broker has all orders, and no spec
    site.go_on(5)
    assert (site.state.tasks, site.roles()["active"], site.state.served) == ({}, {}, {})


def test_a_device_for_only_this_task_may_load_its_new_revision() -> None:
    site = Site(FIRST)
    site.join("a", 200, 10e9, tasks=("classify",))
    site.go_on(3)
    site.feed(TaskDeployed(SECOND))
    site.go_on(3)
    assert served(site) == SECOND.revision


def test_settings_that_need_no_load_take_over_at_once() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    heavier = FIRST.model_copy(update={"weight": 2.0})
    site.feed(TaskDeployed(heavier))
    assert served(site) == heavier.revision


def test_the_first_messages_after_a_restart_do_not_end_what_was_served() -> None:
    site = Site(FIRST, a=200)
    site.go_on(3)
    site.restart()
    site.feed(TaskDeployed(SECOND, retained=True))
    serving = {module.key: ("a",) for module in FIRST.modules.values()}
    site.feed(RetainedRouteReceived("classify", available=True, front_door=True, serving=serving))
    site.go_on(5)
    assert served(site) == SECOND.revision
