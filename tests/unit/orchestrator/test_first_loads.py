"""Digests of first loads: the site keeps one a source, and one device's word keeps no module from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.protocol.codec import encode
from broker.protocol.messages import DeviceProfile, DeviceState, FirstLoad, HeldModule
from broker.protocol.reports import TaskStatus
from broker.protocol.specs import Source
from broker.transport.port import Delivery, LinkUp
from orchestrator.events import (
    Action,
    DeviceStateReceived,
    Event,
    HeartbeatReceived,
    Note,
    PublishRoute,
    TaskDeployed,
    Tick,
)
from orchestrator.leadership import orders as orders_file
from orchestrator.leadership.leader_files import LeaderFiles
from orchestrator.leadership.orders import NO_ORDERS, Orders, StandbyCopy, with_digests
from orchestrator.placement import first_loads
from orchestrator.state import Pace, State, initial
from orchestrator.wire import event_of
from tests.builders import PREFIX, all_of, chain, module, obedient
from tests.planned import decide_and_plan

X, Y, Z = (f"sha256:{digit * 64}" for digit in "abc")
WEIGHTS = module("x", memory_bytes=10, source=Source(hub="org/name", part="vision"))
NAME = str(WEIGHTS.recorded_as)


class Site:
    """A leader, and devices each of which finds its own digest when it loads the one module."""

    def __init__(self, orders: Orders = NO_ORDERS, weights: Any = WEIGHTS, **digests: str | None) -> None:
        self.state: State = initial(epoch=1, pace=Pace(spares=False), orders=orders)
        self.digests, self.weights = digests, weights
        self.now_s, self.seq, self.session = 0.0, 0, 0
        self.alive: dict[str, int] = {}
        self.actions: list[Action] = []
        self.feed(LinkUp(1))
        for device in digests:
            self.born(device)
        self.feed(TaskDeployed(chain("t", weights)))
        self.passes(2.0)

    def feed(self, event: Event) -> None:
        self.state, actions = decide_and_plan(self.state, event, self.now_s)
        self.actions += actions

    def born(self, device: str) -> None:
        self.session += 1
        self.alive[device] = self.session
        profile = DeviceProfile(memory_bytes=1000, compute_flops_per_s=1e9, bandwidth_bits_per_s=100e6, latency_s=0.001)
        self.feed(DeviceStateReceived(device, DeviceState(status="online", session=self.session, profile=profile)))
        self.reports(device)

    def dies(self, device: str) -> None:
        session = self.alive.pop(device)
        self.feed(DeviceStateReceived(device, DeviceState(status="offline", session=session)))
        self.passes(2.0)

    def reports(self, device: str) -> None:
        """A device loads what it is assigned, unless the assignment has the digest of a first load that it lacks."""
        self.seq += 1
        said = self.state.assignments.get(device)
        held = {}
        for each in said.modules if said else ():
            digest, first = self.digests[device], each.first_load
            differs = first is not None and digest is not None and first.digest != digest
            state: Any = "failed" if differs else "ready"
            error = first.refusal(each.spec.source, str(digest)) if first is not None and differs else None
            held[each.spec.key] = HeldModule(module=each.module, state=state, error=error, digest=digest)
        self.feed(HeartbeatReceived(device, obedient(said, self.seq, self.alive[device], modules=held)))

    def passes(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.5
            self.feed(Tick())
            for device in list(self.alive):
                self.reports(device)

    @property
    def home(self) -> str | None:
        """The device that serves the module."""
        route = self.state.routes["t"]
        return next(iter(route.nodes.values())).devices[0].device if route.complete else None

    @property
    def why(self) -> str:
        return self.state.routes["t"].unavailable or ""

    @property
    def first(self) -> FirstLoad | None:
        return self.state.orders.digests.get(NAME)


def test_a_device_with_other_weights_than_the_first_does_not_serve_them_after_it() -> None:
    site = Site(a=X)
    assert (site.home, site.first) == ("a", FirstLoad(digest=X, devices=("a",)))
    assert site.weights.key not in {X, Y}, "a digest never becomes the key"
    site.digests["b"] = Y
    site.born("b")
    site.passes(2.0)
    assert site.home == "a"
    site.dies("a")
    assert site.home is None
    assert "b: it failed there: the weights of hub:org/name#vision have the digest" in site.why
    assert f"{Y} here, and a first loaded {X}" in site.why
    assert f"write digest: {Y} into the task file" in site.why
    site.passes(3600.0)
    assert site.home is None, "no time makes other weights right"
    site.born("a")
    site.passes(2.0)
    assert site.home == "a"


def test_an_operator_who_means_the_other_weights_goes_on_by_stating_their_digest() -> None:
    site = Site(a=X)
    site.dies("a")
    site.digests["b"] = Y
    site.born("b")
    site.passes(2.0)
    assert site.home is None
    site.digests["b"] = None  # a device reports no digest of weights whose task file states it
    site.actions.clear()
    stated = chain("t", WEIGHTS.model_copy(update={"digest": Y}))
    site.feed(TaskDeployed(stated))
    site.passes(2.0)
    assert site.home == "b"
    routes = [action.route for action in all_of(site.actions, PublishRoute)]
    told = [route.unavailable for route in routes if route.revision == stated.revision]
    assert told
    assert set(told) == {None}, "the refusal of the spec before isn't told of this one"
    assert site.first == FirstLoad(digest=X, devices=("a",))


def test_weights_that_were_loaded_before_the_first_digest_was_known_count_as_failed() -> None:
    site = Site(a=None, b=None)
    home, other = ("a", "b") if site.home == "a" else ("b", "a")
    site.digests[home] = X
    site.reports(home)
    assert site.first == FirstLoad(digest=X, devices=(home,))
    site.digests[home] = Y  # it came back with other files, and its assignment is from before
    site.alive.pop(home)
    site.born(home)
    site.digests[other] = X
    site.passes(2.0)
    assert site.home == other
    assert site.first == FirstLoad(digest=X, devices=tuple(sorted((home, other), key=(home, other).index)))


def test_two_devices_outvote_one_that_is_gone_and_what_two_found_first_stays() -> None:
    site = Site(liar=Z)
    assert site.home == "liar"
    for device in "bc":
        site.digests[device] = X
        site.born(device)
    site.passes(2.0)
    assert (site.home, site.first) == ("liar", FirstLoad(digest=Z, devices=("liar",)))
    site.dies("liar")
    assert site.home in {"b", "c"}
    assert site.first == FirstLoad(digest=X, devices=("b", "c"))
    told = [note.fields for note in all_of(site.actions, Note) if note.event == "digest_outvoted"]
    assert [(fields["before"], fields["device"], fields["digest"]) for fields in told] == [(Z, "liar", X)]
    for device in "bc":
        site.dies(device)
    for device in ("d", "e", "liar"):
        site.digests[device] = Z
        site.born(device)
    site.passes(2.0)
    assert site.home is None, "three later ones don't outvote two first ones"


def test_a_device_that_gets_the_first_weights_is_told_of_no_more() -> None:
    site = Site(a=X)
    site.dies("a")
    site.digests["b"] = Y
    site.born("b")
    site.passes(2.0)
    assert site.state.other_digests[NAME].found == {"b": Y}
    site.digests["b"] = X
    site.passes(60.0)
    assert site.home == "b"
    assert site.state.other_digests == {}


def test_only_a_device_that_was_assigned_a_module_and_has_it_ready_sets_its_digest() -> None:
    site = Site(a=None, b=None)
    other = "b" if site.home == "a" else "a"
    held = {key: HeldModule(module="x", state="ready", digest=Z) for key in (WEIGHTS.key, "other")}
    site.seq += 1
    site.feed(HeartbeatReceived(other, obedient(None, site.seq, site.alive[other], modules=held)))
    assert site.state.orders.digests == {}
    assert site.home not in {None, other}
    home = str(site.home)
    for state in ("loading", "failed"):
        site.seq += 1
        loading = {WEIGHTS.key: HeldModule(module="x", state=state, digest=Z)}
        said = site.state.assignments[home]
        site.feed(HeartbeatReceived(home, obedient(said, site.seq, site.alive[home], modules=loading)))
        assert site.state.orders.digests == {}


def test_a_device_that_changes_its_word_harms_itself_alone() -> None:
    site = Site(a=X, b=X)
    home, other = ("a", "b") if site.home == "a" else ("b", "a")
    site.digests[home] = Z
    site.passes(2.0)
    assert site.home == other
    for number in range(10):
        site.digests[home] = f"sha256:{number:064}"
        site.passes(31.0)
    assert site.home == other
    assert site.first == FirstLoad(digest=X, devices=(home, other))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders_file, "MAX_DIGESTS", 3)
    monkeypatch.setattr(first_loads, "MAX_FINDERS", 2)
    orders = Site(a=X).state.orders
    for number in range(5):
        orders = with_digests(orders, {f"source {number}": FirstLoad(digest=X, devices=("a",))})
    assert [*orders.digests] == [NAME, "source 3", "source 4"], "those of deployed tasks stay"
    assert with_digests(orders, {NAME: FirstLoad(digest=X, devices=("a",))}) is orders
    site = Site(orders=Orders(digests={NAME: FirstLoad(digest=X, devices=("gone", "dead"))}), a=Y, b=Y, c=Y, d=Y)
    assert len(site.state.other_digests[NAME].found) == 2


def test_the_first_digests_outlive_the_leader_on_its_disk_and_at_its_spare(tmp_path: Path) -> None:
    site = Site(a=X)
    files = LeaderFiles(tmp_path, "mqtt://127.0.0.1:1883", PREFIX)
    files.store_orders(site.state.orders)
    kept = files.read_orders(1)
    assert kept.digests == {NAME: FirstLoad(digest=X, devices=("a",))}
    after = Site(orders=kept, b=Y)
    assert after.home is None
    assert f"a first loaded {X}" in after.why


def test_a_spare_hears_them_with_the_tasks_status() -> None:
    site = Site(a=X)
    status = TaskStatus(task="t", digests=first_loads.of_task(site.state, "t"))
    heard = event_of(PREFIX, Delivery(f"{PREFIX}/tasks/t/status", encode(status), retain=True))
    copy = StandbyCopy(NO_ORDERS, 1.5).on_event(heard, 0.0)  # type: ignore[arg-type]
    assert copy.orders.digests == {NAME: FirstLoad(digest=X, devices=("a",))}
    assert copy.with_revisions(NO_ORDERS).digests == copy.orders.digests
