"""Arms side by side with a real Ray on this machine: equal results, dead processes, interruption, resumption."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SECOND_RATE = "mode.continual.stages.1.train.learning_rate"
NAMED = {"naive": {}, "slow": {SECOND_RATE: 0.001}, "ewc": {"mitigations.ewc": {"source": "general", "samples": 4}}}
"""naive and slow have their first stage in common."""

LONG = {"steps": 150, "save_steps": None}
"""A stage that a signal meets while it trains."""


def start(*words, **streams):
    """Start a command in a process of its own."""
    command = [sys.executable, "-m", "harness", "run", *map(str, words)]
    return subprocess.Popen(command, text=True, **streams)


def run(*words):
    """Run a command. Returns its exit code, its output and its error lines."""
    process = start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = process.communicate()
    return process.returncode, out, errors.splitlines()


def wait_for(condition, process):
    """Wait until the condition has a value, and return it."""
    while process.poll() is None:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"the command ended with {process.returncode}: {process.communicate()}")


def output_folder(desk):
    return desk.folder / f"out{desk.count}"


def process_of(folder, arm):
    """Return the number of the process of an arm, from the first line of its log; 0 if it was not started yet."""
    logs = list(folder.glob(f"*/arms/{arm}/worker.log"))
    words = logs[0].read_text().split() if logs else []
    return int(words[1]) if len(words) > 4 else 0


def comparison(folder):
    """Return the comparison without the folders of the runs."""
    content = json.loads((folder / "arms.json").read_text())
    return {key: value for key, value in content.items() if key not in ("folder", "arms")}


@pytest.fixture(scope="module")
def document(desk):
    """Three arms with two seeds, and a row that is invalid."""
    rows = (desk.folder / "general.jsonl").read_text()
    (desk.folder / "damaged.jsonl").write_text(rows + '{"instruction": "no answer"}\n')
    given = desk.continual(arms={"named": NAMED, "seeds": [0, 1], "baseline": "naive"})
    given["sources"]["general"]["jsonl"] |= {"path": "damaged.jsonl", "rejected": 0.2}
    return given


@pytest.fixture(scope="module")
def in_turn(desk, document):
    """The folder of the experiment whose arms ran one after the other."""
    assert desk.command("run", "--quiet", desk.write(document)) == 0
    return desk.newest()


def test_results_are_those_of_arms_that_run_one_after_the_other(desk, document, in_turn, same):
    code, out, errors = run("--json", desk.write(document), "--on", "ray")
    folder = desk.newest()
    assert code == 0
    assert [line for line in errors if not line.startswith(("warning: ", "arm "))] == [], "nothing of Ray is printed"
    assert comparison(folder) == comparison(in_turn)
    assert json.loads(out) == json.loads((folder / "arms.json").read_text())
    arms = sorted(arm.name for arm in (folder / "arms").iterdir())
    assert arms == sorted(f"{arm},seed={seed}" for arm in NAMED for seed in (0, 1))
    for arm in arms:
        same(in_turn / "arms" / arm, folder / "arms" / arm)
        assert (folder / "arms" / arm / "rejected/general.jsonl").read_text().count("\n") == 1
        lines = (folder / "arms" / arm / "worker.log").read_text().splitlines()
        assert lines[0].startswith("process ")
    processes = {process_of(folder.parent, arm) for arm in arms}
    assert len(processes) == 6, "a process for each arm"
    for seed in (0, 1):
        trained = {arm: (folder / f"arms/{arm},seed={seed}/stages/a/checkpoints").exists() for arm in NAMED}
        assert trained == {"naive": True, "slow": False, "ewc": True}, "slow did not train its first stage"
    assert not list(folder.glob("arms/*/stages/*/end"))


def test_an_arm_whose_process_is_killed_fails_alone_and_is_resumed(desk, document, in_turn, same):
    chosen = [word for arm in NAMED for word in ("--arm", f"{arm},seed=0")]
    process = start("--quiet", desk.write(document), "--on", "ray", *chosen, stderr=subprocess.PIPE)
    killed = wait_for(lambda: process_of(output_folder(desk), "naive,seed=0"), process)
    os.kill(killed, signal.SIGKILL)
    _, errors = process.communicate()
    folder = desk.newest()
    assert process.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith(f"harness: {folder}: 1 arm(s) failed, 'naive,seed=0' first: its process died: it was killed")
    assert last.endswith(f"fix the cause, then: harness run --resume {folder}")
    missing = json.loads((folder / "arms.json").read_text())["missing"]
    assert missing.pop("naive,seed=0").startswith("its process died")
    assert set(missing.values()) == {"the arm is not finished"}
    for arm in ("slow,seed=0", "ewc,seed=0"):
        same(in_turn / "arms" / arm, folder / "arms" / arm)

    code, _, errors = run("--quiet", "--resume", folder, "--on", "ray")
    assert code == 0, errors
    assert comparison(folder) == comparison(in_turn)
    same(in_turn / "arms/naive,seed=0", folder / "arms/naive,seed=0")
    assert (folder / "arms/naive,seed=0/worker.log").read_text().count("process ") == 2


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_stops_all_arms_with_checkpoints_and_the_experiment_is_resumed(desk, same, name, code):
    document = desk.document(arms={"named": {"a": {}, "b": {"train.learning_rate": 0.001}}})
    document["train"] |= LONG
    process = start("--quiet", desk.write(document), "--on", "ray", stderr=subprocess.PIPE)

    def steps(arm):
        logs = list(output_folder(desk).glob(f"*/arms/{arm}/stages/*/steps.jsonl"))
        return logs and logs[0].read_text().count("\n") > 2

    wait_for(lambda: steps("a") or steps("b"), process)
    processes = [process_of(output_folder(desk), arm) for arm in ("a", "b")]
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate()
    folder = desk.newest()
    assert process.returncode == code
    assert errors.splitlines()[-1] == f"harness: interrupted by {name}; to resume: harness run --resume {folder}"
    for number in filter(None, processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(number).wait(30)
    checkpoints = list(folder.glob("arms/*/stages/*/checkpoints/checkpoint-*"))
    assert checkpoints, "an arm that trained has saved a checkpoint"
    assert not list(folder.glob("arms/*/report.json"))

    assert desk.command("run", "--quiet", "--resume", folder) == 0
    if name == "SIGTERM":
        assert desk.command("run", "--quiet", desk.write(document)) == 0
        assert comparison(folder) == comparison(desk.newest())
        for arm in ("a", "b"):
            same(desk.newest() / "arms" / arm, folder / "arms" / arm)
