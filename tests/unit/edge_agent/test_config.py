"""The agent's file: what an operator may write, and what a wrong line is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.files import load_spec
from broker.protocol.errors import BadFile
from broker.transport.connection import command_line, connection_file
from edge_agent.config import AgentConfig, connections


def write(folder: Path, text: str) -> Path:
    file = folder / "agent.yaml"
    file.write_text(text)
    return file


def test_a_device_is_always_on_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("id: box\n")
    assert load_spec(file, AgentConfig).availability == "always"
    file.write_text("id: box\navailability: sometimes\n")
    assert load_spec(file, AgentConfig).availability == "sometimes"


def test_a_word_that_is_no_availability_is_refused_with_its_line_and_both_words(tmp_path: Path) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("id: box\navailability: at night\n")
    with pytest.raises(BadFile, match=r"box\.yaml:2: availability: .*always or sometimes"):
        load_spec(file, AgentConfig)


@pytest.mark.parametrize(("written", "size_bytes"), [("0", 0), ("off", 0), ("16MiB", 16 * 2**20), ("1000", 1000)])
def test_the_cache_has_a_size_and_0_turns_it_off(tmp_path: Path, written: str, size_bytes: int) -> None:
    assert load_spec(write(tmp_path, f"id: box\ncache: {written}\n"), AgentConfig).cache == size_bytes


def test_cuda_with_onnx_is_refused_with_its_line_and_one_fix(tmp_path: Path) -> None:
    with pytest.raises(BadFile) as caught:
        load_spec(write(tmp_path, "id: box\nengine: onnx\naccelerator: cuda\n"), AgentConfig)
    assert str(caught.value).endswith(
        "agent.yaml:3: accelerator: must not be cuda beside engine: onnx, because only torch runs on cuda; change it"
    )


@pytest.mark.parametrize("written", ["-1", "on", "1.5.5MB"])
def test_a_cache_of_another_kind_is_refused_with_its_line(tmp_path: Path, written: str) -> None:
    with pytest.raises(BadFile, match=r"agent\.yaml:2: cache: "):
        load_spec(write(tmp_path, f"id: box\ncache: {written}\n"), AgentConfig)


def test_the_file_names_the_connection_and_a_second_account_for_data(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    text = (
        "id: gw-a\nbroker: mqtts://broker\nca: ca.pem\nsite: plant-4\nuser: gw-a\npassword_file: one\n"
        "data_user: gw-a-data\ndata_password_file: two\n"
    )
    file = write(tmp_path, text)
    control, data = connections(load_spec(file, AgentConfig), file=str(file))
    assert (control.host, control.ca, control.site) == (data.host, data.ca, data.site)
    assert (control.host, control.ca, control.site) == ("broker", tmp_path / "ca.pem", "plant-4")
    assert [(each.user, each.password) for each in (control, data)] == [("gw-a", "1"), ("gw-a-data", "2")]


def test_the_command_line_and_its_connection_file_count_more_than_the_agents_file(tmp_path: Path) -> None:
    file = write(tmp_path, "id: gw-a\nbroker: mqtt://here\nsite: plant-4\n")
    (tmp_path / "site.yaml").write_text("broker: mqtt://there\n")
    config = load_spec(file, AgentConfig)
    control, _ = connections(config, connection_file(tmp_path / "site.yaml"), file=str(file))
    assert (control.host, control.site) == ("there", "plant-4")
    control, _ = connections(config, command_line(broker="mqtt://typed"), connection_file(tmp_path / "site.yaml"))
    assert control.host == "typed"


def test_a_client_id_is_not_for_an_agent(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="client_id"):
        load_spec(write(tmp_path, "id: gw-a\nclient_id: x\n"), AgentConfig)
    (tmp_path / "site.yaml").write_text("client_id: cam-1\n")
    with pytest.raises(BadFile, match=r"site.yaml:1: client_id: is not for an agent"):
        connections(AgentConfig(id="gw-a"), connection_file(tmp_path / "site.yaml"))
