"""Agents, orchestrators and sources tell systemd that they serve, and that their loops run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from broker.service_manager import ServiceManager
from broker.transport.connection import Connection
from broker.transport.memory import MemoryBroker
from edge_agent import events
from edge_agent.config import AgentConfig
from edge_agent.decide import step
from edge_agent.service import Agent
from orchestrator.service import Orchestrator
from s2m3.sources.files import Configuration
from s2m3.sources.service import Sources
from tests.builders import InlinePlanner, profile, uncalibrated_store
from tests.notify import supervisor
from tests.patience import PATIENCE_S
from tests.threads import running

WATCHDOG_S = 0.08
AT = "mqtt://127.0.0.1:1883"


def agent_on(broker: MemoryBroker, environ: dict[str, str]) -> Agent:
    return Agent(
        AgentConfig(id="gw-a", heartbeat_interval_s=0.05),
        profile=profile(),
        store=uncalibrated_store(100, lambda _: None),  # type: ignore[arg-type,return-value] # nothing is loaded
        manager=ServiceManager(environ),
        make_transport=broker.connect,
    )


def test_an_agent_is_ready_after_its_birth_and_says_when_it_ends(tmp_path: Path) -> None:
    with supervisor(tmp_path, WATCHDOG_S) as systemd:
        with running(agent_on(MemoryBroker(), systemd.environ)):
            systemd.wait_for("READY=1")
            systemd.wait_for("WATCHDOG=1", times=3)
        systemd.wait_for("STOPPING=1")
        assert systemd.statuses == [f"connects to the broker {AT}", f"serves as gw-a at {AT}"]


def test_an_agent_whose_loop_hangs_feeds_the_watchdog_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, hung, ends = threading.Event(), threading.Event(), threading.Event()

    def hang(*arguments: object) -> object:
        if hangs.is_set():
            hung.set()
            ends.wait()
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("edge_agent.service.step", hang)
    with supervisor(tmp_path, WATCHDOG_S) as systemd:
        agent = agent_on(MemoryBroker(), systemd.environ)
        with running(agent):
            systemd.wait_for("WATCHDOG=1", times=3)
            hangs.set()
            agent._mailbox.put_own(events.Tick())
            assert hung.wait(PATIENCE_S)
            ServiceManager(systemd.environ).status("hangs")
            systemd.wait_for("STATUS=hangs")  # what it said before has been heard
            silent = len(systemd.heard)
            assert systemd.next(timeout_s=20 * WATCHDOG_S) == []
            hangs.clear()
            ends.set()
            systemd.wait_for("WATCHDOG=1", times=2)
        assert len(systemd.heard) > silent


def test_an_orchestrator_that_waits_is_ready_too_and_its_loop_is_watched(tmp_path: Path) -> None:
    broker = MemoryBroker()

    def orchestrator(name: str, environ: dict[str, str]) -> Orchestrator:
        manager = ServiceManager(environ)
        made = {"settle_s": 0.1, "make_planner": InlinePlanner, "make_transport": broker.connect}
        return Orchestrator(Connection(), tmp_path / name, manager=manager, **made)  # type: ignore[arg-type]

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with supervisor(tmp_path / "a", WATCHDOG_S) as of_leader, supervisor(tmp_path / "b", WATCHDOG_S) as of_spare:
        with running(orchestrator("leader", of_leader.environ)):
            of_leader.wait_for("READY=1")
            with running(orchestrator("spare", of_spare.environ)):
                of_spare.wait_for("READY=1")
                of_spare.wait_for("WATCHDOG=1", times=3)
                of_leader.wait_for("WATCHDOG=1", times=3)
            of_spare.wait_for("STOPPING=1")
        of_leader.wait_for("STOPPING=1")
        assert of_leader.statuses == [f"connects to the broker {AT}", f"leads, epoch 1, at {AT}"]
        assert of_spare.statuses[-1] == "waits as the spare of the leader, epoch 1"


def test_sources_that_wait_are_ready_too(tmp_path: Path) -> None:
    broker = MemoryBroker()

    def sources(environ: dict[str, str]) -> Sources:
        manager = ServiceManager(environ)
        return Sources(Connection(), Configuration({}, None), manager=manager, make_transport=broker.connect)

    (tmp_path / "a").mkdir()
    with supervisor(tmp_path, WATCHDOG_S) as of_leader, supervisor(tmp_path / "a", WATCHDOG_S) as of_spare:
        with running(sources(of_leader.environ)):
            of_leader.wait_for("READY=1")
            with running(sources(of_spare.environ)):
                of_spare.wait_for("READY=1")
                of_spare.wait_for("WATCHDOG=1", times=3)
                of_leader.wait_for("WATCHDOG=1", times=3)
            of_spare.wait_for("STOPPING=1")
        of_leader.wait_for("STOPPING=1")
        assert of_leader.statuses[-1] == "leads, epoch 1, with 0 sources of its files"
        assert of_spare.statuses[-1] == "waits as the spare of the leader, epoch 1"


def test_a_service_says_why_it_waits_while_there_is_no_broker(tmp_path: Path) -> None:
    """Nothing is ready, and the start may take longer at each turn."""
    broker = MemoryBroker()
    with supervisor(tmp_path, WATCHDOG_S) as systemd:
        agent = agent_on(broker, systemd.environ)
        with broker.partitioned("s2m3.devices.gw-a.control"), running(agent):
            systemd.wait_for("WATCHDOG=1", times=3)
        assert systemd.statuses == [f"connects to the broker {AT}"]
        assert all("EXTEND_TIMEOUT_USEC=120000000" in lines for lines in systemd.heard if "WATCHDOG=1" in lines)
