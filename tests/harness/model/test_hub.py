"""Models of the hub, served over HTTP by a small server on this machine."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# prints one line per name: its digest, or the error
RESOLVE = """
import sys
from harness.errors import HarnessError
from harness.model.locate import resolve_model
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        print(resolve_model({"path": name, "revision": revision or None}).digest)
    except HarnessError as error:
        print("error:", error)
assert not {"torch", "transformers"} & set(sys.modules)
"""

LOAD = """
import sys
from harness.model import load, locate
from harness.errors import HarnessError
calls = []
settings = {"path": sys.argv[1], "revision": None, "trust_remote_code": False, "attention": "auto"}
location = locate.resolve_model(settings)
on_meta = load.load_on_meta(location, settings)
print(location.digest, on_meta and load.parameter_count(on_meta))
try:
    tokenizer = load.load_tokenizer(location, settings)
    model = load.load_model(location, settings, progress=lambda *call: calls.append(call))
except HarnessError as error:
    print("error:", error)
else:
    print(model.num_parameters(), len(tokenizer), model.name_or_path)
    fetch_calls = [call for call in calls if call[0] == "fetch"]
    print(fetch_calls[-1][:3] if fetch_calls else None)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `folder` as the model `org/tiny`; `org/gated` has metadata but refuses its files."""

    folder: Path

    def log_message(self, *_):
        pass

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        path = self.path.split("?")[0]
        names = sorted(os.listdir(self.folder))
        if "org/busy" in path:
            return self.refuse(503, "Busy")
        if not ("org/tiny" in path or "org/gated" in path):
            return self.refuse(404, "RepoNotFound")
        if "/revision/other" in path:
            return self.refuse(404, "RevisionNotFound")
        if path.startswith("/api/models/") and "/tree/" in path:
            entries = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": n} for n in names]
            return self.answer(json.dumps(entries).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": (self.folder / name).stat().st_size} for name in names]
            info = {"id": path.split("/")[3] + "/" + path.split("/")[4], "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(info).encode(), {"Content-Type": "application/json"})
        if "org/gated" in path:
            return self.refuse(403, "GatedRepo")
        name = path.rsplit("/", 1)[-1]
        if name not in names:
            return self.refuse(404, "EntryNotFound")
        return self.answer((self.folder / name).read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def served(tmp_path, tiny_model, tokenizer):
    """The environment of a process whose hub is the small server."""
    folder = tmp_path / "served"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in another layout; not to be downloaded")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PYTHONPATH": os.pathsep.join(sys.path)}
    yield environment
    server.shutdown()
    server.server_close()


def run(script: str, *arguments: str, environment: dict[str, str]) -> list[str]:
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_commit_comes_from_the_hub_and_a_missing_model_or_revision_is_an_error(served):
    tiny, missing, revision, busy, pinned = run(
        RESOLVE, "org/tiny", "org/absent", "org/tiny@other", "org/busy", f"org/busy@{COMMIT}", environment=served
    )
    assert tiny == f"hub:org/tiny@{COMMIT}"
    assert missing.startswith("error: model.path: there is no local folder 'org/absent', and the hub has no such model")
    assert revision.startswith("error: model.revision: the hub has no 'org/tiny' at revision 'other'")
    assert busy == "hub:org/busy"
    assert pinned == f"hub:org/busy@{COMMIT}"


@pytest.mark.slow
def test_hub_model_is_downloaded_with_progress_and_then_loads_offline(served, tmp_path, tiny_model):
    first = run(LOAD, "org/tiny", environment=served)
    parameters = tiny_model.num_parameters()
    assert first[0] == f"hub:org/tiny@{COMMIT} {parameters}"
    assert first[1].startswith(f"{parameters} ")
    assert first[1].endswith(" org/tiny")
    blobs = tmp_path / "hf" / "hub" / "models--org--tiny" / "blobs"
    total = sum(file.stat().st_size for file in (tmp_path / "served").iterdir() if "consolidated" not in file.name)
    assert first[2] == str(("fetch", total, total))
    assert sum(file.stat().st_size for file in blobs.iterdir()) == total
    offline = run(LOAD, "org/tiny", environment={**served, "HF_HUB_OFFLINE": "1"})
    assert offline[:2] == first[:2]


@pytest.mark.slow
def test_gated_and_unreachable_models_are_errors_with_a_remedy(served):
    gated = run(LOAD, "org/gated", environment=served)
    assert (
        "requires that you accept its license; accept it at https://huggingface.co/org/gated, then `hf auth login`"
        in gated[-1]
    )
    unreachable = {**served, "HF_ENDPOINT": "http://127.0.0.1:9"}
    started = time.monotonic()
    digest, error = run(LOAD, "org/tiny", environment=unreachable)
    assert time.monotonic() - started < 100, "the libraries would retry for minutes"
    assert digest == "hub:org/tiny None"
    assert error.startswith(
        "error: model.path: the hub cannot be reached, and 'org/tiny' is not complete in its local cache;"
    )
