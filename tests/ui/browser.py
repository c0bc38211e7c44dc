"""A headless Chromium, driven by the W3C WebDriver protocol over plain HTTP: chromedriver is all it needs."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element in WebDriver's JSON."""
KEYS = {"enter": "\ue007"}


class Browser:
    """One window."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"],
            "binary": chromium(),
        }
        always = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        self._do("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script that ends in `return ...`."""
        return self._do("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, selector: str, text: str) -> None:
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self._do("POST", f"/element/{found}/clear", {})
        self._do("POST", f"/element/{found}/value", {"text": text})

    def click(self, selector: str) -> None:
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self._do("POST", f"/element/{found}/click", {})

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse to a place in the window."""
        actions: list[dict[str, Any]] = [{"type": "pointerMove", "duration": 0, "x": round(x), "y": round(y)}]
        if click:
            actions += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}]
        self._do("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": actions}]})

    def until(self, script: str, *arguments: Any, seconds: float = 20.0) -> Any:
        """Wait until a script gives something true, and give that."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"it did not happen: {script}\n{self.run('return document.body.innerText')}"
            time.sleep(0.05)
        return value

    def emulate(self, **media: str) -> None:
        """Media features, as `prefers_color_scheme="dark"`."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self._do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def size(self, width: int, height: int) -> None:
        params = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._do("POST", "/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": params})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def console(self) -> list[str]:
        """Warnings and errors since the last call."""
        lines = self._do("POST", "/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] in ("WARNING", "SEVERE")]

    def close(self) -> None:
        self._do("DELETE", "")

    def _do(self, method: str, path: str, body: Any = None) -> Any:
        return self._send(method, self._session + path, body)

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.loads(error.read())["value"]["message"]) from None


def chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@contextmanager
def browsing():
    """A browser, or the test is skipped."""
    driver = shutil.which("chromedriver")
    if driver is None or chromium() is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _until_ready(url)
            browser = Browser(url)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            process.terminate()
            process.wait(20)


def _until_ready(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(f"{url}/status", timeout=5) as response:
                if json.loads(response.read())["value"]["ready"]:
                    return
        except OSError:
            pass
        assert time.monotonic() < end, "chromedriver did not start"
        time.sleep(0.05)
