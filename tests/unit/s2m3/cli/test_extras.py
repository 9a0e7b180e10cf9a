"""A command whose extra isn't installed says which one, and hides no fault of ours."""

from __future__ import annotations

from importlib import import_module

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
