"""A process that ``tests.warm`` starts is what ``subprocess.Popen`` would have started, but for the time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from broker.servers.mosquitto import MosquittoBroker
from tests import warm
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, all processes start as always")


def begin(output: Path, *arguments: str, **variables: str) -> Any:
    with output.open("ab") as file:
        return warm.start(
            [sys.executable, "-m", "orchestrator", *arguments],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ | variables,
        )


def test_it_has_its_own_arguments_output_session_and_exit_code(tmp_path: Path) -> None:
    with begin(tmp_path / "output", "--heartbeat-interval", "much") as process:
        assert isinstance(process, warm.Warm)
        assert process.wait(PATIENCE_S) == process.poll() == 2
    assert "argument --heartbeat-interval" in (tmp_path / "output").read_text(encoding="utf-8")


def test_it_is_a_child_in_a_session_of_its_own_that_signals_and_the_end_of_its_input_end(tmp_path: Path) -> None:
    with MosquittoBroker() as broker:
        for end in ("kill", "terminate", "input"):
            arguments = ("--broker", broker.url, "--state-dir", str(tmp_path / end), "--until-stdin-closes")
            with begin(tmp_path / f"{end}.log", *arguments) as process:
                until(lambda: (tmp_path / f"{end}.log").stat().st_size)  # noqa: B023 - called at once
                assert process.poll() is None
                assert psutil.Process(process.pid).ppid() == os.getpid()
                assert os.getsid(process.pid) == process.pid
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.01)
                process.stdin.close() if end == "input" else getattr(process, end)()
                assert process.wait(PATIENCE_S) == (-signal.SIGKILL if end == "kill" else 0)


def test_with_another_environment_for_its_imports_it_starts_as_always(tmp_path: Path) -> None:
    with begin(tmp_path / "output", "--bogus"), begin(tmp_path / "output", "--bogus", PYTHONNOUSERSITE="1") as process:
        assert isinstance(process, subprocess.Popen)
        assert process.wait(PATIENCE_S) == 2
