"""The leader's files: what was stored is read again, old formats too, and a damaged file stops no start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from broker.protocol.errors import BadFile
from orchestrator.leadership import leader_files
from orchestrator.leadership.leader_files import LeaderFiles, StoredOrders
from orchestrator.leadership.orders import NO_ORDERS, Orders, record
from tests.builders import chain, module

CLASSIFY = chain("classify", module("vision"))
CAPTION = chain("caption", module("text"))
URL = "mqtt://alice:s3cret@broker:1884"


def files(folder: Path, *, broker: str = URL, prefix: str = "s2m3/v1") -> LeaderFiles:
    return LeaderFiles(folder, broker, prefix)


def some_orders() -> Orders:
    orders = record(NO_ORDERS, {"classify": CLASSIFY, "caption": CAPTION}, {"gw-b"}, epoch=1, session=7)
    newer = chain("classify", module("vision"), weight=2.0)
    return record(orders, {"classify": newer}, {"gw-c"}, epoch=1, session=7)


def test_stored_orders_are_read_again_with_their_revisions_removals_and_numbers(tmp_path: Path) -> None:
    stored = some_orders()
    files(tmp_path).store_orders(stored)
    assert files(tmp_path).read_orders(0) == stored
    assert [spec.weight for spec in stored.revisions["classify"]] == [2.0, 1.0]
    assert (list(stored.undeployed), list(stored.undrained)) == (["caption"], ["gw-b"])


def test_changes_that_follow_each_other_quickly_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 10.0
    monkeypatch.setattr(leader_files, "time", SimpleNamespace(monotonic=lambda: now_s))
    stored, orders = StoredOrders(files(tmp_path)), [NO_ORDERS]
    for number in range(3):
        tasks = orders[-1].specs | {f"t{number}": CLASSIFY.model_copy(update={"task": f"t{number}"})}
        orders.append(record(orders[-1], tasks, (), epoch=1, session=7))
    assert stored.update(orders[1])
    assert not stored.update(orders[2])
    assert not stored.update(orders[3])
    assert files(tmp_path).read_orders(0) == orders[1]
    now_s += leader_files.WRITE_EVERY_S
    assert stored.update(orders[3])
    assert files(tmp_path).read_orders(0) == orders[3]
    assert stored.update(orders[3]), "nothing is to be written"
    assert stored.update(orders[1], at_once=True)
    assert files(tmp_path).read_orders(0) == orders[1]


def test_orders_that_cannot_be_written_are_logged_and_hold_up_nothing(tmp_path: Path) -> None:
    (tmp_path / "tasks.new").mkdir()
    stored = StoredOrders(files(tmp_path))
    with capture_logs() as log:
        assert stored.update(some_orders())
    assert [line["event"] for line in log] == ["tasks_not_stored"]
    with pytest.raises(BadFile):
        stored.write(some_orders())


def test_no_file_has_a_password(tmp_path: Path) -> None:
    files(tmp_path).store_orders(some_orders())
    assert "s3cret" not in (tmp_path / "tasks.json").read_text(encoding="utf-8")
    assert files(tmp_path, broker="mqtt://bob:other@broker:1884").read_orders(0).tasks, "it is the same broker"


def test_orders_of_another_site_do_not_count(tmp_path: Path) -> None:
    files(tmp_path).store_orders(some_orders())
    assert files(tmp_path, prefix="plant/s2m3/v1").read_orders(0) == NO_ORDERS


@pytest.mark.parametrize("moved", ["mqtt://another:1884", "mqtt://broker:1885", "mqtts://broker:8883"])
def test_a_site_whose_broker_moved_keeps_its_orders_and_the_log_says_so(tmp_path: Path, moved: str) -> None:
    files(tmp_path).store_orders(some_orders())
    with capture_logs() as log:
        assert files(tmp_path, broker=moved).read_orders(0) == some_orders()
    assert [(line["event"], line["before"]) for line in log] == [("broker_moved", "mqtt://broker:1884")]


@pytest.mark.parametrize(("last_epoch", "counts"), [(6, True), (5, True), (7, False)])
def test_the_file_of_an_earlier_version_is_read_unless_a_later_term_is_known(
    tmp_path: Path, last_epoch: int, *, counts: bool
) -> None:
    tasks = [spec.model_dump(mode="json") for spec in (CLASSIFY, CAPTION)]
    content = {"epoch": 6, "broker": URL, "prefix": "s2m3/v1", "tasks": tasks}
    (tmp_path / "tasks.json").write_text(json.dumps(content), encoding="utf-8")
    orders = files(tmp_path).read_orders(last_epoch)
    assert list(orders.tasks) == (["classify", "caption"] if counts else [])
    assert orders.change == (1 if counts else 0), "a broker without a number has lost its memory"


@pytest.mark.parametrize("content", [b"", b"{", b"\0\0\0", b"[]", b'{"tasks": 7}', b"\xff\xfe"])
def test_a_damaged_file_is_set_aside_and_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tasks.json"
    file.write_bytes(content)
    with capture_logs() as log:
        assert files(tmp_path).read_orders(0) == NO_ORDERS
        assert files(tmp_path).read_orders(0) == NO_ORDERS
    (line,) = log
    assert (line["event"], line["file"]) == ("damaged_file_set_aside", str(file))
    assert Path(line["kept_as"]).read_bytes() == content
    assert not file.exists()


def test_a_file_with_any_byte_changed_is_set_aside_or_has_what_was_stored(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    files(tmp_path).store_orders(some_orders())
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with capture_logs():
            assert files(tmp_path).read_orders(0) == (some_orders() if file.exists() else NO_ORDERS)


def test_a_file_without_a_sum_whose_served_spec_is_of_another_task_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    files(tmp_path).store_orders(replace(some_orders(), served={"classify": CLASSIFY}))
    content = json.loads(file.read_bytes())
    del content["crc32"]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert files(tmp_path).read_orders(0).served == {"classify": CLASSIFY}
    file.write_text(json.dumps(content | {"served": {"caption": CLASSIFY.model_dump(mode="json")}}), encoding="utf-8")
    with capture_logs() as log:
        assert files(tmp_path).read_orders(0) == NO_ORDERS
    assert "caption has a spec of classify" in log[0]["reason"]
