"""A headless Chromium, controlled over a pipe with the DevTools protocol: console messages, requests, screenshots."""

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

PROGRAM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    """Return the path of Chromium; None if it is not installed."""
    return next((path for path in map(shutil.which, PROGRAM_NAMES) if path), None)


class Browser:
    """One Chromium with one page.

    The context manager ends it and removes its profile.
    """

    def __init__(self, program, timeout=60.0):
        self.timeout, self.count, self.buffer, self.events = timeout, 0, b"", []
        self.profile = tempfile.mkdtemp(prefix="harness-browser-")
        browser_input, self.input = os.pipe()
        self.output, browser_output = os.pipe()

        def connect_pipes():  # Chromium reads from 3 and writes to 4; high copies first, so that neither is overwritten
            os.dup2(browser_input, 63)
            os.dup2(browser_output, 64)
            os.dup2(63, 3)
            os.dup2(64, 4)

        self.process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
             f"--user-data-dir={self.profile}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=connect_pipes, close_fds=False, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(browser_input)
        os.close(browser_output)
        self.session = None
        (target,) = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.input)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.output)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        """Send a command and return its result; events that arrive before it are kept.

        Raises:
            RuntimeError: If the command fails.
            TimeoutError: If there is no answer.
        """
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.input, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.timeout
        while True:
            answer = self._read_message(until)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, file, width=1280, height=900, dark=False, media=""):
        """Load a file; width and height in CSS pixels. Fills `console_messages` and `requested_urls`."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=Path(file).resolve().as_uri())
        until = time.monotonic() + self.timeout
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read_message(until)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def console_messages(self):
        """The console messages and uncaught errors of the page."""
        messages = []
        for event in self.events:
            if event["method"] == "Log.entryAdded":
                messages.append(event["params"]["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                messages.append(str(event["params"]["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                messages.append(str(event["params"]["exceptionDetails"]))
        return messages

    @property
    def requested_urls(self):
        """The requested addresses, that of the page included."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def evaluate(self, expression):
        """Return the awaited value of a JavaScript expression.

        Raises:
            RuntimeError: If the expression throws.
        """
        options = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", **options)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def click(self, selector):
        """Click an element with real mouse events: some actions need the gesture of a user."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView()")
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())"
        )
        for event_type in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=event_type, x=box[0], y=box[1], button="left", clickCount=1)

    def save_screenshot(self, file, full_page=True):
        """Save the visible part or the complete page as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full_page)["data"]
        Path(file).write_bytes(base64.b64decode(data))

    def _read_message(self, until):
        """Return the next message; events are also kept."""
        while b"\0" not in self.buffer:
            if not select.select([self.output], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"no message from Chromium for {self.timeout} s")
            data = os.read(self.output, 1 << 16)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
