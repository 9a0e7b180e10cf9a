"""The log on standard error: readable at a terminal, JSON elsewhere; the command line and the environment choose."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import structlog

from broker.process import MOST_WARNINGS, WITHIN_S, log_to_stderr
from broker.protocol.errors import BadFile
from s2m3.cli.main import main


@pytest.fixture(autouse=True)
def other_tests_log_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def logged(capsys: pytest.CaptureFixture[str], log_format: str | None = None) -> str:
    log_to_stderr(log_format)
    structlog.get_logger().warning("link_down", reason="gone")
    return capsys.readouterr().err


def test_a_warning_that_comes_too_often_is_left_out_and_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("broker.process.time", SimpleNamespace(monotonic=lambda: now_s))
    log_to_stderr("json")
    log = structlog.get_logger()
    for number in range(MOST_WARNINGS + 30):
        log.warning("message_refused", number=number)
        log.info("answered")
    log.warning("link_down")
    now_s = WITHIN_S + 1
    for number in range(2):
        log.warning("message_refused", number=number)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    refused = [line for line in lines if line["event"] == "message_refused"]
    assert len(refused) == MOST_WARNINGS + 2
    assert [line.get("lines_left_out") for line in refused[-3:]] == [None, 30, None]
    assert len(lines) == len(refused) + MOST_WARNINGS + 30 + 1


@pytest.mark.parametrize(
    ("place", "variable", "option", "is_json"),
    [
        ("a file", "", None, True),
        ("a terminal", "", None, False),
        ("a terminal", "json", None, True),
        ("a file", "console", None, False),
        ("a file", "json", "console", False),
        ("a terminal", "console", "json", True),
    ],
)
def test_the_option_wins_over_the_variable_and_the_terminal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    place: str,
    variable: str,
    option: str | None,
    is_json: bool,
) -> None:
    monkeypatch.setenv("S2M3_LOG_FORMAT", variable)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: place == "a terminal")
    text = logged(capsys, option)
    assert text.count("\n") == 1
    assert ("\x1b[" in text) == (place == "a terminal" and not is_json)
    if is_json:
        assert json.loads(text).items() >= {"event": "link_down", "level": "warning", "reason": "gone"}.items()
    else:
        assert not text.startswith("{")


def test_an_exception_is_one_line_of_json_and_a_traceback_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("json", "console"):
        log_to_stderr(log_format)
        structlog.get_logger().error("event_failed", exc_info=ValueError("no"))
        text = capsys.readouterr().err
        assert "ValueError: no" in text
        assert (text.count("\n") == 1) == (log_format == "json")


def test_a_wrong_variable_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2M3_LOG_FORMAT", "xml")
    with pytest.raises(BadFile):
        log_to_stderr()
    assert main(["models", "list"]) == 2
    assert capsys.readouterr().err == (
        "s2m3: S2M3_LOG_FORMAT: must be console or json, got 'xml'; change this variable\n"
    )
