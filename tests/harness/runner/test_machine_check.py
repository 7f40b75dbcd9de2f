"""`harness doctor`: what is missing is named with what to do, and only what stops every run fails."""

from __future__ import annotations

import http.server
import json
import sqlite3
import threading
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.drafting.device_facts import DeviceFacts
from harness.registry import BrokenPlugin, Registry
from harness.runner import machine_check
from harness.runner.machine_check import check_machine

CPU = DeviceFacts("CPU", None, 0, 2, 16.0)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine without network or GPU, whose folders are in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine_check, "find_device", lambda: CPU)


def found(uri=None, registry=None, output=Path("runs")):
    return {check.name: check for check in check_machine(registry or Registry(), output, uri)}


def test_a_usable_machine_fails_nothing(capsys):
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks.keys() == {
        "versions",
        "device",
        "memory",
        "output",
        "cache",
        "hub cache",
        "hub",
        "tracker",
        "plugins",
    }
    assert checks["versions"]["state"] == "ok"
    assert checks["hub"]["state"] == "warning"  # offline in tests
    assert main(["doctor"]) == 0
    assert "✓ versions   harness " in capsys.readouterr().out


def test_a_missing_or_old_package_fails(monkeypatch):
    requires = ["torch>=99", "no-such-package>=1", "other>=1 ; extra == 'dev'", "numpy>=1"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requires)
    check = found()["versions"]
    assert check.state == "failed"
    assert "is not >=99" in check.text
    assert "no-such-package is missing" in check.text
    assert "other" not in check.text


def test_a_folder_that_cannot_be_written_fails(monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    checks = found()
    assert (checks["output"].state, checks["cache"].state, checks["hub cache"].state) == ("failed", "failed", "warning")
    assert "Permission denied" in checks["output"].text


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine_check, "find_device", lambda: DeviceFacts("NVIDIA L4", 24.0, 1, 8, 6.0))
    checks = found()
    assert checks["device"].state == "warning"
    assert checks["device"].text.startswith("NVIDIA L4 is not usable: torch ")
    assert checks["memory"].state == "warning"


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_answers_is_reachable_and_a_closed_port_is_not(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    checks = found(uri=server)
    assert checks["hub"].state == checks["tracker"].state == "ok"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    checks = found(uri="http://user:geheim@127.0.0.1:9")
    assert checks["hub"].state == checks["tracker"].state == "warning"
    assert "cannot be reached" in checks["hub"].text
    assert "geheim" not in checks["tracker"].text


def test_a_file_that_is_not_a_store_is_a_warning(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database")
    assert found()["tracker"].state == "warning"
    (tmp_path / "mlflow.db").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("create table experiments (id integer)")
    assert found()["tracker"].state == "ok"


def test_a_broken_plugin_is_a_warning():
    registry = Registry()
    registry.broken_plugins.append(BrokenPlugin("bad-plugin", "bad", "ImportError"))
    check = found(registry=registry)["plugins"]
    assert (check.state, check.text) == ("warning", "bad-plugin cannot be loaded")
