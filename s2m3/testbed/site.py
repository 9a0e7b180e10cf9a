"""A whole site on this machine, as real processes: a broker, an orchestrator, agents; with an observer and a client.

Owns their start and end, the wait until the site serves, and failures: kill, pause, cut and restart. Every process is
gone when the ``with`` block ends: it is asked to end, then killed. The agents and the orchestrator also end by
themselves when this process dies. At a broker that runs already, a site has a topic prefix of its own, and clears at
its end what it retained.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Self

import yaml

from broker.client import Client
from broker.protocol.errors import BadFile, S2M3Error
from broker.protocol.specs import ModuleKey, TaskSpec
from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker
from broker.servers.ports import HOST, free_port, listens
from broker.transport.connection import VARIABLES, Connection, parse_url
from edge_agent.config import AgentConfig
from s2m3.testbed.faulty_agent import DEADLY_LOADS, InnerFault, file_of
from s2m3.testbed.observer import Observer
from s2m3.testbed.proxy import LinkShape, Proxy

GOODBYE_S = 5.0
SERVE_S = 120.0  # agents import torch, all at once, on as few cores as there are
LOOK_S = 0.2  # between looks whether a process ended
ORCHESTRATOR, SPARE = "orchestrator", "orchestrator-spare"  # the second one's name, where there is one
DASHBOARD = "dashboard"


class SiteFailed(S2M3Error):
    """The site didn't start, doesn't serve its tasks, or one of its processes ended by itself."""


@dataclass(eq=False)
class Site:
    """Processes that make up a site.

    Raises:
        NotConnected: the broker doesn't answer when the ``with`` block starts.
    """

    broker: str | Connection  # embedded, mosquitto, or the address of one that runs already
    agents: Sequence[AgentConfig]
    _: KW_ONLY
    name: str = "testbed"  # begins the topic prefix at a broker that runs already
    links: Mapping[str, LinkShape] = field(default_factory=dict)  # by device or orchestrator; the others have none
    heartbeat_interval_s: float = 1.0  # how often the orchestrators expect the agents' heartbeats
    mosquitto_settings: Sequence[str] = ()  # further lines of the configuration
    logs: Path | None = None  # where what the processes print outlives the site; by default it goes with it
    spares: bool = True  # whether leftover memory is given to standby copies and replicas
    inner_faults: bool = False  # whether agents can fail from inside (``fail_inside``, or by a deadly request)
    absent: Collection[str] = ()  # devices that aren't started with the others
    supervised: bool = False  # whether an agent that crashed is started again (``look_after``)

    prefix: str | None = field(default=None, init=False)  # of the topics, at a broker that others use too
    connection: Connection = field(init=False)  # to this site; its processes have it, or that of their proxies
    observer: Observer = field(init=False)
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self._configs = {config.id: config for config in self.agents}
        self._proxies: dict[str, Proxy] = {}
        self._own_broker: EmbeddedBroker | MosquittoBroker | None = None
        self._processes: dict[str, Popen[bytes]] = {}
        self._page_port = free_port()
        self.crashes: list[str] = []
        """The devices whose agents crashed, as often as they did."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2m3-")))
            if isinstance(self.broker, Connection) or "://" in self.broker:
                running = parse_url(self.broker) if isinstance(self.broker, str) else self.broker
                self.prefix = "/".join(
                    (*([running.site] if running.site else []), f"{self.name}-{uuid.uuid4().hex[:8]}")
                )
                self.connection = replace(running, site=self.prefix)
            else:
                self._own_broker = broker = self._make_broker()
                stack.enter_context(broker)
                self.connection = parse_url(broker.url)
            self.observer = stack.enter_context(Observer(self.connection))
            if self.prefix:
                stack.callback(lambda: self.observer.clear(self.devices))
            for name, shape in self.links.items():
                self._proxies[name] = stack.enter_context(Proxy(self.connection, shape))
            self.client = stack.enter_context(Client(self.connection))
            stack.callback(self.stop)
            self.start_orchestrator()
            for device in self._configs:
                if device not in self.absent:
                    self.start_agent(device)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The broker's address."""
        return self.connection.url

    @property
    def plain_url(self) -> str:
        """The broker's address for clients of MQTT 3.1.1: Mosquitto takes them at the same port."""
        return self._own_broker.plain_url if isinstance(self._own_broker, EmbeddedBroker) else self.url

    @property
    def devices(self) -> tuple[str, ...]:
        """The agents' ids."""
        return tuple(self._configs)

    @property
    def running(self) -> tuple[str, ...]:
        """The names of all processes that were started and not killed, the broker aside."""
        return tuple(self._processes)

    def start_orchestrator(self, name: str = ORCHESTRATOR) -> None:
        """Start the orchestrator, or a ``SPARE``; its state is its own, and survives a restart within this site."""
        arguments = ["orchestrator", "--state-dir", str(self._directory / name)]
        arguments += ["--heartbeat-interval", f"{self.heartbeat_interval_s:g}"]
        arguments += [] if self.spares else ["--no-spares"]
        self._start(name, arguments)

    def start_agent(self, device: str) -> None:
        """Start, or start again, a device's agent."""
        config = self._configs[device]
        state = config.state_dir or str(self._directory / "agents")  # what it measures survives a restart, and no more
        cache = config.cache or 0  # unless a site's own file asks for it: a kept output would be measured as a pass
        accelerator = "cpu" if config.accelerator == "auto" else config.accelerator  # answers are compared bit for bit
        config = config.model_copy(update={"state_dir": state, "cache": cache, "accelerator": accelerator})
        path = self._config_file(device)
        path.write_text(yaml.safe_dump(config.model_dump(exclude_none=True, exclude_unset=True)), encoding="utf-8")
        self._start(device, ["s2m3.testbed.faulty_agent" if self.inner_faults else "edge_agent", "--config", str(path)])

    def start_dashboard(self) -> None:
        """Start the page of this site, and wait until it answers at ``page``.

        Raises:
            SiteFailed: it ended by itself, as without its extra, or doesn't answer in time.
        """
        self.start(DASHBOARD)
        until_s = time.monotonic() + SERVE_S
        while not listens(self._page_port):
            self.check()
            if time.monotonic() > until_s:
                raise SiteFailed(f"the dashboard did not answer at {self.page} within {SERVE_S:g} s")
            time.sleep(LOOK_S)

    @property
    def page(self) -> str | None:
        """The address of the dashboard; None without one."""
        return f"http://{HOST}:{self._page_port}" if DASHBOARD in self._processes else None

    def reconfigure(self, device: str, **settings: object) -> None:
        """Change a device's file; it counts from its next start on."""
        self._configs[device] = AgentConfig.model_validate(
            self._configs[device].model_dump(exclude_unset=True) | settings
        )

    def start(self, name: str) -> None:
        """Start an agent, an orchestrator or the dashboard, whichever has this name."""
        if name in self._configs:
            self.start_agent(name)
        elif name == DASHBOARD:
            self._start(name, ["s2m3", "dashboard", "--port", str(self._page_port)])
        else:
            self.start_orchestrator(name)

    def take_ended(self) -> list[str]:
        """The processes that ended by themselves; they don't count as started any more."""
        ended = [name for name, process in self._now() if process.poll() is not None]
        for name in ended:
            with self._processes.pop(name):
                pass
        return ended

    def fail_inside(self, device: str, fault: InnerFault) -> None:
        """Let a device's next pass never end (hang), its next load make no progress (stall), or its disk be full."""
        file_of(self._config_file(device), fault).touch()

    def end_inside(self, device: str, fault: InnerFault) -> None:
        """End a fault inside a device that lasts: a full disk has room again."""
        file_of(self._config_file(device), fault).unlink(missing_ok=True)

    def make_deadly(self, *modules: ModuleKey) -> None:
        """Let the load of these modules crash each agent that tries it."""
        (self._directory / DEADLY_LOADS).write_text("\n".join(modules), encoding="utf-8")

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
        with self._processes.pop(name) as process:
            process.kill()

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

    def kill_broker(self) -> None:
        """End this site's own broker: every connection, and all that it keeps in memory."""
        broker = self._broker_of_ours()
        if isinstance(broker, MosquittoBroker):
            broker.kill()
        else:
            broker.stop()

    def end_broker(self) -> None:
        """Ask this site's own broker to end, and wait until it did: Mosquitto publishes all wills first."""
        self._broker_of_ours().stop()

    def start_broker(self) -> None:
        """Start this site's own broker again, at the same address."""
        self._broker_of_ours().start()

    def stop(self) -> None:
        """End the agents and the orchestrator, in good order; the broker goes on. Safe to call twice."""
        processes = list(self._processes.values())
        self._processes.clear()
        for process in processes:
            process.send_signal(signal.SIGCONT)  # a paused one can't end
        _end(processes)

    def look_after(self) -> None:
        """Count the agents that crashed, and start them again if they are supervised, as a service manager would."""
        crashed = [name for name, each in self._now() if each.poll() == -signal.SIGSEGV]
        for name in crashed if self.inner_faults else ():
            with self._processes.pop(name):
                self.crashes.append(name)
            if self.supervised:
                self.start_agent(name)

    def check(self) -> None:
        """Check that every process still runs, but for agents that crashed as they should.

        Raises:
            SiteFailed: one ended by itself; with the end of what it printed.
        """
        self.look_after()
        for name, process in self._now():
            if (code := process.poll()) is not None and self._processes.get(name) is process:
                if self.inner_faults and code == -signal.SIGSEGV:
                    continue  # it crashed since the look
                raise SiteFailed(f"{name} ended by itself with code {code}: {self._last_words(name)}")

    def wait_for(self, holds: Callable[[Observer], bool], timeout_s: float) -> bool:
        """Look until something holds, or the time is over; returns whether it holds.

        Raises:
            SiteFailed: a process ended by itself meanwhile.
        """
        until_s = time.monotonic() + timeout_s
        while not self.observer.wait_for(holds, LOOK_S):
            self.check()
            if time.monotonic() > until_s:
                return False
        return True

    def require(self, holds: Callable[[Observer], bool], timeout_s: float, otherwise: str) -> None:
        """Wait until something holds.

        Raises:
            SiteFailed: it doesn't hold in time, with the reasons that the routes give; or a process ended.
        """
        if not self.wait_for(holds, timeout_s):
            reasons = sorted({route.unavailable for route in self.observer.routes.values() if route.unavailable})
            raise SiteFailed("; ".join([f"{otherwise} within {timeout_s:.0f} s", *reasons]))

    def serve(self, specs: Sequence[TaskSpec], timeout_s: float = SERVE_S, *, patient: bool = False) -> None:
        """Deploy tasks once an orchestrator leads and every device sends heartbeats, and wait until all are served.

        Args:
            specs: the tasks.
            timeout_s: for all of it.
            patient: wait on after a refusal, which ends when a busy device is free again.

        Raises:
            SiteFailed: a task is refused or not served in time, with the reason; or a process ended.
        """
        until_s = time.monotonic() + timeout_s
        self.require(
            lambda seen: seen.leads and (not self.devices or seen.has_heartbeats(self.devices)),
            timeout_s,
            "the orchestrator and all devices were not online",
        )
        routes = self.observer.deploy(specs, until_s - time.monotonic())
        self.check()
        if patient:
            otherwise = f"{', '.join(routes)} were not served"
            self.require(lambda seen: seen.serves(routes), until_s - time.monotonic(), otherwise)
            return
        for spec in specs:
            route = routes[spec.task]
            if route is None or not route.complete:
                why = self.observer.why_refused(spec) or (route and route.unavailable)
                raise SiteFailed(f"{spec.task} could not be deployed: {why or f'not served within {timeout_s:g} s'}")

    def _now(self) -> list[tuple[str, Popen[bytes]]]:
        """The processes of this moment: another thread may kill and start some meanwhile."""
        return list(self._processes.items())

    def _start(self, name: str, arguments: list[str]) -> None:
        arguments += ["--connection", self._write_connection(name), "--until-stdin-closes"]
        with self._log_of(name).open("ab") as output:
            self._processes[name] = Popen(
                [sys.executable, "-m", *arguments],
                stdin=PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and we end them in order
                env={name: value for name, value in os.environ.items() if name not in VARIABLES},
            )

    def _config_file(self, device: str) -> Path:
        return self._directory / f"{device}.yaml"

    def _last_words(self, name: str) -> str:
        text = self._log_of(name).read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-12:]) or "it printed nothing"

    def _log_of(self, name: str) -> Path:
        return (self.logs or self._directory) / f"{name}.log"

    def _write_connection(self, name: str) -> str:
        """Write the file of a process's connection, which no list of processes shows; returns its path."""
        found = self._proxies[name].connection if name in self._proxies else self.connection
        keys = {"broker": found.url, "server_name": found.server_name, "user": found.user, "site": found.site}
        keys |= {key: str(path.resolve()) for key in ("ca", "cert", "key") if (path := getattr(found, key))}
        if found.password is not None:
            password = self._directory / "password"
            password.touch(0o600)
            password.write_text(found.password, encoding="utf-8")
            keys["password_file"] = str(password)
        path = self._directory / f"{name}.connection.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value}), encoding="utf-8")
        return str(path)

    def _broker_of_ours(self) -> MosquittoBroker | EmbeddedBroker:
        if self._own_broker is None:
            raise SiteFailed(f"{self.url} is not this site's own broker: restart it where it runs")
        return self._own_broker

    def _make_broker(self) -> MosquittoBroker | EmbeddedBroker:
        if self.broker == "embedded":
            return EmbeddedBroker()
        if self.broker == "mosquitto":
            return MosquittoBroker(settings=self.mosquitto_settings)
        problem = f"must be embedded, mosquitto or mqtt://host, got {self.broker!r}"
        raise BadFile(file="--broker", problem=problem, fix="use one of these")


def _end(processes: Sequence[Popen[bytes]]) -> bool:
    """Ask them to end, all at once, and kill those that don't in time. Returns whether all ended by themselves."""
    for process in processes:
        process.terminate()
    until_s, all_heard = time.monotonic() + GOODBYE_S, True
    for process in processes:
        with process:
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except TimeoutExpired:
                process.kill()
                all_heard = False
    return all_heard
