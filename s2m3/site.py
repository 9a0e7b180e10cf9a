"""A whole site on this machine, as real processes: a broker, an orchestrator, agents.

Owns starting and ending them. Every process it started is gone when the ``with`` block ends, however it ends: they are
asked, then killed; and the agents and the orchestrator also end by themselves when this process dies.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import yaml

from broker.embedded import EmbeddedBroker
from broker.errors import BadFile, S2M3Error
from broker.mosquitto import MosquittoBroker
from edge_agent.config import AgentConfig

GOODBYE_S = 5.0


class SiteFailed(S2M3Error):
    """A process of the site didn't start or ended by itself."""


class Site:
    """Processes that make up a site.

    Args:
        broker: ``embedded``, ``mosquitto``, or the URL of one that runs already.
        agents: the devices.
        site: the topic prefix, for a broker that others use too.
    """

    def __init__(self, broker: str, agents: Sequence[AgentConfig], *, site: str | None = None) -> None:
        self.url = ""
        self.site = site
        self._broker = broker
        self._configs = {config.id: config for config in agents}
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

    def start_orchestrator(self) -> None:
        """Start the orchestrator; its state survives a restart within this site."""
        state = self._directory / "orchestrator"
        arguments = ["orchestrator", "--broker", self.url, "--state-dir", str(state)]
        self._start("orchestrator", [*arguments, *(["--site", self.site] if self.site else [])])

    def start_agent(self, device: str) -> None:
        """Start, or start again, a device's agent."""
        config = self._configs[device].model_copy(update={"broker": self.url, "site": self.site})
        path = self._directory / f"{device}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(exclude_none=True)), encoding="utf-8")
        self._start(device, ["edge_agent", "--config", str(path)])

    def pid(self, name: str) -> int:
        """The process id of the orchestrator or of a device's agent, for faults."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """End a process without warning (SIGKILL), as a power failure would."""
        process = self._processes.pop(name)
        process.kill()
        _reap(process)

    def stop(self) -> None:
        """End the agents and the orchestrator, in good order; the broker goes on. Safe to call twice."""
        processes = list(self._processes.values())
        self._processes.clear()
        _end(processes)

    def check(self) -> None:
        """See that every process still runs.

        Raises:
            SiteFailed: one ended by itself; with the end of what it printed.
        """
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise SiteFailed(f"{name} ended by itself with code {code}: {self._last_words(name)}")

    def _start(self, name: str, arguments: list[str]) -> None:
        with (self._directory / f"{name}.log").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--until-stdin-closes"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only us, and we end them in order
            )

    def _last_words(self, name: str) -> str:
        text = (self._directory / f"{name}.log").read_text(encoding="utf-8", errors="replace").strip()
        return "\n".join(text.splitlines()[-12:]) or "it printed nothing"

    def _start_broker(self) -> str:
        if self._broker == "embedded":
            return self._stack.enter_context(EmbeddedBroker()).url
        if self._broker == "mosquitto":
            return self._stack.enter_context(MosquittoBroker()).url
        if self._broker.startswith("mqtt://"):
            return self._broker
        raise BadFile(
            file="--broker", problem=f"{self._broker!r} is none", fix="use embedded, mosquitto or mqtt://host"
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask them to end, all at once; kill who doesn't in time."""
    for process in processes:
        process.terminate()
    until_s = time.monotonic() + GOODBYE_S
    for process in processes:
        try:
            process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        _reap(process)


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin:
        process.stdin.close()
