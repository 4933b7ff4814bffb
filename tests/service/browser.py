"""A real Chromium, driven over its debugging pipe: clicks are those of a mouse, keys those of a keyboard."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.service.serving import WAIT_S, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tab:
    """One tab. ``problems``: what its console reported, exceptions and refused loads included.

    ``questions``: the texts of its dialogs, each answered by ``agrees``.
    """

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving = sending, receiving
        self._buffer, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        self.questions: list[str] = []
        self.agrees = True
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._receiving, 1 << 16)
            assert chunk, "the browser ended"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def _send(self, method: str, **params: Any) -> int:
        self._number += 1
        request = {"id": self._number, "method": method, "params": params}
        request |= {"sessionId": self._session} if self._session else {}
        os.write(self._sending, json.dumps(request).encode() + b"\0")
        return self._number

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = self._send(method, **params)
        while (message := self._message()).get("id") != number:
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.problems.append(json.dumps(message["params"]))
            elif message.get("method") == "Page.javascriptDialogOpening":
                self.questions.append(message["params"]["message"])
                self._send("Page.handleJavaScriptDialog", accept=self.agrees)
        assert "error" not in message, (method, message)
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("Page.navigate", url=url)
        wait_for(lambda: self.js("document.readyState") == "complete", 30)

    def js(self, code: str) -> Any:
        """The value of an expression in the page."""
        reply = self._call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def text(self, selector: str) -> str:
        """The visible text of an element; empty where there is none."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait(self, code: str, seconds: float = WAIT_S) -> None:
        """Wait until an expression is true."""
        wait_for(lambda: self.js(code), seconds)

    def click(self, selector: str) -> None:
        """Click the middle of an element, which must be what the mouse meets there."""
        name = json.dumps(selector)
        self.wait(f"(e => e && e.checkVisibility() && !e.disabled)(document.querySelector({name}))", 30)
        x, y, is_met = self.js(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            "const [x, y] = [b.x + b.width / 2, b.y + b.height / 2];"
            f"return [x, y, e.contains(document.elementFromPoint(x, y))]; }})(document.querySelector({name}))"
        )
        assert is_met, selector
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        """Click a field and type into it."""
        self.click(selector)
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key, by its name and Windows code; modifiers: 2 is Ctrl."""
        text = {"Enter": "\r"}.get(key)
        extra = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=modifiers, **extra,
            )  # fmt: skip
            extra = {}

    def walk_to(self, selector: str) -> None:
        """Press Tab until an element has the focus, which must be seen."""
        name = json.dumps(selector)
        self.wait(f"(e => e && e.checkVisibility() && !e.disabled)(document.querySelector({name}))", 30)
        for _ in range(100):
            if self.js(f"document.activeElement === document.querySelector({name})"):
                assert self.js("getComputedStyle(document.activeElement).outlineStyle") != "none", selector
                return
            self.press("Tab", 9)
        raise AssertionError(f"the keyboard does not reach {selector}")

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file, as the browser's own dialog does."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def resize(self, width: int, *, is_dark: bool = False, is_still: bool = False) -> None:
        """Give the window a width, a colour scheme, and a reader who wants nothing to move or does not mind."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if is_still else "no-preference"}
        self._call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --remote-debugging-pipe"
    # The browser reads at 3 and writes at 4; the shell puts the pipes there.
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(
        ["bash", "-c", command, str(CHROMIUM), *options.split(), f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(ours_out, ours_in)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
