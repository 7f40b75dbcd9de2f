"""A judge on loopback for tests: it speaks OpenAI's chat API and prefers longer answers."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TAGGED = re.compile(r"<(\w+) (\w+)>\n(.*?)\n</\1 \2>", re.DOTALL)
_CODE = re.compile(r'\{"code": "(\w+)"')
_KEYS = re.compile(r'"(\w+)": 1 to 5')
LEVELS_BY_LENGTH = (0, 5, 10, 15)
"""Characters of an answer from which on it gets the grades 2, 3, 4 and 5."""


def reply_to(prompt: str) -> str:
    """Return the reply to a question of the metric `judge`: grades by length, or the longer of two texts."""
    texts = {name: text for name, _, text in _TAGGED.findall(prompt)}
    code = _CODE.findall(prompt)[-1]
    if "A" in texts:
        lengths = len(texts["A"]), len(texts["B"])
        better = "tie" if lengths[0] == lengths[1] else "A" if lengths[0] > lengths[1] else "B"
        return json.dumps({"code": code, "better": better})
    grade = 1 + sum(len(texts["answer"]) > length for length in LEVELS_BY_LENGTH)
    return json.dumps({"code": code, **dict.fromkeys(_KEYS.findall(prompt), grade)})


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Reply to one request."""
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = reply_to(request["messages"][-1]["content"])
        body = json.dumps({"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 10}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def start_judge_server() -> str:
    """Start the judge in a daemon thread, and return the address of its API."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}/v1"
