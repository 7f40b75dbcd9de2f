"""Break the tracking server of a run; the run must finish in about the same time, and `harness track` send it later."""

from __future__ import annotations

import random
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path

from faults import command
from faults.results import Section, differences, snapshot

SPEC = "plain"
START_LIMIT = 20.0
"""Seconds that a run may take longer than without a tracker, in CPU-independent waiting: one start, and one end."""


class BrokenServer:
    """A server on loopback that answers wrongly.

    `mode` is `hang` (takes the connection and never answers), `closed`, `garbage`, `401`, `500`, `html`, `slow`, or
    `half` (half of an answer).
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._socket.close()
        for connection in self.connections:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            if self.mode == "hang":
                return
            if self.mode == "slow":
                time.sleep(3)
            body = {"garbage": b"\x00\xff" * 400, "html": b"<html>\x1b[31moops</html>"}.get(self.mode, b"{}")
            status = {"401": b"401 Unauthorized", "500": b"500 Oops", "html": b"502 Bad Gateway"}.get(
                self.mode, b"200 OK"
            )
            if self.mode == "garbage":
                connection.sendall(body)
            elif self.mode == "half":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{")
            elif self.mode != "closed":
                head = b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: "
                connection.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)
            connection.close()
        except OSError:
            pass


MODES = ("hang", "closed", "garbage", "401", "500", "html", "slow", "half")
ADDRESSES = {
    "nobody listens": "http://127.0.0.1:1",
    "unknown scheme": "foo://bar/baz",
    "unknown host": "http://no.such.host.invalid:5000",
    "folder that cannot be written": "sqlite:////proc/x/mlflow.db",
    "not a database": "sqlite:///{bench}/domain.jsonl",
}


class TrackerRound:
    """Faults of the tracking server of one spec."""

    def __init__(self, bench: Path, work: Path, draw: random.Random) -> None:
        self.bench, self.work, self.draw = bench, work / "trackers", draw

    def prepare(self) -> str:
        """Run the spec with a store that works; return a failure or ""."""
        self.store = self.work / "sound.db"
        shutil.rmtree(self.work, ignore_errors=True)
        outcome, run = self._run("sound", f"sqlite:///{self.store}")
        if outcome.code != 0 or run is None:
            return f"the tracked run exits with {outcome.code}: {outcome.text[-300:]}"
        self.expected = snapshot(run)
        return ""

    def break_tracker(self, fault: str, section: Section) -> None:
        """Run with a broken tracker, and send the run to a store that works."""
        server = BrokenServer(fault) if fault in MODES else None
        address = f"http://127.0.0.1:{server.port}" if server else ADDRESSES[fault].format(bench=self.bench)
        outcome, run = self._run("broken", address)
        if server is not None:
            server.close()
        if outcome.code != 0 or outcome.has_traceback or run is None:
            section.add("failed", f"{fault}: exit {outcome.code}: {outcome.text[-400:]}")
            return
        if "harness track" not in outcome.text or "\x1b[31m" in outcome.text:
            section.add("failed", f"{fault}: no word about the missed run, or escapes: {outcome.text[-400:]}")
            return
        unequal = differences(self.expected, snapshot(run))
        sent = command.run(["track", run, "--uri", f"sqlite:///{self.store}"], self.work / "broken", output="sent.txt")
        if unequal or sent.code != 0 or not self._is_stored(run.name):
            section.add("failed", f"{fault}: {unequal[:3]} differ, track exits with {sent.code}: {sent.text[-300:]}")
            return
        section.add("finished, sent later")

    def kill_while_creating(self, section: Section) -> None:
        """Kill a run between the creation of a stage's MLflow run and its parameters; the resumed run fills them in."""

        def install() -> None:
            import os
            import signal

            from harness.tracking.mlflow_run import MlflowRun

            real = MlflowRun.log_params

            def log_params(self: MlflowRun, flat: dict, *, to_stage_run: bool = False) -> None:
                if to_stage_run:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(self, flat, to_stage_run=to_stage_run)

            MlflowRun.log_params = log_params  # type: ignore[method-assign]

        store = self.work / "killed.db"
        store.unlink(missing_ok=True)
        outcome, run = self._run("killed", f"sqlite:///{store}", before=install)
        if outcome.code != -9 or run is None:
            section.add("failed", f"the run was not killed: exit {outcome.code}: {outcome.text[-300:]}")
            return
        resumed = command.run(["run", "--resume", run], self.work / "killed", output="resumed.txt")
        with sqlite3.connect(store) as connection:
            query = "select r.name, r.status, (select count(*) from params p where p.run_uuid = r.run_uuid) from runs r"
            runs = connection.execute(query).fetchall()
        unfilled = [row for row in runs if row[1] != "FINISHED" or (not row[0].startswith("system/") and not row[2])]
        failure = f"exit {resumed.code}, unfilled: {unfilled}" if resumed.code or unfilled else ""
        section.add("failed" if failure else "filled after resume", failure)

    def _run(self, name: str, uri: str, **options: object) -> tuple[command.Outcome, Path | None]:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        arguments = ["run", self.bench / f"{SPEC}.json", "--set", f"track.mlflow.uri={uri}"]
        outcome = command.run(arguments, folder, **options)  # type: ignore[arg-type]
        return outcome, command.run_folder(folder)

    def _is_stored(self, run_name: str) -> bool:
        with sqlite3.connect(self.store) as connection:
            rows = connection.execute("select value from tags where key = 'harness.id'").fetchall()
        return (run_name,) in rows
