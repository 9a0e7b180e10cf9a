"""``s2m3 status`` warns before a certificate ends that it can see."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.servers import certificates
from broker.servers.lifetimes import Lifetime, lifetimes
from broker.transport.connection import Connection

NOW = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (31, None),
        (29.5, r"the client's certificate ends on 2027-01-30, in 29 days: .*s2m3 broker rotate DIR NAME"),
        (-1, "the client's certificate ended on 2026-12-31: "),
    ],
)
def test_the_warning_comes_30_days_before_the_end(days: float, says: str | None) -> None:
    warning = Lifetime("client", NOW + timedelta(days=days)).warning(NOW)
    if says is None:
        assert warning is None
    else:
        assert re.match(says, warning or "")


def test_the_files_of_a_connection_are_read_where_the_broker_doesnt_answer(tmp_path: Path) -> None:
    authority = certificates.make_authority("test", NOW)
    client = certificates.issue(authority, "gw-a", NOW)
    ca, cert = tmp_path / "ca.crt", tmp_path / "client.crt"
    ca.write_bytes(authority.certificate)
    cert.write_bytes(client.certificate)
    connection = Connection(port=1, tls=True, ca=ca, cert=cert, key=tmp_path / "missing")
    assert lifetimes(connection) == [Lifetime("authority", authority.ends), Lifetime("client", client.ends)]


def test_without_tls_there_are_none() -> None:
    assert lifetimes(Connection(port=1)) == []
