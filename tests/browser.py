"""A headless Chromium, driven over its own protocol by a pipe: no driver program, and no port.

Owns the browser's process and its profile. Collects what the page says on its console, and what it loads.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.patience import PATIENCE_S, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
COMMAND = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--hide-scrollbars", "--remote-debugging-pipe", "--no-startup-window"),
)
_ABOVE = 100  # the browser's own ends are 3 and 4, which a test may have, too
_TOLD = frozenset({"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"})


class Browser:
    """A page in a browser of its own; a context manager."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        """Errors and warnings of the page's console."""
        self.loaded: list[str] = []
        """The addresses that the page loaded, or tried to."""
        self._replies: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._number = 0
        self._session = ""

    def __enter__(self) -> Self:
        assert CHROMIUM is not None
        with ExitStack() as stack:
            profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True))
            (read, our_out), (our_in, write) = os.pipe(), os.pipe()
            their_in, their_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for end in (read, write))
            # The browser reads its commands at 3 and writes at 4.
            shell = f'exec 3<&{their_in} 4>&{their_out} {their_in}<&- {their_out}>&-; exec "$@"'
            command = ["/bin/bash", "-c", shell, "bash", CHROMIUM, f"--user-data-dir={profile}", *COMMAND]
            self._process = stack.enter_context(
                subprocess.Popen(command, pass_fds=[their_in, their_out], stderr=subprocess.DEVNULL)
            )
            for end in (read, write, their_in, their_out):
                os.close(end)
            self._out = stack.enter_context(os.fdopen(our_out, "wb", buffering=0))
            self._in = os.fdopen(our_in, "rb")
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                self.call(f"{domain}.enable")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._session = ""
        self.call("Browser.close")
        self._thread.join(PATIENCE_S)
        self._stack.close()

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        """Call a method of the browser's protocol and return its result."""
        self._number = number = self._number + 1
        reply = self._replies[number] = queue.Queue()
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        replied = reply.get(timeout=2 * PATIENCE_S)
        assert "error" not in replied, (method, replied)
        result: dict[str, Any] = replied["result"]
        return result

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """The value of an expression in the page; a promise's is awaited."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until an expression in the page is true."""
        until(lambda: self.value(f"Boolean({script})"), 2 * PATIENCE_S)

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into a field of the page, as a person who chooses it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def press(self, key: str) -> None:
        """Press a key: Enter, Space or Tab."""
        code, text = {"Enter": (13, "\r"), "Space": (32, " "), "Tab": (9, "")}[key]
        given = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    def look(self, *, width: int, height: int, dark: bool = False, calm: bool = False) -> None:
        """Set the size of the window and what its user prefers."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        features += [{"name": "prefers-reduced-motion", "value": "reduce"}] if calm else []
        self.call("Emulation.setEmulatedMedia", features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, *, whole: bool = False) -> bytes:
        """A picture of the page, as PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def _read(self) -> None:
        rest = b""
        with self._in as stream:
            while chunk := stream.read1(1 << 16):
                *messages, rest = (rest + chunk).split(b"\0")
                for message in messages:
                    self._take(json.loads(message))

    def _take(self, message: Mapping[str, Any]) -> None:
        if "id" in message:
            self._replies.pop(message["id"]).put(dict(message))
        elif message["method"] == "Network.requestWillBeSent":
            self.loaded.append(message["params"]["request"]["url"])
        elif message["method"] in _TOLD and _level(message) in {"error", "warning", "assert"}:
            self.complaints.append(json.dumps(message["params"])[:600])


def _level(message: Mapping[str, Any]) -> str:
    told = message["params"]
    return str(told["entry"]["level"] if "entry" in told else told.get("type", "error"))
