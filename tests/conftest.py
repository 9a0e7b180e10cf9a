"""Brokers and recorders for the tests: one Mosquitto and one embedded broker for a whole run.

Owns the start and the end of brokers. Doesn't know any test. Invariants: each test has a topic prefix of its own
(``unique_prefix``), so tests never receive each other's messages; a test that breaks its broker starts one of its own
(``start_mosquitto``); a test that finds no broker fails with the remedy, and is never skipped. Waits are multiples of
``tests.patience.PATIENCE_S``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import structlog
from hypothesis import settings

from broker.servers.embedded import EmbeddedBroker
from broker.servers.mosquitto import MosquittoBroker
from broker.transport.connection import parse_url
from broker.transport.port import Delivery, LinkEvent
from edge_agent.modules import threads
from s2m3.cli.main import main
from s2m3.testbed import site
from s2m3.testbed.proxy import LinkShape, Proxy
from tests import warm
from tests.certificates import Authority
from tests.containers import mosquitto_container
from tests.distribution import Distribution, yield_to_sites
from tests.patience import PATIENCE_S

CONFIG = Path(__file__).parents[1] / "deploy" / "mosquitto" / "development.conf"
HOST = "127.0.0.1"
# Seconds are no property: an example may take long on a machine that is busy.
# And an ordinary run judges a change, not luck: it plays the same examples each time. ``--hypothesis-profile=drawn``
# draws others, and twice as many, and is for finding what nobody thought of.
settings.register_profile("drawn", deadline=None, max_examples=200)
settings.register_profile("repeated", deadline=None, derandomize=True, database=None)
settings.load_profile("repeated")
# A shell that starts this run in the background has it ignore SIGINT, and so would every process under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


_INSTALL = "install Mosquitto (apt-get install mosquitto mosquitto-clients), or start a Docker engine"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Distribution | None:
    """The distribution of test files over processes (``--dist=loadfile``); None for other kinds."""
    return Distribution(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Let the process that computes give way to those with sites."""
    yield_to_sites(config)


class Recorder:
    """An inbox that records every event, for tests that wait for one."""

    def __init__(self) -> None:
        self._events: list[LinkEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: LinkEvent) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    @property
    def events(self) -> tuple[LinkEvent, ...]:
        """All events, in order."""
        with self._changed:
            return tuple(self._events)

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """The messages among the events."""
        return tuple(event for event in self.events if isinstance(event, Delivery))

    def wait_for(self, wanted: type | Callable[[Any], object], *, count: int = 1, timeout_s: float = PATIENCE_S) -> Any:
        """Wait for the ``count``-th event of a type, or that satisfies a predicate; earlier events count."""
        fits = (lambda event: isinstance(event, wanted)) if isinstance(wanted, type) else wanted
        found: list[LinkEvent] = []

        def enough() -> bool:
            found[:] = [event for event in self._events if fits(event)]
            return len(found) >= count

        with self._changed:
            if not self._changed.wait_for(enough, timeout_s):
                pytest.fail(f"waited {timeout_s} s for {count} of {wanted}, got {len(found)}; all: {self._brief()}")
            return found[count - 1]

    def clear(self) -> None:
        """Forget the events so far."""
        with self._changed:
            self._events.clear()

    def _brief(self) -> list[str]:
        return [repr(event)[:200] for event in self._events[-20:]]


def development_config(listener: str) -> str:
    """The development configuration with another listener."""
    text, changed = re.subn(r"^listener .*$", listener, CONFIG.read_text(), flags=re.MULTILINE)
    assert changed == 1
    return text


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that a test runs in this process sets up the log; the next test starts without that."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """The threads of a pass that a test sets for its process aren't those of the next test: bits depend on them."""
    torch = sys.modules.get("torch")
    limit, of_torch = threads._InForce.count, torch.get_num_threads() if torch else 0
    yield
    threads._InForce.count = limit
    if torch and torch.get_num_threads() != of_torch:
        torch.set_num_threads(of_torch)


@pytest.fixture(scope="session", autouse=True)
def warm_starts() -> Iterator[None]:
    """The processes of sites start without seconds of imports; the demo and the commands start theirs as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "Popen", warm.start)
        yield


@pytest.fixture
def exit_code() -> Callable[[Sequence[str]], int]:
    """Runs the command line in this process; returns its exit code, that of a refused argument too."""

    def run(arguments: Sequence[str]) -> int:
        try:
            return main(arguments)
        except SystemExit as error:
            return int(error.code or 0)

    return run


@pytest.fixture
def burst() -> Iterator[Callable[[], int]]:
    """Fills 120 MB and frees them; returns what this process held meanwhile, in bytes. They stay with the allocator.

    Twice what the tests expect back, so that what else the process allocates meanwhile decides none of them.
    """
    ends: list[Any] = []

    def make() -> int:
        parts = [np.ones(60_000, np.uint8) for _ in range(2000)]
        ends.append(parts[-1])  # at the end of the heap, so that the allocator alone can't shrink it
        return int(psutil.Process().memory_info().rss)

    yield make
    assert all(part.all() for part in ends)


@pytest.fixture(scope="session")
def mosquitto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Mosquitto for the whole run: in a container if Docker answers, otherwise the program."""
    folder = tmp_path_factory.mktemp("mosquitto")
    config = folder / "container.conf"
    config.write_text(development_config("listener 1883 0.0.0.0"))
    config.chmod(0o644)
    with mosquitto_container(config) as url:
        if url is not None:
            yield url
            return
        with MosquittoBroker() as broker:
            yield broker.url


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that this process and its children trust, as they would one of their system."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    os.environ["SSL_CERT_FILE"] = str(made.file)
    return made


@pytest.fixture(scope="session")
def mosquitto_tls_url(authority: Authority) -> Iterator[str]:
    """A real Mosquitto that speaks TLS, for the whole run."""
    with MosquittoBroker(settings=authority.issue("broker", HOST).settings(authority.file)) as broker:
        yield f"mqtts://{HOST}:{broker.port}"


@pytest.fixture(scope="session")
def embedded_url() -> Iterator[str]:
    """The broker that pip installs, for the whole run."""
    with EmbeddedBroker() as broker:
        yield broker.url


@pytest.fixture(scope="session", params=["mosquitto", "mosquitto_tls", "embedded"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Each real broker in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def start_mosquitto() -> Iterator[Callable[..., MosquittoBroker]]:
    """Starts Mosquittos to stop, kill and restart; takes further lines of configuration."""
    with contextlib.ExitStack() as stack:
        yield lambda *settings: stack.enter_context(MosquittoBroker(settings=settings))


@pytest.fixture
def mosquitto_process(start_mosquitto: Callable[..., MosquittoBroker]) -> MosquittoBroker:
    """A running Mosquitto for one test."""
    return start_mosquitto()


@pytest.fixture
def proxy_to() -> Iterator[Callable[..., Proxy]]:
    """Makes proxies to a broker, to be cut or closed; ``bytes_per_s`` is the bandwidth of each direction."""
    with contextlib.ExitStack() as stack:

        def make(url: str, bytes_per_s: float | None = None) -> Proxy:
            bits_per_s = None if bytes_per_s is None else 8 * bytes_per_s
            shape = LinkShape(up_bits_per_s=bits_per_s, down_bits_per_s=bits_per_s)
            return stack.enter_context(
                Proxy(parse_url(url), shape, buffer_bytes=None if bits_per_s is None else 16 * 1024)
            )

        yield make


@pytest.fixture
def make_recorder() -> Callable[[], Recorder]:
    """Makes recorders."""
    return Recorder


@pytest.fixture
def recorder() -> Recorder:
    """An inbox that records every event."""
    return Recorder()


@pytest.fixture
def patience_s() -> float:
    """The time that a test waits before it fails."""
    return PATIENCE_S


@pytest.fixture
def unique_prefix() -> str:
    """A topic prefix, and a stem for client ids, that no other test has."""
    return f"test-{uuid.uuid4().hex[:12]}"
