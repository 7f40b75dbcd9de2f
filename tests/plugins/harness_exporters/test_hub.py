"""The exporter `hub` against a small server that stores commits as the hub does."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading

import pytest

from harness import HarnessError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(http.server.ThreadingHTTPServer):
    """A hub with one repository.

    Attributes:
        files: Path -> content of the repository.
        token: The only token that is accepted.
        damage: Path of a file that is stored with another content.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.token, self.created, self.damage = {}, "hf_good", None, None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def answer(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.answer({"error": "Invalid token"}, 401)
        if self.path.startswith("/api/whoami"):
            return self.answer({"name": "org", "type": "user"})
        return self.answer({"id": "org/tiny", "sha": COMMIT, "siblings": []})

    def do_POST(self):
        body = self._read_body()
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self.answer({"url": f"{self._endpoint}/org/tiny"})
        if path == "/api/validate-yaml":  # the front matter of README.md
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    name = entry["value"]["path"]
                    self.server.files[name] = content + b"!" if name == self.server.damage else content
            url = f"{self._endpoint}/org/tiny/commit/{COMMIT}"
            return self.answer({"success": True, "commitUrl": url, "commitOid": COMMIT})
        assert "/paths-info/" in path
        names = json.loads(body)["paths"] if body.startswith(b"{") else _form_paths(body)
        return self.answer([self._file_info(name) for name in names if name in self.server.files])

    def _read_body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    @property
    def _endpoint(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def _file_info(self, name):
        content = self.server.files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}


def _form_paths(body):
    from urllib.parse import parse_qs

    return parse_qs(body.decode())["paths"]


@pytest.fixture
def hub(monkeypatch):
    """A hub, to which HfApi is directed with a valid token."""
    from huggingface_hub import constants, hf_api

    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hf_api, "ENDPOINT", endpoint, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    yield server
    server.shutdown()
    server.server_close()


def test_the_model_is_pushed_and_its_checksums_are_compared(create, source, hub, tmp_path):
    exporter = create("hub", repo="org/tiny", dtype="float32")
    exporter.check_available()
    folder = tmp_path / "out"
    folder.mkdir()
    assert exporter.export(source, folder).startswith("merged model in float32 with its chat template")
    text = exporter.publish(folder)
    assert f"/org/tiny/commit/{COMMIT}: {len(hub.files)} files with " in text
    assert text.endswith("all checksums equal")
    assert hub.files.keys() == {file.name for file in folder.iterdir()}
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert hub.created.get("private", hub.created.get("visibility")) in (True, "private")
    card = hub.files["README.md"].decode()
    assert "from_pretrained('org/tiny', dtype='float32')" in card
    assert "old lines" not in card
    assert card.endswith("## Scores\n\nnone\n")


def test_a_file_that_differs_on_the_hub_is_an_error(create, source, hub, tmp_path):
    exporter = create("hub", repo="org/tiny")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    hub.damage = "config.json"
    with pytest.raises(HarnessError, match=r"config\.json on the hub differs from the verified file"):
        exporter.publish(tmp_path / "out")


def test_a_wrong_token_is_an_error_before_anything_is_loaded(create, hub, monkeypatch):
    hub.token = "hf_other"
    with pytest.raises(HarnessError, match="the hub refuses access") as error:
        create("hub", repo="org/tiny").check_available()
    assert error.value.hint == "log in with write access: hf auth login"


def test_a_hub_that_cannot_be_reached_is_an_error(create, hub, monkeypatch):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(HarnessError, match="cannot push"):
        create("hub", repo="org/tiny").check_available()


def test_a_dry_run_lists_the_files_and_needs_no_hub(create, source, tmp_path):
    exporter = create("hub", repo="org/tiny", dry_run=True)
    exporter.check_available()
    folder = tmp_path / "out"
    folder.mkdir()
    exporter.export(source, folder)
    assert exporter.publish(folder).startswith(f"dry run: {len(list(folder.iterdir()))} files with ")
    assert exporter.load(folder, 64).ends_answer(source.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def test_an_adapter_needs_a_run_that_trained_one(create, source, tmp_path):
    with pytest.raises(HarnessError, match="the run trained the complete model"):
        create("hub", repo="org/tiny", content="adapter").export(source, tmp_path)
