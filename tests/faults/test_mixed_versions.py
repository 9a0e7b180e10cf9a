"""This version beside the one before: a site is upgraded under load, process by process, and in part goes back.

The version before is built from its commit. Without the project's history this is skipped, and says so.
"""

from __future__ import annotations

import subprocess
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path

import pytest

from edge_agent.config import AgentConfig
from s2m3.catalogue import load_task
from s2m3.cli.main import main
from s2m3.testbed.observer import Observer
from s2m3.testbed.site import ORCHESTRATOR, Site
from tests.patience import PATIENCE_S
from tests.steady_load import SteadyLoad

BEFORE = "ea9a317a78139c5e19b46235999069db8389222d"
"""The last commit of the version before. docs/how-to/operations.md names it, too."""
ROOT = Path(__file__).parents[2]
START_S = 4 * PATIENCE_S


@dataclass(eq=False)
class MixedSite(Site):
    """A site in which some processes run the code of another folder."""

    _: KW_ONLY
    before: Path = ROOT
    old: set[str] = field(default_factory=set)  # the names of these processes

    def _start(self, name: str, arguments: list[str]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if name in self.old:
                patch.setenv("PYTHONPATH", str(self.before))
                patch.setenv("PYTHONSAFEPATH", "1")  # or the present folder would come first
            super()._start(name, arguments)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the version before."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{BEFORE}^{{commit}}"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip(f"the history of this project isn't here: `git fetch --unshallow` brings the commit {BEFORE[:12]}")
    folder = tmp_path_factory.mktemp("before")
    packages = ["broker", "edge_agent", "orchestrator", "s2m3"]
    archive = subprocess.run([*git, "archive", BEFORE, *packages], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def says_its_interval(seen: Observer, device: str) -> bool:
    """Whether a device's agent is of this version: those of before say no interval of their heartbeats."""
    return seen.devices[device].heartbeat_interval_s is not None


def is_in_service(seen: Observer, device: str) -> bool:
    standing = seen.standings.get(device)
    return standing is not None and standing.standing == "online" and seen.devices[device].status == "online"


def runs_code_of(site: Site, name: str) -> str:
    """The folder whose code a process runs, by its environment; empty for this one."""
    variables = Path(f"/proc/{site.pid(name)}/environ").read_bytes().split(b"\0")
    found = dict(each.split(b"=", 1) for each in variables if b"=" in each)
    return found[b"PYTHONPATH"].decode() if b"PYTHONSAFEPATH" in found else ""


def epoch_of(seen: Observer) -> int:
    return seen.leader.epoch if seen.leader else 0


def replace_orchestrator(site: MixedSite, load: SteadyLoad) -> None:
    """Run the other version of the orchestrator."""
    epoch = epoch_of(site.observer)
    site.end(ORCHESTRATOR)
    site.old ^= {ORCHESTRATOR}
    site.start_orchestrator()
    site.require(lambda seen: seen.leads and epoch_of(seen) > epoch, START_S, "no leader")
    site.require(lambda seen: seen.serves(["classify"]), START_S, "not served")
    load.wait_for_answers(10)


def kill_front_door(site: MixedSite, load: SteadyLoad) -> str:
    """Kill the device of the front door, and wait until another one answers; returns its name."""
    victim = site.observer.routes["classify"].front_door[0]
    site.kill(victim)
    site.require(lambda seen: seen.standings[victim].standing == "dead", START_S, f"{victim} isn't dead")
    load.wait_for_answers(10)
    return victim


def upgrade_agent(site: MixedSite, device: str, load: SteadyLoad) -> None:
    """Drain a device, run this version of its agent, and put it back in service."""
    assert main(["drain", device, "--broker", site.url, "--timeout", "120"]) == 0
    site.end(device)
    site.old.discard(device)
    site.start_agent(device)
    site.require(lambda seen: says_its_interval(seen, device) and seen.has_heartbeats(), START_S, f"no {device}")
    assert main(["drain", device, "--undo", "--broker", site.url]) == 0
    site.require(partial(is_in_service, device=device), START_S, f"{device} isn't in service")
    load.wait_for_answers(10)


@pytest.mark.long
def test_this_version_and_the_one_before_serve_together_and_replace_each_other_without_a_lost_request(
    before: Path, tmp_path: Path
) -> None:
    configs = [AgentConfig.model_validate({"id": name, "memory": "160MiB"}) for name in ("gw-a", "gw-b")]
    old = {"gw-a", "gw-b", ORCHESTRATOR}
    with MixedSite("mosquitto", configs, logs=tmp_path, before=before, old=old) as site:
        seen = site.observer
        site.serve([load_task("pocket/classify")])
        assert {name: runs_code_of(site, name) for name in old} == dict.fromkeys(old, str(before))
        assert not any(says_its_interval(seen, device) for device in site.devices)
        with SteadyLoad(site.client) as load:
            load.wait_for_answers(10)
            # 1. agents of before with the orchestrator of this version; one agent dies, and is started again
            replace_orchestrator(site, load)
            assert not runs_code_of(site, ORCHESTRATOR)
            assert not any(says_its_interval(seen, device) for device in site.devices)
            victim = kill_front_door(site, load)
            site.start_agent(victim)
            site.require(partial(is_in_service, device=victim), START_S, f"{victim} isn't in service")
            # 2. both versions of agents beside each other, then this one only
            for device in site.devices:
                upgrade_agent(site, device, load)
            assert not site.old
            # 3. back: agents of this version with the orchestrator of before, which reads what the newer one stored
            replace_orchestrator(site, load)
            assert runs_code_of(site, ORCHESTRATOR) == str(before)
            kill_front_door(site, load)
        assert load.failures == []
