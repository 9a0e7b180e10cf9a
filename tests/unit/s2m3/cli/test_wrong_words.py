"""Commands, tasks and models whose names are mistyped, or stand where another thing is wanted: one line says what."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2m3.cli.main import main

TASK = "task: door\ninputs: {image: {kind: image, bytes: 250000}}\n"
SOURCE = "subscribe: cams/door\ntask: classify\n"  # without a name


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command prints; it ends with 2."""
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["statuss"], "s2m3: there is no command 'statuss'; did you mean status?"),
        (["sources", "chek", "x"], "s2m3 sources: there is no command 'chek'; did you mean check?"),
        (["broker", "rotat", "x"], "there is no command 'rotat'; did you mean rotate?"),
        (["xyzzy"], "there is no command 'xyzzy'; choose from demo, broker, "),
        (["status", "--log-format", "jsn"], "argument --log-format: there is no choice 'jsn'; did you mean json?"),
        (["deploy", "zero-shot"], "zero-shot: is neither in the catalogue nor a file; did you mean pocket/zero-shot?"),
        (["deploy", "pocket/zeroshot"], "did you mean pocket/zero-shot?"),
        (["models", "inspect", "siglip"], "did you mean hub/"),
        (["deploy", "xyzzy"], "name a file, or a model that `s2m3 models list` has"),
        (["deploy", "--history", "pocket/classify"], "takes the name of a task; write classify"),
        (["rollback", "door.yaml"], "takes the name of a task; write the name that stands in its `task:`"),
        (["undeploy", "pocket/classify"], "takes the name of a task; write classify"),
        (["sources", "check", "classify"], "classify: there is no such file; name a file with sources"),
        (["request", "classify", "--image", ""], "image is an empty path: name a file"),
        (["request", "classify", "--image", "a", "--image", "b"], "--image: is given 2 times; send a request for each"),
    ],
)
def test_a_wrong_word_is_one_line_that_says_what_was_meant(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(capsys, *words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["request", "classify", "--text", "a"], "and `s2m3 request` needs what stays in the site; run it with"),
        (["drain", "gw-a"], "--site sites/north: is a site as its core sees it, and `s2m3 drain` needs"),
        (["forget", "gw-a"], "`s2m3 forget` needs what stays in the site"),
        (["trace", "--next", "classify"], "`s2m3 trace` needs what stays in the site"),
        (["fleet", "export", "none/here"], "`s2m3 fleet export` needs what stays in the site"),
        (["http"], "`s2m3 http` needs what stays in the site"),
        (["broker", "check"], "`s2m3 broker check` needs what stays in the site"),
        (["dashboard", "--allow-control"], "--allow-control: can't be used at a core"),
    ],
)
def test_a_command_that_does_nothing_at_a_core_says_so_at_once(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(capsys, *words, "--site", "sites/north")


@pytest.mark.parametrize("words", [["events"], ["metrics"], ["dashboard"], ["deploy", "--history", "classify"]])
def test_a_command_that_shows_one_site_says_how_to_name_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name it: --site sites/NAME" in said(capsys, *words, "--site", "sites/all")


@pytest.mark.parametrize("site", ["sites", "sites/north/x"])
def test_a_site_of_a_core_has_a_name_of_one_word(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--site {site}: names no site" in said(capsys, "status", "--site", site)


def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, source = tmp_path / "task.yaml", tmp_path / "source.yaml"
    task.write_text(TASK)
    source.write_text(SOURCE)
    assert "task.yaml:1: is the file of a task; name a file with sources" in said(capsys, "sources", "check", str(task))
    assert "source.yaml: source: is missing" in said(capsys, "sources", "check", str(source))


@pytest.mark.parametrize(
    "words", [["status", "{}"], ["{}"], ["deploy", "{}/x.yaml"], ["broker", "check", "--port", "{}", "mqtt://h"]]
)
def test_an_address_in_a_wrong_place_is_shown_without_its_login(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "pa/ss" not in said(capsys, *(word.format("mqtt://user:pa/ss@gw") for word in words))


def test_an_error_is_one_line_that_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    # as the text of an answer, or of another person's file, may
    assert "?[31mx.yaml y" in said(capsys, "status", "--connection", "\x1b[31mx.yaml\ny")
