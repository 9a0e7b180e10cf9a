"""A site of real processes serves on after a cut, a pause, a broker's restart and an orchestrator's."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.protocol.topics import prefix_of
from broker.transport.connection import parse_url
from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.reference.pictures import REQUESTS
from s2m3.testbed.observer import Observer
from s2m3.testbed.proxy import UNSHAPED, LinkShape
from s2m3.testbed.site import ORCHESTRATOR, Site, SiteFailed
from tests.patience import PATIENCE_S

SITE_PATIENCE_S = 3 * PATIENCE_S
ASKED = REQUESTS[0]  # a classification: it needs the vision encoder only


def restart_broker(site: Site) -> None:
    site.kill_broker()
    site.start_broker()


def test_a_site_survives_a_cut_a_pause_and_the_restarts_of_broker_and_orchestrator() -> None:
    gateway = AgentConfig.model_validate({"id": "gw-a", "memory": "300MiB"})
    links = {"gw-a": LinkShape(delay_s=0.002), ORCHESTRATOR: UNSHAPED}
    with Site("mosquitto", [gateway], links=links) as site:
        seen, client = site.observer, site.client
        site.serve([load_task("pocket/classify")])

        def is_online(*, online: bool) -> bool:
            def holds(observer: Observer) -> bool:
                state = observer.devices.get("gw-a")
                return state is not None and (state.status == "online") == online

            return seen.wait_for(holds, SITE_PATIENCE_S)

        def answers() -> None:
            assert seen.wait_for(lambda s: ASKED.task in s.routes and s.routes[ASKED.task].complete, SITE_PATIENCE_S)
            response = client.request(ASKED.task, ASKED.inputs, deadline_s=SITE_PATIENCE_S)
            assert (response.result.answer or {}).get("label") == ASKED.expected, response

        def is_led_again() -> None:
            epoch = seen.leader.epoch if seen.leader else 0
            assert seen.wait_for(lambda s: s.leader is not None and s.leader.epoch > epoch, SITE_PATIENCE_S)
            assert seen.wait_for(
                lambda s: ASKED.task in s.routes and s.routes[ASKED.task].epoch > epoch, SITE_PATIENCE_S
            )

        # 1. everything goes through the links
        assert is_online(online=True)
        answers()
        proxy = site.proxy("gw-a")
        assert proxy.connections == 2  # control and data
        assert proxy.passed_bytes[1] > len(ASKED.inputs["image"].data)
        # 2. a cut: the broker misses the device; restored: it is back
        proxy.cut()
        assert is_online(online=False)
        proxy.restore()
        assert is_online(online=True)
        answers()
        # 3. a pause: it stands still while a request waits for it
        site.pause("gw-a")
        site.check()
        waiting = client.submit(ASKED.task, ASKED.inputs, deadline_s=SITE_PATIENCE_S)
        state = Path(f"/proc/{site.pid('gw-a')}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        assert state == "T"  # stopped
        assert not waiting.done()
        site.resume("gw-a")
        assert waiting.result(SITE_PATIENCE_S).ok
        # 4. a broker that forgot everything, at the same address
        restart_broker(site)
        assert seen.wait_for(lambda _: proxy.connections == 2, SITE_PATIENCE_S)
        answers()
        # 5. a new term
        site.kill(ORCHESTRATOR)
        site.start_orchestrator()
        is_led_again()
        answers()
        # 6. a broker that forgot everything, and a new term, in the same moment: no process in memory knows the task
        site.kill(ORCHESTRATOR)
        restart_broker(site)
        site.start_orchestrator()
        is_led_again()
        answers()
        site.pause("gw-a")  # and ends in good order even so


def test_a_foreign_broker_is_not_restarted(embedded_url: str) -> None:
    with Site(embedded_url, []) as site, pytest.raises(SiteFailed, match="not this site's own"):
        restart_broker(site)


@contextmanager
def subscriber(site: Site, topic: str) -> Iterator[Callable[[], str]]:
    """Each payload on a topic, as ``mosquitto_sub`` prints it.

    It acknowledges nothing: a client that writes while the broker closes its connection may lose what it has not read
    yet.
    """
    address = parse_url(site.url)
    where = ["-q", "0", "-h", address.host, "-p", str(address.port), "-t", f"{prefix_of(site.prefix)}/{topic}"]
    with subprocess.Popen(["mosquitto_sub", *where], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline
        finally:
            process.kill()


def test_a_process_that_ends_in_order_says_goodbye_and_mosquitto_publishes_all_wills() -> None:
    with Site("mosquitto", []) as site:
        seen = site.observer

        def leads(*, online: bool) -> bool:
            return seen.wait_for(lambda s: s.leader is not None and s.leader.online == online, SITE_PATIENCE_S)

        assert leads(online=True)
        site.end(ORCHESTRATOR)
        assert leads(online=False)
        site.start_orchestrator()
        assert leads(online=True)
        with subscriber(site, "orchestrator/state") as sensor:
            assert json.loads(sensor())["online"]
            site.end_broker()
            assert not json.loads(sensor())["online"]
        ended = seen.leader.session if seen.leader else None
        site.start_broker()
        assert seen.wait_for(lambda s: s.leads and s.leader is not None and s.leader.session != ended, SITE_PATIENCE_S)
        site.kill_broker()  # says nothing
        seen.listen(0.5)
        assert seen.leads


def test_an_embedded_broker_starts_again_at_its_address() -> None:
    with Site("embedded", []) as site:
        seen = site.observer
        assert seen.wait_for(lambda s: s.leader is not None and s.leader.online, SITE_PATIENCE_S)
        url, first = site.url, len(seen.sightings)
        restart_broker(site)
        assert site.url == url
        assert seen.wait_for(
            lambda s: len(s.sightings) > first, PATIENCE_S
        )  # the orchestrator publishes again that it leads
