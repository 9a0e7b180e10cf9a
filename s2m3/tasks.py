"""Deploying and undeploying: what a deployer publishes, and how it hears what came of it."""

from __future__ import annotations

from broker.codec import encode
from broker.errors import NotConnected
from broker.messages import Route
from broker.specs import TaskSpec
from broker.topics import TASK_SPEC
from broker.transport import Outgoing
from s2m3.observe import Observer

CONNECT_S = 5.0
STALE_REFUSAL_S = 2.0  # the orchestrator decides within milliseconds; a refusal that stands this long is its word


def connect(observer: Observer, url: str) -> None:
    """Wait for the broker.

    Raises:
        NotConnected: it can't be reached.
    """
    if not observer.connected(CONNECT_S):
        raise NotConnected(f"no broker answers at {url}: start one (`s2m3 broker`), or name it with --broker")


def deploy(observer: Observer, spec: TaskSpec, timeout_s: float) -> Route | None:
    """Publish a task's spec and wait until it can be served, or is refused.

    Returns:
        The task's route: complete, or with the reason why it is unavailable; None when the time was over first.
    """
    observer.publish(Outgoing(TASK_SPEC.at(observer.prefix, task=spec.task), encode(spec), retain=True))

    def route() -> Route | None:
        return observer.routes.get(spec.task)

    def served() -> bool:
        found = route()
        return found is not None and found.complete and _serves(found, spec)

    def refused() -> bool:
        found = route()
        return found is not None and found.unavailable is not None

    known = route()
    observer.wait_for(lambda _: served() or (refused() and route() is not known), min(timeout_s, STALE_REFUSAL_S))
    if not refused():
        observer.wait_for(lambda _: served() or refused(), max(0.0, timeout_s - STALE_REFUSAL_S))
    return route() if served() or refused() else None


def undeploy(observer: Observer, task: str, timeout_s: float) -> bool:
    """Clear a task's spec and wait until its route is gone; says whether it is."""
    observer.publish(Outgoing(TASK_SPEC.at(observer.prefix, task=task), b"", retain=True))
    return observer.wait_for(lambda seen: task not in seen.routes, timeout_s)


def _serves(route: Route, spec: TaskSpec) -> bool:
    """Whether a route is for this spec, not for an older one of the same name."""
    wanted = {name: (spec.module_of(name).key, node.needs) for name, node in spec.nodes.items()}
    return {name: (node.key, node.needs) for name, node in route.nodes.items()} == wanted
