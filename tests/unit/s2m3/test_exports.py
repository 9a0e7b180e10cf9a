"""The names that sensors import."""

from __future__ import annotations

import pytest

import s2m3
from broker import client
from broker.protocol import errors
from broker.protocol.codec import RawInput
from tests.patience import run_python


def test_the_package_offers_the_client_and_what_it_takes_and_returns() -> None:
    raised = {"BadFile", "BrokerRefused", "LocalProtocolError", "NotConnected", "RequestFailed", "S2M3Error"}
    assert set(s2m3.__all__) == {"Answer", "Client", "RawInput", "Response"} | raised
    assert (s2m3.Client, s2m3.Response, s2m3.RawInput) == (client.Client, client.Response, RawInput)
    assert s2m3.Answer is client.Answer
    assert all(getattr(s2m3, name) is getattr(errors, name) for name in raised)
    with pytest.raises(AttributeError, match="has no attribute 'Sensor'"):
        _ = s2m3.Sensor  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_else_until_the_client_is_used() -> None:
    code = """
import sys
before = set(sys.modules)
import s2m3
new = {name.partition(".")[0] for name in set(sys.modules) - before}
assert new <= {"s2m3", *sys.stdlib_module_names}, sorted(new)
from s2m3 import Client
assert "broker.client" in sys.modules and Client.__name__ == "Client"
"""
    assert not run_python(code)
