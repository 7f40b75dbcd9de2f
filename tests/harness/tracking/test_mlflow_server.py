"""A real MLflow server on loopback: runs are stored, also with authentication; its web page displays them; `compare`
reads them."""

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
from harness.tracking.tracker import MlflowTracker

pytestmark = pytest.mark.slow


PASSWORD = "hunter22-x9"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URI and the folder of a server that stores the artifacts."""
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
        # A new session: the server starts child processes, which are stopped together with it.
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
        try:
            uri = f"http://127.0.0.1:{port}"
            _wait_for_server(uri, process, folder / "log")
            yield SimpleNamespace(uri=uri, folder=folder)
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _wait_for_server(uri, process, log):
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).read()
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.3)


class _AuthenticatingProxy(http.server.BaseHTTPRequestHandler):
    """A proxy that forwards only requests with the password or the token."""

    target = ""

    def _forward(self):
        basic = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") not in (basic, f"Bearer {PASSWORD}"):
            self._answer(401, {"WWW-Authenticate": "Basic"}, b"authentication required")
            return
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "authorization")}
        request = urllib.request.Request(self.target + self.path, body or None, headers, method=self.command)
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

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def guarded_host(server):
    """The host and port of a proxy that requires a password for the server."""
    handler = type("Proxy", (_AuthenticatingProxy,), {"target": server.uri})
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{proxy.server_port}"
    proxy.shutdown()
    proxy.server_close()


def track_run(uri, folder, experiment, warn=pytest.fail, **options):
    """Track a whole run and return its tracker."""
    tracker = MlflowTracker({"enabled": True, "experiment": experiment, "uri": uri}, "mixed-sft", warn)
    example_run.feed(tracker, folder, steps=3, **options)
    return tracker


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory):
    """The ids of two runs of two stages with different learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    trackers = [
        track_run(server.uri, folder / "first", "page", stages=2),
        track_run(server.uri, folder / "second", "page", stages=2, settings={"train": {"learning_rate": 1e-5}}),
    ]
    # `compare` may be executed on another machine, which has no folders of the runs.
    shutil.rmtree(folder)
    return [tracker.run_id for tracker in trackers]


# -- compare ----------------------------------------------------------------------------------------------------------


def test_runs_are_compared_from_the_files_on_the_server(server, runs):
    comparison = compare.compare_runs([], "page", server.uri)
    assert [run.run_id for run in comparison.runs] == runs
    assert [run.files for run in comparison.runs] == ["artifacts", "artifacts"]
    assert comparison.not_comparable == ()
    assert len(comparison.pairs) == 4
    assert {pair.n for pair in comparison.pairs} == {40}
    assert comparison.differences == {"train.learning_rate": ("0.0002", "1e-05")}


# -- authentication ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_credentials(monkeypatch):
    """Remove the credentials of MLflow from the environment; return monkeypatch."""
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return monkeypatch


def test_a_user_name_and_password_in_the_environment_give_access(guarded_host, no_credentials, tmp_path):
    no_credentials.setenv("MLFLOW_TRACKING_USERNAME", "me")
    no_credentials.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    tracker = track_run(f"http://{guarded_host}", tmp_path / "a", "guarded")
    shutil.rmtree(tmp_path / "a" / "predictions")
    comparison = compare.compare_runs([tracker.run_id], "guarded", f"http://{guarded_host}")
    assert comparison.runs[0].scores["helpdesk/rougeL"].verdict == "better"


def test_a_token_in_the_environment_gives_access(guarded_host, no_credentials, tmp_path):
    no_credentials.setenv("MLFLOW_TRACKING_TOKEN", PASSWORD)
    assert track_run(f"http://{guarded_host}", tmp_path / "a", "guarded").uri == f"http://{guarded_host}"


def test_a_user_name_and_password_in_the_uri_give_access_and_are_not_stored(guarded_host, no_credentials, tmp_path):
    uri = f"http://me:{PASSWORD}@{guarded_host}"
    tracker = track_run(uri, tmp_path / "a", "guarded", settings={"track": {"mlflow": {"uri": uri}}})
    assert tracker.uri == f"http://{guarded_host}"
    assert json.loads((tmp_path / "a" / "mlflow.json").read_text())["uri"] == f"http://{guarded_host}"
    assert compare.compare_runs([tracker.run_id], None, uri).uri == f"http://{guarded_host}"


def test_a_run_without_valid_credentials_warns_once_and_finishes(guarded_host, no_credentials, tmp_path):
    warnings = []
    tracker = track_run(f"http://me:wrong-pass-77@{guarded_host}", tmp_path / "a", "guarded", warnings.append)
    (warning,) = warnings
    assert "401" in warning
    assert "wrong-pass-77" not in warning
    assert tracker.run_id is None
    assert (tmp_path / "a" / "report.json").is_file()
    with pytest.raises(errors.HarnessError, match="401"):
        compare.compare_runs(["x"], None, f"http://{guarded_host}")


def test_no_file_or_log_of_the_server_contains_the_password(server, guarded_host):
    files = [file for file in server.folder.rglob("*") if file.is_file()]
    assert {"log", "mlflow.db", "spec.json"} <= {file.name for file in files}
    assert [file for file in files if PASSWORD.encode() in file.read_bytes()] == []


# -- the web page -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_text(server, tmp_path_factory):
    """Return a function that opens a path of MLflow's web page in a headless browser and returns its text."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"MLflow's web page needs a browser: install one of {', '.join(BROWSERS)}")
    profile = tmp_path_factory.mktemp("profile")

    def page_text(path):
        command = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--window-size=3600,1400", "--virtual-time-budget=25000", "--dump-dom",
            f"{server.uri}/#{path}",
        ]  # fmt: skip
        completed = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        visible_html = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", completed.stdout, flags=re.DOTALL)
        return re.sub(r"[|\s]*\|[|\s]*", "|", html.unescape(re.sub(r"<[^>]+>", "|", visible_html)))

    return page_text


@pytest.fixture(scope="module")
def experiment_id(server, runs):
    """The id of the experiment that contains both runs."""
    return mlflow_store.open_store(server.uri).get_experiment_by_name("page").experiment_id


def test_the_experiment_page_lists_the_runs_with_their_scores_in_columns(page_text, experiment_id):
    text = page_text(f"/experiments/{experiment_id}/runs?viewStateShareKey=harness")
    assert "|first|" in text
    assert "|second|" in text
    assert "stage-1/first" not in text, "stages are collapsed under their run"
    for column in ("helpdesk/rougeL", "helpdesk/rougeL/delta", "general/rougeL", "train.learning_rate",
                   "mitigations"):  # fmt: skip
        assert f"|{column}|" in text
    for cell in ("0.62", "0.0002", "1e-05", "lora, mixing"):
        assert re.search(rf"\|{re.escape(cell)}", text), cell


def test_the_chart_page_plots_every_score_by_stage(page_text, experiment_id):
    text = page_text(f"/experiments/{experiment_id}/runs?compareRunsMode=CHART")
    assert "|helpdesk|" in text, "scores are grouped by suite"
    assert "forgetting/rougeL" in text


def test_the_comparison_page_of_two_runs_shows_their_settings_and_scores(page_text, experiment_id, runs):
    ids = ",".join(f'"{run_id}"' for run_id in runs)
    text = page_text(f'/compare-runs?runs=[{ids}]&experiments=["{experiment_id}"]'.replace('"', "%22"))
    assert "|Comparing 2 Runs from 1 Experiment|" in text
    assert "|first|second|" in text
    assert "|train.learning_rate|0.0002|1e-05|" in text
    assert "|mitigations|lora, mixing|lora, mixing|" in text
    assert "|helpdesk/rougeL|" in text
    assert "|template_fingerprint|" in text


def test_the_run_page_shows_its_scores_and_artifacts(page_text, experiment_id, runs):
    text = page_text(f"/experiments/{experiment_id}/runs/{runs[0]}")
    assert "helpdesk/rougeL/delta" in text
    assert "|stage-1/first|" in text, "the run links to its curves"
    assert re.search(r"\|Description\|", text)
    assert "Helpdesk improved" in text, "the description is the verdict"
    text = page_text(f"/experiments/{experiment_id}/runs/{runs[0]}/artifacts")
    for name in ("predictions", "tables", "report.json", "scores.json", "spec.json"):
        assert f"|{name}|" in text
    text = page_text(f"/experiments/{experiment_id}/runs/{runs[0]}/artifacts/tables/helpdesk.json")
    assert "base answer" in text
    assert "stage 2 says 0" in text
