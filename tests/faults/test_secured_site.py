"""A testbed's site at a broker with TLS and a login, through proxies: its secrets stay in files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from broker.servers.mosquitto import MosquittoBroker
from broker.servers.ports import HOST
from broker.transport.connection import VARIABLES, Connection
from s2m3.testbed.proxy import UNSHAPED
from s2m3.testbed.site import ORCHESTRATOR, SPARE, Site
from tests.certificates import Authority
from tests.patience import PATIENCE_S

SECRET = "s3cret-w0rd"  # noqa: S105 - of a test


def test_its_processes_have_the_login_and_the_authority_and_nobody_sees_the_password(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One orchestrator is behind a proxy, whose address isn't the one in the certificate; the other one isn't."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "alice", SECRET], check=True, capture_output=True)
    settings = authority.issue("secured", "localhost").settings(authority.file)
    for name in VARIABLES:
        monkeypatch.setenv(name, "of another site")
    with MosquittoBroker(settings=(*settings, "allow_anonymous false", f"password_file {passwords}")) as broker:
        secured = Connection(
            "localhost", broker.port, tls=True, ca=authority.file, user="alice", password=SECRET, site="plant-4"
        )
        with Site(secured, [], links={ORCHESTRATOR: UNSHAPED}, logs=tmp_path) as site:
            assert site.prefix is not None
            assert site.prefix.startswith("plant-4/testbed-")
            site.require(lambda seen: seen.leads, PATIENCE_S, "no orchestrator leads")
            assert site.proxy(ORCHESTRATOR).connection.host == HOST
            site.start_orchestrator(SPARE)
            site.kill(ORCHESTRATOR)
            site.require(lambda seen: seen.leader is not None and seen.leader.epoch > 1, PATIENCE_S, "no spare leads")
            process = Path("/proc") / str(site.pid(SPARE))
            for name in ("cmdline", "environ"):
                assert SECRET.encode() not in (process / name).read_bytes()
    for log in tmp_path.glob("*.log"):
        assert SECRET not in log.read_text()
