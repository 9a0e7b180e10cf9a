"""A whole site on this machine, as real processes: a broker, an orchestrator, agents.

Owns their start and end, the wait until the site serves, and failures: kill, pause, cut and restart. Every process is
gone when the ``with`` block ends: it is asked to end, then killed. The agents and the orchestrator also end by
themselves when this process dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import yaml

from broker.client import Client
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.messages import Route
from broker.protocol.specs import TaskName, TaskSpec
from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker
from edge_agent.config import AgentConfig
from s2m3.testbed import tasks
from s2m3.testbed.observer import Observer
from s2m3.testbed.proxy import LinkShape, Proxy

GOODBYE_S = 5.0
SERVE_S = 120.0  # agents import torch, all at once, on as few cores as there are
LOOK_S = 0.2  # between looks whether a process ended
ORCHESTRATOR = "orchestrator"
"""The orchestrator's name among the processes and links."""
SPARE = "orchestrator-spare"
"""The name of the second orchestrator, where there is one."""


class SiteFailed(S2M3Error):
    """The site didn't start, doesn't serve its tasks, or one of its processes ended by itself."""


class Serving(NamedTuple):
    """A site that serves, a connection that watches it, and a client that asks it."""

    site: Site
    observer: Observer
    client: Client


class Site:
    """Processes that make up a site.

    Args:
        broker: ``embedded``, ``mosquitto``, or the URL of one that runs already.
        agents: the devices.
        site: the topic prefix, for a broker that others use too.
        links: the device (or ``ORCHESTRATOR``) that reaches the broker through a link of its own -> what that is like;
            the others connect directly.
        heartbeat_interval_s: how often the orchestrators expect the agents' heartbeats.
        mosquitto_settings: further lines of the configuration, when the broker is ``mosquitto``.
        logs: a directory where what the processes print outlives the site; by default it goes with it.
        spares: whether leftover memory is given to standby copies and replicas.
    """

    def __init__(
        self,
        broker: str,
        agents: Sequence[AgentConfig],
        *,
        site: str | None = None,
        links: Mapping[str, LinkShape] | None = None,
        heartbeat_interval_s: float = 1.0,
        mosquitto_settings: Sequence[str] = (),
        logs: Path | None = None,
        spares: bool = True,
    ) -> None:
        self.url = ""
        self.site = site
        self._broker = broker
        self._configs = {config.id: config for config in agents}
        self._heartbeat_interval_s = heartbeat_interval_s
        self._mosquitto_settings = mosquitto_settings
        self._logs = logs
        self._spares = spares
        self._shapes = dict(links or {})
        self._proxies: dict[str, Proxy] = {}
        self._own_broker: EmbeddedBroker | MosquittoBroker | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()
        self._directory = Path()

    @property
    def devices(self) -> tuple[str, ...]:
        """The agents' ids."""
        return tuple(self._configs)

    def __enter__(self) -> Self:
        try:
            self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-")))
            self.url = self._start_broker()
            for name, shape in self._shapes.items():
                self._proxies[name] = self._stack.enter_context(Proxy(self.url, shape))
            self._stack.callback(self.stop)
            self.start_orchestrator()
            for device in self._configs:
                self.start_agent(device)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def running(self) -> tuple[str, ...]:
        """The names of all processes that were started and not killed, the broker aside."""
        return tuple(self._processes)

    def start_orchestrator(self, name: str = ORCHESTRATOR) -> None:
        """Start the orchestrator, or a ``SPARE``; its state is its own, and survives a restart within this site."""
        arguments = ["orchestrator", "--broker", self._way(name), "--state-dir", str(self._directory / name)]
        arguments += ["--heartbeat-interval", f"{self._heartbeat_interval_s:g}"]
        arguments += [] if self._spares else ["--no-spares"]
        self._start(name, [*arguments, *(["--site", self.site] if self.site else [])])

    def start_agent(self, device: str) -> None:
        """Start, or start again, a device's agent."""
        config = self._configs[device]
        state = config.state_dir or str(self._directory / "agents")  # what it measures survives a restart, and no more
        config = config.model_copy(update={"broker": self._way(device), "site": self.site, "state_dir": state})
        path = self._directory / f"{device}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(exclude_none=True)), encoding="utf-8")
        self._start(device, ["edge_agent", "--config", str(path)])

    def pid(self, name: str) -> int:
        """The process id of the orchestrator or of a device's agent, for faults."""
        return self._processes[name].pid

    @property
    def broker_pid(self) -> int | None:
        """The process id of this site's own Mosquitto; None of another broker."""
        return self._own_broker.pid if isinstance(self._own_broker, MosquittoBroker) else None

    def proxy(self, name: str) -> Proxy:
        """The proxy of a device or the orchestrator, to be cut or measured; only of those named in ``links``."""
        return self._proxies[name]

    def kill(self, name: str) -> None:
        """End a process without warning (SIGKILL), as a power failure would."""
        process = self._processes.pop(name)
        process.kill()
        _reap(process)

    def end(self, name: str) -> None:
        """Ask a process to end (SIGTERM), and wait until it did.

        Raises:
            SiteFailed: it didn't in time, and was killed.
        """
        process = self._processes.pop(name)
        if not _end([process]):
            raise SiteFailed(f"{name} was asked to end, and didn't within {GOODBYE_S:g} s")

    def pause(self, name: str) -> None:
        """Stop a process where it stands (SIGSTOP): alive, its connections open, and hung. Waits until it is."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self, name: str) -> None:
        """Let a paused process go on; a running one isn't changed."""
        self._processes[name].send_signal(signal.SIGCONT)

    def restart_orchestrator(self) -> None:
        """Kill the orchestrator and start it again, with the state that it had written."""
        self.kill(ORCHESTRATOR)
        self.start_orchestrator()

    def kill_broker(self) -> None:
        """End the broker: every connection, and all that it keeps in memory.

        Raises:
            SiteFailed: the broker isn't this site's own.
        """
        broker = self._broker_of_ours()
        if isinstance(broker, MosquittoBroker):
            broker.kill()
        else:
            broker.stop()

    def end_broker(self) -> None:
        """Ask the broker to end, and wait until it did: Mosquitto publishes all wills first.

        Raises:
            SiteFailed: the broker isn't this site's own.
        """
        self._broker_of_ours().stop()

    def start_broker(self) -> None:
        """Start the broker again, at the same address.

        Raises:
            SiteFailed: the broker isn't this site's own.
        """
        self._broker_of_ours().start()

    def restart_broker(self) -> None:
        """End the broker and start it again, at the same address.

        Raises:
            SiteFailed: the broker isn't this site's own.
        """
        self.kill_broker()
        self.start_broker()

    def stop(self) -> None:
        """End the agents and the orchestrator, in good order; the broker goes on. Safe to call twice."""
        processes = list(self._processes.values())
        self._processes.clear()
        for process in processes:
            process.send_signal(signal.SIGCONT)  # a paused one can't end
        _end(processes)

    def check(self) -> None:
        """Check that every process still runs.

        Raises:
            SiteFailed: one ended by itself; with the end of what it printed.
        """
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise SiteFailed(f"{name} ended by itself with code {code}: {self._last_words(name)}")

    def wait_for(self, observer: Observer, holds: Callable[[Observer], bool], timeout_s: float) -> bool:
        """Look until something holds, or the time is over; says whether it holds.

        Raises:
            SiteFailed: a process ended by itself meanwhile.
        """
        until_s = time.monotonic() + timeout_s
        while not observer.wait_for(holds, LOOK_S):
            self.check()
            if time.monotonic() > until_s:
                return False
        return True

    def require(self, observer: Observer, holds: Callable[[Observer], bool], timeout_s: float, otherwise: str) -> None:
        """Wait until something holds.

        Raises:
            SiteFailed: it doesn't hold in time, with the reasons that the routes give; or a process ended.
        """
        if not self.wait_for(observer, holds, timeout_s):
            reasons = sorted({route.unavailable for route in observer.routes.values() if route.unavailable})
            raise SiteFailed("; ".join([f"{otherwise} within {timeout_s:.0f} s", *reasons]))

    def serve(
        self, observer: Observer, specs: Sequence[TaskSpec], timeout_s: float = SERVE_S, *, patient: bool = False
    ) -> dict[TaskName, Route]:
        """Deploy tasks once an orchestrator leads and every device sends heartbeats, and wait until all are served.

        Args:
            observer: watches this site.
            specs: the tasks.
            timeout_s: for all of it.
            patient: wait on after a refusal, which ends when a busy device is free again.

        Returns:
            Each task's complete route.

        Raises:
            NotConnected: the broker doesn't answer.
            SiteFailed: a task is refused or not served in time, with the reason; or a process ended.
        """
        until_s = time.monotonic() + timeout_s
        tasks.connect(observer, self.url)

        def all_online(seen: Observer) -> bool:
            return seen.leads and (not self.devices or seen.has_heartbeats(self.devices))

        self.require(observer, all_online, timeout_s, "the orchestrator and all devices were not online")
        routes = tasks.deploy(observer, specs, until_s - time.monotonic())
        self.check()
        if patient:
            names = [spec.task for spec in specs]

            def served(seen: Observer) -> bool:
                return all(name in seen.routes and seen.routes[name].complete for name in names)

            self.require(observer, served, until_s - time.monotonic(), f"{', '.join(names)} were not served")
            return {name: observer.routes[name] for name in names}
        for task, route in routes.items():
            if route is None or not route.complete:
                why = route.unavailable if route else f"not served within {timeout_s:g} s"
                raise SiteFailed(f"{task} could not be deployed: {why}")
        return {task: route for task, route in routes.items() if route}

    @contextmanager
    def serving(self, specs: Sequence[TaskSpec], timeout_s: float = SERVE_S) -> Iterator[Serving]:
        """Start the site, deploy tasks, and end the site at the end of the ``with`` block.

        Raises:
            SiteFailed: as ``serve`` does.
        """
        with (
            self,
            Observer(self.url, client_id="observer", site=self.site) as observer,
            Client(self.url, client_id="camera", site=self.site) as client,
        ):
            self.serve(observer, specs, timeout_s)
            yield Serving(self, observer, client)

    def _start(self, name: str, arguments: list[str]) -> None:
        with self._log_of(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and we end them in order
            )

    def _last_words(self, name: str) -> str:
        text = self._log_of(name).read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-12:]) or "it printed nothing"

    def _log_of(self, name: str) -> Path:
        return (self._logs or self._directory) / f"{name}.log"

    def _way(self, name: str) -> str:
        return self._proxies[name].url if name in self._proxies else self.url

    def _broker_of_ours(self) -> MosquittoBroker | EmbeddedBroker:
        if self._own_broker is None:
            raise SiteFailed(f"{self.url} is not this site's own broker: restart it where it runs")
        return self._own_broker

    def _start_broker(self) -> str:
        if self._broker.startswith("mqtt://"):
            return self._broker
        if self._broker == "embedded":
            self._own_broker = EmbeddedBroker()
        elif self._broker == "mosquitto":
            self._own_broker = MosquittoBroker(settings=self._mosquitto_settings)
        else:
            raise BadFile(
                file="--broker",
                problem=f"must be embedded, mosquitto or mqtt://host, got {self._broker!r}",
                fix="use one of these",
            )
        self._stack.enter_context(self._own_broker)
        return self._own_broker.url


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Ask them to end, all at once, and kill those that don't in time. Returns whether all ended by themselves."""
    for process in processes:
        process.terminate()
    until_s, all_heard = time.monotonic() + GOODBYE_S, True
    for process in processes:
        try:
            process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            all_heard = False
        _reap(process)
    return all_heard


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin:
        process.stdin.close()
