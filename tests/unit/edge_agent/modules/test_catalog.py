"""The catalogue is found by name, from wherever the command runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.protocol.specs import TaskSpec
from edge_agent import catalog
from s2m3.catalogue import load_task


@pytest.mark.parametrize("name", catalog.names())
def test_every_task_of_the_catalogue_is_a_sound_spec_named_after_its_file(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_task(name).task == name.rpartition("/")[2]


def test_the_pocket_tasks_are_there() -> None:
    assert {f"pocket/{task}" for task in ("ask", "classify", "speech", "vqa", "zero-shot")} <= set(catalog.names())


def test_the_pocket_tasks_share_their_encoders() -> None:
    tasks = [load_task(f"pocket/{task}") for task in ("classify", "zero-shot", "vqa")]
    keys = [{module.key for module in task.modules.values()} for task in tasks]
    assert len(keys[0] & keys[1] & keys[2]) == 2  # the vision encoder and the classifier
    assert keys[1] == keys[2]  # and the text encoder and the head


@pytest.mark.parametrize(
    ("embeds", "ranks"),
    [(f"pocket/embed-{kind}", "pocket/zero-shot") for kind in ("image", "text")]
    + [
        (f"hub/embed-{kind}-{model}", f"hub/retrieval-{model}")
        for kind in ("image", "text")
        for model in ("clip-b16", "clip-b32", "siglip-b16")
    ],
)
def test_an_embedding_takes_no_module_that_ranking_texts_has_not(embeds: str, ranks: str) -> None:
    embedding, ranking = load_task(embeds), load_task(ranks)
    assert {module.key for module in embedding.modules.values()} <= {each.key for each in ranking.modules.values()}
    for name, node in embedding.nodes.items():
        assert ranking.nodes[name] == node, "the same use on the same values: it is computed once"


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(BadFile, match=r"pocket/clasify: .*did you mean pocket/classify\?"):
        load_task("pocket/clasify")
    with pytest.raises(BadFile, match=r"weather: .*pocket/classify, .*pocket/vqa, pocket/zero-shot"):
        load_task("weather")
    with pytest.raises(KeyError):
        catalog.path("../pyproject")


def test_a_file_of_ones_own_is_read_by_path(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_bytes(catalog.path("pocket/classify").read_bytes())
    assert load_task(str(mine)) == load_spec(catalog.path("pocket/classify"), TaskSpec)
    with pytest.raises(BadFile, match="No such file"):
        load_task(str(tmp_path / "nobody.yaml"))
