"""A headless Chromium that is spoken to over a pipe: what a page says to its console, asks for, and looks like.

No test module: those that need it run this file by its path.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """The program, or None where there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


class Browser:
    """One Chromium with one page. A context: it is ended with it, and its profile removed."""

    def __init__(self, program, patience=60.0):
        self.patience, self.count, self.buffer, self.events = patience, 0, b"", []
        self.profile = tempfile.mkdtemp(prefix="harness-browser-")
        hears, self.says = os.pipe()
        self.hears, says = os.pipe()

        def pipes():  # Chromium reads from 3 and writes to 4; high copies first, lest one overwrites the other
            os.dup2(hears, 63)
            os.dup2(says, 64)
            os.dup2(63, 3)
            os.dup2(64, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             f"--user-data-dir={self.profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=pipes, close_fds=False, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(hears)
        os.close(says)
        self.session = None
        (target,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.says)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.hears)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """The answer to one command; events that come before it are kept. Raises RuntimeError or TimeoutError."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.says, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience
        while True:
            told = self._next(until)
            if told.get("id") == self.count:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return told["result"]

    def open(self, file, width=1280, height=900, dark=False, media=""):
        """Load a file at a size in CSS pixels. What it says and asks for is in `complaints` and `requests` after."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=Path(file).resolve().as_uri())
        until = time.monotonic() + self.patience
        while not any(one["method"] == "Page.loadEventFired" for one in self.events):
            self._next(until)
        self.ask("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def complaints(self):
        """What the page wrote to its console, and errors that nobody caught."""
        made = []
        for one in self.events:
            if one["method"] == "Log.entryAdded":
                made.append(one["params"]["entry"]["text"])
            elif one["method"] == "Runtime.consoleAPICalled":
                made.append(str(one["params"]["args"]))
            elif one["method"] == "Runtime.exceptionThrown":
                made.append(str(one["params"]["exceptionDetails"]))
        return made

    @property
    def requests(self):
        """The addresses that the page asked for, its own included."""
        return [one["params"]["request"]["url"] for one in self.events if one["method"] == "Network.requestWillBeSent"]

    def ask(self, expression):
        """The value of an expression of JavaScript in the page, awaited. Raises RuntimeError for one that throws."""
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        told = self.call("Runtime.evaluate", **options)
        if "exceptionDetails" in told:
            raise RuntimeError(str(told["exceptionDetails"]))
        return told["result"].get("value")

    def click(self, selector):
        """Press the mouse on an element, as a person would: some things a browser does for nobody else."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{place}.scrollIntoView()")
        box = self.ask(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({place}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, file, whole=True):
        """Write what is seen, or the whole page, as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        Path(file).write_bytes(base64.b64decode(data))

    def _next(self, until):
        """The next message; an event is kept too."""
        while b"\0" not in self.buffer:
            if not select.select([self.hears], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {self.patience} s")
            some = os.read(self.hears, 1 << 16)
            if not some:
                raise RuntimeError("Chromium has ended")
            self.buffer += some
        line, _, self.buffer = self.buffer.partition(b"\0")
        told = json.loads(line)
        if "method" in told:
            self.events.append(told)
        return told
