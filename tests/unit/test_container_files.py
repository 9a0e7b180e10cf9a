"""The files of deploy/docker name commands, options, extras, accounts and files that there are; no engine is needed."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from broker.files import load_spec
from broker.servers.site_files import PORT, Settings, Setup
from edge_agent.config import AgentConfig
from s2m3.cli.commands import CommandParser
from s2m3.cli.dashboard import PORT as PAGE_PORT
from s2m3.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "how-to" / "containers.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
SETUP = Setup(Path("/srv/s2m3/site"), Settings(hosts=("broker",)))
COMPOSE_TEXT = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\2", COMPOSE_TEXT))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "command" in service}
RESTARTED = {name: service for name, service in SERVICES.items() if name != "tool"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = {"torch", "transformers", "torchao", "triton"}
NEEDS = {"agent": {"agent", "onnx"}, "dashboard": {"dashboard"}}
"""Command -> the extras of which its image needs one."""


def arguments(words: list[str]) -> Any:
    """The options that a command's own parser reads from these words; the test fails when it refuses them."""
    parser = CommandParser(prog=f"s2m3 {words[0]}")
    parser.module = COMMANDS[words[0]][1]
    return parser.parse_args(words[1:])


def extras(names: str) -> tuple[set[str], set[str]]:
    """The extras that these bring along, and the packages of all of them."""
    found, waiting, packages = set[str](), names.split(","), set[str]()
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        for line in PROJECT["project"]["optional-dependencies"][name]:  # an extra that there is
            if own := re.fullmatch(r"s2m3\[([\w,]+)\]", line):
                waiting += own[1].split(",")
            else:
                packages.add(re.split(r"[^\w.-]", line, maxsplit=1)[0])
    return found, packages


IMAGES = {
    service["image"]: extras(service["build"]["args"]["EXTRAS"]) for service in SERVICES.values() if "build" in service
}


def mounts(service: Any) -> Iterator[tuple[str, str, str]]:
    for mount in service["volumes"]:
        source, target, *mode = mount.split(":")
        yield source, target, "".join(mode)


@pytest.mark.parametrize("name", OURS)
def test_a_services_command_is_one_that_its_image_can_run(name: str) -> None:
    service = OURS[name]
    given = arguments(service["command"])
    targets = {target for _, target, _ in mounts(service)}
    for path in filter(None, (given.connection, getattr(given, "config", None))):
        assert targets & {path, str(PurePosixPath(path).parent)}, f"{path} isn't mounted"
    needed = NEEDS.get(service["command"][0])
    assert needed is None or IMAGES[service["image"]][0] & needed


def test_only_the_image_with_torch_has_torch() -> None:
    heavy = {image for image, (_, packages) in IMAGES.items() if packages & HEAVY}
    assert heavy == {"s2m3-torch"}
    default = re.search(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)
    assert default is not None
    assert not extras(default[1])[1] & HEAVY


def test_every_service_has_an_image_that_is_built_and_ends_as_a_user_without_rights() -> None:
    assert {service["image"] for service in SERVICES.values()} == IMAGES.keys()
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
    for service in SERVICES.values():
        if "build" in service:
            assert (FOLDER / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            users = re.findall(r"^USER (.*)$", stages[service["build"]["target"]], re.MULTILINE)
            assert users[-1] == "10001:10001"
            unknown = service["build"]["args"].keys() - set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
            assert not unknown


def test_the_context_holds_what_is_copied_and_every_package() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert all((ROOT / each).exists() for each in sent)
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert {name for line in copied for name in line.split()} - {"."} <= sent
    packages = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert all(any(fnmatch(each, pattern) for each in sent) for pattern in packages)
    assert {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]} <= sent


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_right_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert (service["read_only"], service["cap_drop"], service["security_opt"]) == (
        True,
        ["ALL"],
        ["no-new-privileges:true"],
    )
    assert not {"privileged", "cap_add", "user", "pid", "devices"} & service.keys()
    assert not [source for source, _, _ in mounts(service) if "docker.sock" in source]
    assert ("ports" in service) == (name == "broker")
    assert service.get("network_mode", "") == ("host" if name in {"dashboard", "tool"} else "")


@pytest.mark.parametrize("name", RESTARTED)
def test_a_service_is_started_again_and_checked(name: str) -> None:
    service = RESTARTED[name]
    assert service["restart"] == "unless-stopped"
    command = service["healthcheck"]["test"][1]
    assert command == ("bash" if name == "broker" else "s2m3")
    if command == "s2m3":
        wait = arguments(service["healthcheck"]["test"][2:]).wait
        assert wait < int(service["healthcheck"]["timeout"].removesuffix("s"))
        assert f"WATCHDOG_USEC={wait * 1e6:.0f}" in DOCKERFILE


def test_each_container_sees_its_own_account_and_the_broker_its_own_folder() -> None:
    seen = {
        name: [source for source, _, _ in mounts(service) if "/site" in source] for name, service in RESTARTED.items()
    }
    accounts = {name: "orchestrator" if name == "spare" else name for name in RESTARTED if name != "broker"}
    expected = {name: [str(SETUP.client_folder(account))] for name, account in accounts.items()}
    assert seen == expected | {"broker": [str(SETUP.configuration.parent)]}
    assert SERVICES["broker"]["entrypoint"][-2:] == ["-c", str(SETUP.configuration)]
    readable = [mode for name, service in OURS.items() for source, _, mode in mounts(service) if "/site" in source]
    assert set(readable) == {"ro"}


@pytest.mark.parametrize("name", ["gw-a", "gw-b"])
def test_an_agents_file_names_its_account_an_engine_that_is_there_and_its_models(name: str) -> None:
    service = SERVICES[name]
    file = load_spec(FOLDER / f"{name}.yaml", AgentConfig)
    targets = {target: source for source, target, _ in mounts(service)}
    assert (file.id, targets["/etc/agent.yaml"]) == (name, f"./{name}.yaml")
    assert {"torch": "agent", "onnx": "onnx"}[file.engine] in IMAGES[service["image"]][0]
    assert file.models is None or file.models in targets
    assert targets["/dev/shm"] == "/dev/shm"  # noqa: S108 - the directory itself
    assert file.memory is None
    assert service["mem_limit"]


def test_what_must_survive_is_kept_in_volumes_where_the_image_says() -> None:
    places = dict(re.findall(r"(STATE|CACHE)_DIRECTORY=(\S+)", DOCKERFILE))
    for name, service in SERVICES.items():
        kept = {source: target for source, target, _ in mounts(service) if source in COMPOSE["volumes"]}
        if name in {"orchestrator", "spare"}:
            assert kept == {name: places["STATE"]}
        elif name in {"gw-a", "gw-b"}:
            assert kept == {name: places["CACHE"]}
    assert all(each in SERVICES for each in COMPOSE["volumes"])


def test_the_variables_are_explained_with_their_defaults() -> None:
    defaults = dict(VARIABLE.findall(COMPOSE_TEXT))
    explained = dict(re.findall(r"^#   (\w+) .*\((\S+)\)$", COMPOSE_TEXT, re.MULTILINE))
    assert explained == defaults
    assert (defaults["S2M3_PORT"], defaults["S2M3_DASHBOARD_PORT"]) == (str(PORT), str(PAGE_PORT))


def test_the_page_sets_up_the_accounts_and_gives_commands_that_there_are() -> None:
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    run = [shlex.split(line)[4:] for line in lines if line.startswith("docker compose run --rm tool ")]
    given = [arguments(words[1:]) for words in run]
    (init,) = (each for each, words in zip(given, run, strict=True) if words[1:3] == ["broker", "init"])
    assert init.folder == SETUP.folder
    named = {*init.device, *init.dashboard, "orchestrator", "operator"}  # init adds the last two itself
    assert {
        PurePosixPath(source).name for s in OURS.values() for source, _, _ in mounts(s) if "/clients/" in source
    } <= named
    assert all(f"`{image}`" in PAGE for image in IMAGES)
