"""The sites that are bridged to a core, for commands that look at them or order something there.

Owns how they are found, and that a task's spec has one place: all sites, or one of them. Doesn't know how a bridge is
written (``broker.servers.bridge``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskName
from broker.protocol.topics import ALL_SITES, BRIDGE_STATE, SITES, TASK_SPEC, prefix_of
from broker.servers.access import site_at_core
from broker.transport.connection import Connection
from broker.transport.retained import KNOWN_S, read_retained
from s2m3.testbed.observer import Observer


@contextmanager
def every_site(core: Connection) -> Iterator[tuple[Observer, dict[str, Observer]]]:
    """The observer that orders for all sites of a core, and those of its sites, by name.

    Raises:
        NotConnected: the core can't be reached.
        BrokerRefused: it refuses a subscription.
    """
    core = replace(core, client_id=None)  # there are several connections
    found = read_retained(core, BRIDGE_STATE.filter(prefix_of(site_at_core("+"))))
    names = sorted({topic.split("/")[1] for topic in found})
    with ExitStack() as stack:
        order = stack.enter_context(Observer(replace(core, site=ALL_SITES)))
        sites = {n: stack.enter_context(Observer(replace(core, site=site_at_core(n)))) for n in names}
        for observer in sites.values():
            observer.wait_for(lambda seen: seen.bridge is not None, KNOWN_S)
        yield order, sites


def require_one_place(core: Connection, task: TaskName) -> set[str]:
    """Check that what is ordered at a core for one site isn't ordered for all, and the other way round.

    Returns:
        Where at the core the task's spec is: prefixes of sites. Empty for the connection to a site's own broker.

    Raises:
        BadFile: the task's spec is at the other place.
        NotConnected: the core can't be reached.
        BrokerRefused: it refuses a subscription.
    """
    if core.site is None or core.site.split("/")[0] != SITES:
        return set()
    found = read_retained(replace(core, client_id=None), TASK_SPEC.filter(prefix_of(site_at_core("+")), task=task))
    places = {"/".join(topic.split("/")[:2]) for topic in found}
    others = places - {core.site} if core.site == ALL_SITES else places & {ALL_SITES}
    if others:
        other = min(others)
        problem = "is deployed for all sites" if other == ALL_SITES else f"is deployed for {other} alone, too"
        fix = f"undeploy it there first: `s2m3 undeploy {task} --site {other}`"
        raise BadFile(file=task, problem=problem, fix=fix)
    return places
