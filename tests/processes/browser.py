"""A real browser for tests: headless Chromium, asked over the DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
)
_PATIENCE = 60.0  # seconds in which a browser starts, a page loads, or an answer comes


def chromium() -> str | None:
    """The browser's program; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Tab:
    """A tab of the browser, of which every error of the console and every request is kept."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._count = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result; raises RuntimeError where the browser refuses."""
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": parameters}))
        while True:
            message = self._next(_PATIENCE)
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def _next(self, timeout: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout))
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(str(told["entry"]))
        elif method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("data:", "blob:")):
            self.requests.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded = True
        return message

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited; raises RuntimeError where it throws."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the page so many pixels; as a phone, it is touched."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def open(self, path: Path, ready: str = "document.readyState === 'complete'") -> float:
        """Open a file and wait until the expression is true; returns the seconds that took."""
        self._loaded = False
        self.errors.clear()
        self.requests.clear()
        start = time.monotonic()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        while not self._loaded:
            self._next(_PATIENCE)
        self.until(ready)
        return time.monotonic() - start

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + _PATIENCE
        while not self.run(expression):
            assert time.monotonic() < deadline, f"never: {expression}; {self.errors}"
            time.sleep(0.02)

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, x: float, y: float) -> None:
        """Click there."""
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what the page looks like as PNG."""
        path.write_bytes(b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def paper(self, path: Path) -> None:
        """Write the page as it is printed, as PDF."""
        path.write_bytes(b64decode(self.ask("Page.printToPDF", printBackground=True)["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Tab]:
    """A browser with one tab, a profile of its own and a free port, while this lasts."""
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *_QUIET, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(profile, "DevToolsActivePort"), process)
            with connect(_address(port), max_size=None, open_timeout=_PATIENCE, proxy=None) as socket:
                tab = Tab(socket)
                yield tab
                tab.ask("Browser.close")
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + _PATIENCE
    while not (file.is_file() and file.read_text().count("\n")):
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        assert time.monotonic() < deadline, "the browser does not open its port"
        time.sleep(0.05)
    return int(file.read_text().split()[0])


def _address(port: int) -> str:
    """The address of the tab."""
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=_PATIENCE) as answer:
        pages = [each for each in json.load(answer) if each["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])
