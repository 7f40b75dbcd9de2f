"""A real MLflow server on loopback: runs get there, past authentication too, its own page shows them as it should, and
comparing works with what it gives back."""

from __future__ import annotations

import base64
import html
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
from support import example_run

from harness import errors
from harness.comparison import compare
from harness.tracking import mlflow_store
from harness.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


PASSWORD = "hunter22-x9"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address and the folder of a server that keeps artifacts itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        # A session of its own: the server starts others, which must end with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            _wait_for(address, process, folder / "log")
            yield SimpleNamespace(uri=address, folder=folder)
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _wait_for(address, process, log):
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).read()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server does not come up"
            time.sleep(0.3)


class _Guard(http.server.BaseHTTPRequestHandler):
    """A proxy that lets nobody past who does not say the password, or the token."""

    target = ""
    seen: list[str]

    def _pass_on(self):
        basic = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") not in (basic, f"Bearer {PASSWORD}"):
            self._answer(401, {"WWW-Authenticate": "Basic"}, b"who are you?")
            return
        kept = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "authorization")}
        request = urllib.request.Request(self.target + self.path, body or None, kept, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                self._answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.headers, error.read())

    def _answer(self, status, headers, body):
        self.send_response(status)
        for key, value in headers.items():
            if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def guarded(server):
    """The address of the server behind a password."""
    handler = type("Guard", (_Guard,), {"target": server.uri})
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    proxy.server_close()


def fed(uri, folder, experiment, warn=pytest.fail, **options):
    tracker = Tracker({"enabled": True, "experiment": experiment, "uri": uri}, "mixed-sft", warn)
    example_run.feed(tracker, folder, steps=3, **options)
    return tracker


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory):
    """Two runs of two stages that differ in their learning rate and mitigations."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        fed(server.uri, folder / "first", "page", stages=2),
        fed(server.uri, folder / "second", "page", stages=2, settings={"train": {"learning_rate": 1e-5}}),
    ]
    # The machine that compares is another one.
    shutil.rmtree(folder)
    return [one.run_id for one in made]


# -- compare ----------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_what_the_server_gives_back(server, runs):
    made = compare.compare_runs([], "page", server.uri)
    assert [run.run_id for run in made.runs] == runs
    assert [run.files for run in made.runs] == ["artifacts", "artifacts"]
    assert made.not_comparable == ()
    assert len(made.pairs) == 4
    assert {one.n for one in made.pairs} == {40}
    assert made.differences == {"train.learning_rate": ("0.0002", "1e-05")}


# -- authentication ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch):
    """No credentials in the environment."""
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return monkeypatch


def test_a_name_and_a_password_of_the_environment_open_the_server(guarded, nobody, tmp_path):
    nobody.setenv("MLFLOW_TRACKING_USERNAME", "me")
    nobody.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    made = fed(f"http://{guarded}", tmp_path / "a", "guarded")
    shutil.rmtree(tmp_path / "a" / "predictions")
    found = compare.compare_runs([made.run_id], "guarded", f"http://{guarded}")
    assert found.runs[0].scores["helpdesk/rougeL"].verdict == "better"


def test_a_token_of_the_environment_opens_the_server(guarded, nobody, tmp_path):
    nobody.setenv("MLFLOW_TRACKING_TOKEN", PASSWORD)
    assert fed(f"http://{guarded}", tmp_path / "a", "guarded").uri == f"http://{guarded}"


def test_a_name_and_a_password_in_the_uri_open_the_server_and_are_told_to_nobody(guarded, nobody, tmp_path):
    uri = f"http://me:{PASSWORD}@{guarded}"
    made = fed(uri, tmp_path / "a", "guarded", settings={"track": {"uri": uri}})
    assert made.uri == f"http://{guarded}"
    assert json.loads((tmp_path / "a" / "mlflow.json").read_text())["uri"] == f"http://{guarded}"
    assert compare.compare_runs([made.run_id], None, uri).uri == f"http://{guarded}"


def test_without_credentials_a_run_is_warned_once_and_goes_on(guarded, nobody, tmp_path):
    warnings = []
    made = fed(f"http://me:wrong-pass-77@{guarded}", tmp_path / "a", "guarded", warnings.append)
    (warning,) = warnings
    assert "401" in warning
    assert "wrong-pass-77" not in warning
    assert made.run_id is None
    assert (tmp_path / "a" / "report.json").is_file()
    with pytest.raises(errors.HarnessError, match="401"):
        compare.compare_runs(["x"], None, f"http://{guarded}")


def test_no_password_is_on_the_server_or_in_its_log(server, guarded):
    files = [file for file in server.folder.rglob("*") if file.is_file()]
    assert {"log", "mlflow.db", "spec.json"} <= {file.name for file in files}
    assert [file for file in files if PASSWORD.encode() in file.read_bytes()] == []


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    """Opens an address of MLflow's page in a browser without a window and gives the text that it then has."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"there is no browser to open MLflow's page with: none of {', '.join(BROWSERS)} is installed")
    profile = tmp_path_factory.mktemp("profile")

    def page(address):
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--window-size=3600,1400", "--virtual-time-budget=25000", "--dump-dom",
            f"{server.uri}/#{address}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        shown = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", done.stdout, flags=re.DOTALL)
        return re.sub(r"[|\s]*\|[|\s]*", "|", html.unescape(re.sub(r"<[^>]+>", "|", shown)))

    return page


@pytest.fixture(scope="module")
def experiment(server, runs):
    return mlflow_store.open_store(server.uri).get_experiment_by_name("page").experiment_id


def test_the_experiments_page_lists_the_runs_with_their_scores_in_columns(page, experiment):
    shown = page(f"/experiments/{experiment}/runs?viewStateShareKey=harness")
    assert "|first|" in shown
    assert "|second|" in shown
    assert "first/stage-1" not in shown, "stages are folded under their run"
    for column in ("helpdesk/rougeL", "helpdesk/rougeL/delta", "general/response_perplexity", "train.learning_rate",
                   "mitigations"):  # fmt: skip
        assert f"|{column}|" in shown
    for cell in ("0.62", "0.0002", "1e-05", "lora, mixing"):
        assert re.search(rf"\|{re.escape(cell)}", shown), cell


def test_the_page_draws_every_score_by_stage(page, experiment):
    shown = page(f"/experiments/{experiment}/runs?compareRunsMode=CHART")
    assert "|helpdesk|" in shown, "scores stand together by suite"
    assert "forgetting/rougeL" in shown


def test_the_comparison_of_two_runs_shows_what_differs_and_what_they_scored(page, experiment, runs):
    ids = ",".join(f'"{one}"' for one in runs)
    shown = page(f'/compare-runs?runs=[{ids}]&experiments=["{experiment}"]'.replace('"', "%22"))
    assert "|Comparing 2 Runs from 1 Experiment|" in shown
    assert "|first|second|" in shown
    assert "|train.learning_rate|0.0002|1e-05|" in shown
    assert "|mitigations|lora, mixing|lora, mixing|" in shown
    assert "|helpdesk/rougeL|" in shown
    assert "|template_fingerprint|" in shown


def test_the_page_of_a_run_has_its_scores_and_its_files(page, experiment, runs):
    shown = page(f"/experiments/{experiment}/runs/{runs[0]}")
    assert "helpdesk/rougeL/delta" in shown
    shown = page(f"/experiments/{experiment}/runs/{runs[0]}/artifacts")
    for name in ("predictions", "tables", "report.json", "scores.json", "spec.json"):
        assert f"|{name}|" in shown
    shown = page(f"/experiments/{experiment}/runs/{runs[0]}/artifacts/tables/helpdesk.json")
    assert "base answer" in shown
    assert "stage 2 says 0" in shown
