"""A stand-in for a server of models, on a free port of this machine."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer


class StubModelServer(ThreadingHTTPServer):
    """Keeps the requests that it gets; the class of handlers answers them."""

    daemon_threads = True

    def __init__(self, handler, tokenizer):
        super().__init__(("127.0.0.1", 0), handler)
        self.tokenizer = tokenizer
        self.requests: list[dict] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def serving(server, monkeypatch):
    """Serve in a thread for the duration of the context, without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
