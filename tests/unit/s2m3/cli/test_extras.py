"""A command whose extra isn't installed says which one, and hides no fault of ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from broker.protocol.errors import S2M3Error
from s2m3.cli.extras import imports_of


def test_a_package_that_is_not_installed_is_named_with_its_extra() -> None:
    text = r"^the door needs not-there, which isn't installed: pip install 's2m3\[http\]'$"
    with pytest.raises(S2M3Error, match=text), imports_of("http", "the door needs"):
        import_module("not_there.deeper")


def test_a_module_of_ours_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(ModuleNotFoundError), imports_of("http", "the door needs"):
        import_module("s2m3.http.not_there")


WITHOUT = "import sys; sys.modules['torch'] = None; from s2m3.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("models", "inspect", "pocket/vqa"), "agent"),
        (("models", "scan", "."), "agent"),
        (("models", "random", "openai/clip-vit-base-patch16", "--into", "none"), "agent"),
        (("head", "train", "--data", "digits", "--models", "none"), "pocket"),
    ],
)
def test_a_command_that_computes_with_torch_says_in_one_line_what_installs_it(
    words: tuple[str, ...], extra: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    needs = f"s2m3: {' '.join(words[:2])} needs torch, which isn't installed: pip install 's2m3[{extra}]'\n"
    assert (ended.returncode, ended.stderr) == (1, needs)
