"""The rights of each account of a site at the broker: the topic table, seen from its role.

Owns the roles, their words in the topic table, and the topics that only bear the account's own name. Pure: doesn't know
passwords, files or brokers. What no rule allows is forbidden, for publishing, for subscribing and for deliveries.

Invariants:
- A sensor and a device write only topics that have their own name in them. Answers are the exception: an agent may
  answer each client, and a request's id is the only secret that an answer needs. Each account of sources may write the
  answers of all sources: one of them waits as the other's spare.
- A bridge writes what crosses, below its own site's name at the core, and reads what the core deploys there. Operators
  and observers look at the sites that are bridged to theirs; operators deploy to them.
- A new topic is in no role, until its row in the table names one; a test refuses words that no role has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from broker.protocol.client_ids import client_id
from broker.protocol.errors import BadFile
from broker.protocol.specs import ID_PATTERN, INVALID_ID
from broker.protocol.topics import (
    ALL_SITES,
    BRIDGE_STATE,
    CHECK_MESSAGES,
    ORCHESTRATOR_ID,
    REQUESTS,
    RESULTS,
    SITES,
    TASK_REQUESTS,
    TOPICS,
    prefix_of,
    requests_filter,
)

DROPPED = "$SYS/broker/publish/messages/dropped"  # an agent that refuses requests asks whether the broker dropped some
MAX_FILTER_BYTES = 1024
NOT_SITES = frozenset({ALL_SITES.rpartition("/")[2]})


class Role(StrEnum):
    """The purpose of an account."""

    ORCHESTRATOR = "orchestrator"
    DEVICE = "device"
    SENSOR = "sensor"
    OPERATOR = "operator"
    OBSERVER = "observer"
    SOURCES = "sources"
    HTTP = "http"
    DASHBOARD = "dashboard"
    BRIDGE = "bridge"


WORDS: Mapping[Role, frozenset[str]] = {
    Role.ORCHESTRATOR: frozenset({"orchestrator"}),
    Role.DEVICE: frozenset({"agent", "front door"}),
    Role.SENSOR: frozenset({"sensor"}),
    Role.OPERATOR: frozenset({"operator", "observer", "sensor"}),
    Role.OBSERVER: frozenset({"observer"}),
    Role.SOURCES: frozenset({"sensor", "sources"}),
    Role.HTTP: frozenset({"sensor"}),
    Role.DASHBOARD: frozenset({"dashboard", "observer", "sensor"}),
    Role.BRIDGE: frozenset({"bridge"}),
}
"""A role's words in the topic table; ``all`` is a word of each role."""
ASKING = (Role.SENSOR, Role.SOURCES, Role.HTTP, Role.DASHBOARD)
"""The roles whose requests and answers have the account's name as ``{client}``."""
WITH_TOPICS = (Role.SOURCES, Role.OBSERVER)
"""The roles that may have topics outside the site: what sources turn into requests, and what a dashboard also uses."""
WITH_TASKS = (*ASKING, Role.DEVICE)
"""The roles that can be confined to some tasks."""
LOOKING = (Role.OPERATOR, Role.OBSERVER, Role.DASHBOARD)
"""The roles that see the sites that are bridged to this broker."""
SEVERAL = (Role.ORCHESTRATOR, Role.OPERATOR)
"""The roles with several connections at a time, whose accounts are bound to no client id."""
_OWN: Mapping[Role, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Role.ORCHESTRATOR: (("sender",), ("receiver",)),
    Role.DEVICE: (("device", "sender"), ("device", "receiver")),
    **dict.fromkeys(ASKING, (("client",), ("client",))),
}
"""The levels that bear the account's name, in topics that it writes and in those that it reads."""
_BROKERS_OWN: Mapping[Role, tuple[str, ...]] = {
    Role.DEVICE: (DROPPED,),
    Role.OBSERVER: ("$SYS/#",),
    Role.DASHBOARD: ("$SYS/#",),
    Role.OPERATOR: ("$SYS/#",),
}


@dataclass(frozen=True)
class Account:
    """A login at the broker, with its role.

    Args:
        role: what it is for.
        name: its user name; of a device also its id, of a sensor also its ``{client}``.
        tasks: those that a sensor may ask, or whose requests a device may read; empty: all.
        reads: further filters that it may subscribe to (sources, observers).
        writes: further filters that it may publish to (sources, observers).

    Raises:
        BadFile: the name or a task isn't an id, or what it has doesn't belong to its role.
    """

    role: Role
    name: str
    tasks: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, name in (("name", self.name), *(("task", task) for task in self.tasks)):
            if not re.fullmatch(ID_PATTERN.removesuffix("$"), name):
                raise BadFile(file=f"{self.role} {name!r}", problem=f"its {what} {INVALID_ID}", fix="change it")
        if self.name == ORCHESTRATOR_ID and self.role is not Role.ORCHESTRATOR:
            problem = "has the name of the orchestrator, whose tensors it would receive"
            raise BadFile(file=self.shown, problem=problem, fix="use another name")
        if self.role is Role.BRIDGE and self.name in NOT_SITES:
            problem = "has a name that means no single site"
            raise BadFile(file=self.shown, problem=problem, fix="use the site's own name")
        if self.tasks and self.role not in WITH_TASKS:
            raise BadFile(file=self.shown, problem="has no tasks", fix="write the name alone")
        if (self.reads or self.writes) and self.role not in WITH_TOPICS:
            problem = "can't have topics of its own"
            raise BadFile(file=self.shown, problem=problem, fix="only sources and observers have others")

    @property
    def shown(self) -> str:
        """Its name in sentences: ``sensor cam-1``, or ``sources`` where the name is that of its role."""
        return self.name if self.name == self.role else f"{self.role} {self.name}"

    def site(self, own: str | None) -> str | None:
        """The prefix of the topics that its client uses, at the broker of a site with this prefix of its ``own``."""
        return site_at_core(self.name) if self.role is Role.BRIDGE else own

    def logins(self, site: str | None) -> dict[str, str | None]:
        """The user names of this account, each with the only client id that it may use; None if it may use any.

        An agent has two, for a login is bound to one client id at most, and it has two connections.
        """
        if self.role is Role.DEVICE:
            connections = {self.name: "control", f"{self.name}-data": "data"}
            return {user: client_id("devices", self.name, name, site=site) for user, name in connections.items()}
        return {self.name: None if self.role in SEVERAL else self.name}


@dataclass(frozen=True)
class Rights:
    """The filters of topics that an account may publish to, subscribe to, and receive."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    receive: tuple[str, ...]


def rights_of(account: Account, prefix: str) -> Rights:
    """The rights of an account, on a site with this topic prefix."""
    if account.role is Role.BRIDGE:
        return _rights_of_bridge(account.name)
    publish = (*_filters(account, prefix, writes=True), *account.writes)
    receive = (*_filters(account, prefix, writes=False), *account.reads, *_BROKERS_OWN.get(account.role, ()))
    subscribe = receive
    if account.role is Role.DEVICE:  # it may join the share group of a front door, and read requests in no other way
        shared = {requests_filter(prefix, task) for task in account.tasks or ("+",)}
        subscribe = tuple(f"$share/+/{each}" if each in shared else each for each in receive)
    if account.role in SEVERAL:  # `s2m3 broker check` looks whether the broker shares messages among a group
        subscribe = (*subscribe, f"$share/+/{CHECK_MESSAGES.filter(prefix)}")
    if account.role in LOOKING:
        bridged = prefix_of(site_at_core("+"))
        receive, subscribe = ((*each, *_looked_at(bridged)) for each in (receive, subscribe))
        publish += crossing(bridged, "down") if account.role is Role.OPERATOR else ()
    return Rights(publish, subscribe, receive)


def site_at_core(name: str) -> str:
    """The prefix of a site's topics at its core."""
    return f"{SITES}/{name}"


def crossing(prefix: str, way: str) -> tuple[str, ...]:
    """The filters of the topics that a bridge carries ``up`` or ``down``."""
    return tuple(topic.filter(prefix) for topic in TOPICS if topic.crosses == way)


def require_outside(filters: tuple[str, ...], prefix: str) -> None:
    """Check the further filters of sources.

    Raises:
        BadFile: one isn't a filter, or can match a topic of the site or of the broker itself.
    """
    sites = prefix_of(site_at_core("+"))
    for each in filters:
        levels = each.split("/")
        is_filter = 0 < len(each.encode()) <= MAX_FILTER_BYTES and "\0" not in each
        is_filter = is_filter and all(level in {"+", "#"} or not set(level) & {"+", "#"} for level in levels)
        if not is_filter or "#" in levels[:-1]:
            raise BadFile(file=f"filter {each!r}", problem="isn't an MQTT topic filter", fix="write it like frigate/#")
        if each.startswith("$") or any(_can_match_below(levels, own.split("/")) for own in (prefix, sites)):
            problem = "can match topics of this site, of those bridged to it, or the broker's own"
            raise BadFile(
                file=f"filter {each!r}", problem=problem, fix=f"name topics outside {prefix}/, {SITES}/ and $"
            )


def _filters(account: Account, prefix: str, *, writes: bool) -> Iterator[str]:
    """The filters of the topics whose writer, or reader, is this account."""
    role, words = account.role, WORDS[account.role] | {"all"}
    name = ORCHESTRATOR_ID if role is Role.ORCHESTRATOR else account.name
    own = dict.fromkeys(_OWN.get(role, ((), ()))[0 if writes else 1], name)
    found: dict[str, None] = {}
    for topic in TOPICS:
        if words.isdisjoint((topic.writer if writes else topic.reader).split(", ")):
            continue
        if topic is TASK_REQUESTS and role in ASKING:
            continue  # it has no name of the sensor
        by_task = "task" in topic.fields and (role in ASKING or topic in REQUESTS)
        for task in (account.tasks if by_task else ()) or ("+",):
            filter_ = topic.filter(prefix, task=task, **own)
            if not writes and topic in REQUESTS:
                filter_ = requests_filter(prefix, task)
            elif not writes and topic is RESULTS:
                filter_ = f"{filter_.removesuffix('/+')}/#"  # sensors subscribe to either form
            found[filter_] = None
    yield from found


def _looked_at(prefix: str) -> Iterator[str]:
    """The filters that observers read of a site with this prefix."""
    return (topic.filter(prefix) for topic in TOPICS if {"observer", "all"} & set(topic.reader.split(", ")))


def _rights_of_bridge(name: str) -> Rights:
    own, everywhere = prefix_of(site_at_core(name)), prefix_of(ALL_SITES)
    orders = (*crossing(everywhere, "down"), *crossing(own, "down"))
    return Rights((BRIDGE_STATE.at(own), *crossing(own, "up")), orders, orders)


def _can_match_below(levels: list[str], prefix: list[str]) -> bool:
    """Whether a filter matches a topic that begins with these levels."""
    for level, wanted in zip(levels, prefix, strict=False):
        if level == "#":
            return True
        if level not in {"+", wanted} and wanted != "+":
            return False
    return len(levels) > len(prefix)
