"""Arms side by side: refusals, the order of arms, how they end, and interruption. Ray is replaced by a fake."""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections import Counter
from types import SimpleNamespace

import pytest

from harness import events, registry
from harness.cli.main import main
from harness.errors import HarnessError, RunError
from harness.runner import arm_worker, parallel_arms, ray_cluster
from harness.runner.arm_run import ArmContext, plan_arms
from harness.runner.arm_task import LOG_FILE, ArmOutcome, ArmTask
from harness.spec import arms as arms_of
from harness.spec import schema
from harness.spec import spec as spec_module
from harness.utils import stop_signals

SECOND_RATE = "mode.continual.stages.1.train.learning_rate"
NAMED = {
    "naive": {},
    "slow": {SECOND_RATE: 0.001},
    "slower": {SECOND_RATE: 0.0001},
    "warm": {"train.weight_decay": 0.1},
}
"""The first three have their first stage in common."""


# -- what is refused --------------------------------------------------------------------------------------------------


def error_lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness: ")]


def run(*words):
    return main(["run", *map(str, words)])


def require_installed_ray():
    pytest.importorskip("ray", reason="the extra ray is not installed")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def spec_with_arms(desk):
    return desk.write(desk.document(arms={"named": {"a": {}, "b": {"train.steps": 3}}}))


@pytest.mark.parametrize("on", ["gpu", "ray:", "ray://", "ray://host", "http://host:1", "host:port", "host:1/x", ""])
def test_a_value_that_is_not_an_address_is_refused(spec_with_arms, capsys, on):
    assert run(spec_with_arms, "--on", on) == 2
    (line,) = error_lines(capsys)
    assert line.startswith(f"harness: --on {on}: is neither ray nor the address of a Ray cluster; type --on ray")


def test_a_spec_without_arms_is_refused(desk, capsys):
    require_installed_ray()
    assert run(desk.write(desk.document()), "--on", "ray") == 2
    (line,) = error_lines(capsys)
    assert "--on ray: the spec has no arms" in line
    assert not (desk.folder / f"out{desk.count}").exists()


def test_several_processes_for_one_arm_are_refused(spec_with_arms, capsys, monkeypatch):
    require_installed_ray()
    assert run(spec_with_arms, "--on", "ray", "--gpus", "2") == 2
    (line,) = error_lines(capsys)
    assert "--on ray --gpus 2: with --on every arm runs on one GPU" in line
    launched = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    assert run(spec_with_arms, "--on", "ray") == 2
    (line,) = error_lines(capsys)
    assert "a launcher has started 2 processes" in line


@pytest.mark.parametrize(("on", "missing", "message"), [("ray", "ray", "ray"), ("ray://host:1", "grpc", "grpcio")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    spec_with_arms, capsys, monkeypatch, on, missing, message
):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None if name == missing else object())
    assert run(spec_with_arms, "--on", on) == 2
    (line,) = error_lines(capsys)
    assert line == f"harness: --on {on}: the package {message} is not installed; pip install 'harness-sft[ray]'"


def test_the_python_interface_refuses_the_same(desk, spec_with_arms):
    import harness

    require_installed_ray()
    with pytest.raises(HarnessError, match="is neither ray nor the address"):
        harness.run_experiment(spec_with_arms, on="gpu", quiet=True)
    with pytest.raises(HarnessError, match="is neither ray nor the address"):
        harness.resume(desk.folder, on="gpu", quiet=True)


def test_a_cluster_that_cannot_be_reached_is_one_error_before_anything_is_written(desk, spec_with_arms, capsys):
    require_installed_ray()
    address = f"127.0.0.1:{free_port()}"
    assert run(spec_with_arms, "--on", address) == 2
    (line,) = error_lines(capsys)
    assert line.startswith(f"harness: --on {address}: cannot reach {address}: Connection refused; ")
    assert not (desk.folder / f"out{desk.count}").exists()


# -- the order of arms ------------------------------------------------------------------------------------------------


class FakeCluster:
    """Records tasks. `end(name, outcome)` lets one end at the next `wait`; `on_wait` is called before each `wait`."""

    def __init__(self, context, on_wait):
        self.context, self.on_wait = context, on_wait
        self.tasks, self.outcomes, self.seen = {}, {}, set()
        self.interrupted, self.killed = [], []

    def submit(self, task):
        self.tasks[task.arm] = task
        return task.arm

    def start(self, name):
        file = self.context.folder / name / LOG_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as log:
            log.write("process 1 on host\n")

    def end(self, name, outcome=None):
        self.outcomes[name] = outcome or ArmOutcome()

    def wait(self, handles, seconds):
        assert handles, "nothing to wait for"
        self.on_wait(self)
        ended = [handle for handle in handles if handle in self.outcomes and handle not in self.seen]
        self.seen.update(ended[:1])
        return ended[:1]

    def outcome(self, handle):
        return self.outcomes[handle]

    def interrupt(self, handles, *, at_once=False):
        (self.killed if at_once else self.interrupted).extend(handles)


@pytest.fixture
def planned(desk, listener, tmp_path):
    """The arms of `NAMED`, a context for them, and a listener."""
    plugins, recorder = registry.discover_plugins(), listener()
    plugins.manager.register(recorder)
    file = desk.write(desk.continual(arms={"named": NAMED}))
    composed = schema.compose_schema(plugins)
    spec = spec_module.load_spec(file, composed)
    arms = arms_of.expand_arms(spec.document["arms"], "arms")
    pairs = [(arm, spec_module.load_spec(file, composed, [*arm.overrides(), "arms=null"])) for arm in arms]
    return plan_arms(pairs, plugins), ArmContext(plugins, tmp_path / "arms", "parent", True), recorder


def test_an_arm_waits_for_the_earlier_one_that_trains_its_first_stage(planned):
    arm_runs, context, _ = planned
    submitted = []

    def on_wait(cluster):
        submitted.append(sorted(cluster.tasks))
        for name in ("warm", "naive", "slow", "slower"):
            if name in cluster.tasks and name not in cluster.outcomes:
                cluster.end(name)
                return

    cluster = FakeCluster(context, on_wait)
    assert parallel_arms.run_side_by_side(context, arm_runs, cluster) == {}
    assert submitted[0] == ["naive", "warm"], "the others wait for the first stage of naive"
    assert submitted[1] == ["naive", "warm"], "warm has ended, which they did not wait for"
    assert submitted[2] == ["naive", "slow", "slower", "warm"]
    assert cluster.tasks["naive"].stages_to_keep == 1
    assert cluster.tasks["warm"].stages_to_keep == 0
    assert cluster.tasks["slow"].earlier == {"naive": 1}
    assert cluster.tasks["slower"].earlier == {"naive": 1}, "slow runs, so its snapshot may be incomplete"
    assert {(task.parent, task.tracked) for task in cluster.tasks.values()} == {("parent", True)}


def test_an_arm_that_fails_does_not_stop_the_others(planned):
    arm_runs, context, recorder = planned

    def on_wait(cluster):
        for name in cluster.tasks:
            failed = name in ("naive", "warm")
            cluster.end(name, ArmOutcome("it died", "its process died") if failed else None)

    cluster = FakeCluster(context, on_wait)
    failures = parallel_arms.run_side_by_side(context, list(reversed(arm_runs)), cluster)
    assert list(failures.items()) == [("warm", "it died"), ("naive", "it died")], "in the order of the arms"
    assert set(cluster.tasks) == set(NAMED)
    assert sorted(event.arm for event in recorder.of(events.ArmFinished)) == ["slow", "slower"]
    assert recorder.warnings() == [f"the arm {name!r} failed: its process died" for name in ("warm", "naive")]
    assert [event.error for event in recorder.of(events.RunFailed)] == ["its process died"] * 2


def test_events_say_when_an_arm_starts_and_ends_and_repeat_its_warnings(planned):
    arm_runs, context, recorder = planned
    (context.folder / "naive").mkdir(parents=True)
    (context.folder / "naive" / LOG_FILE).write_text("of an earlier attempt\n")

    def first(cluster):
        assert not recorder.of(events.ArmStarted), "they wait for a device"
        cluster.start("warm")
        cluster.on_wait = second

    def second(cluster):
        assert [(event.arm, event.number, event.of) for event in recorder.of(events.ArmStarted)] == [("warm", 4, 4)]
        cluster.start("naive")
        cluster.end("warm", ArmOutcome(warnings=[("a warning", ("row 1",))]))
        cluster.on_wait = lambda cluster: [cluster.end(name) for name in cluster.tasks if name not in cluster.outcomes]

    parallel_arms.run_side_by_side(context, arm_runs, FakeCluster(context, first))
    counts = Counter((type(event), event.arm) for event in recorder.events if hasattr(event, "arm"))
    assert counts == {(kind, arm): 1 for kind in (events.ArmStarted, events.ArmFinished) for arm in NAMED}
    (warning,) = recorder.of(events.WarningRaised)
    assert (warning.text, warning.rows) == ("arm 'warm': a warning", ("row 1",))
    progress = recorder.of(events.ProgressUpdated)
    assert (progress[0].done, progress[0].total, progress[0].note) == (0, 4, "warm")
    assert progress[-1].done == 4


def test_a_finished_arm_needs_no_device(planned, monkeypatch):
    arm_runs, context, recorder = planned
    (context.folder / "naive").mkdir(parents=True)
    (context.folder / "naive" / "report.json").write_text("{}")
    monkeypatch.setattr(parallel_arms, "run_arm", lambda *_: ArmOutcome(reused=True))
    cluster = FakeCluster(context, lambda cluster: [cluster.end(name) for name in cluster.tasks])
    assert parallel_arms.run_side_by_side(context, arm_runs, cluster) == {}
    assert set(cluster.tasks) == {"slow", "slower", "warm"}
    assert cluster.tasks["slow"].earlier == {"naive": 1}
    assert [event.arm for event in recorder.of(events.ArmFinished) if event.reused] == ["naive"]


def test_a_signal_interrupts_the_arms_and_waits_until_they_have_ended(planned, monkeypatch):
    arm_runs, context, recorder = planned
    waits = []

    def on_wait(cluster):
        waits.append(len(cluster.interrupted))
        if len(waits) == 1:
            cluster.start("naive")
            stop_signals._State.requested = "SIGTERM"
        if len(waits) == 3:
            cluster.end("naive", ArmOutcome("the disk is full", "arms/naive: the disk is full"))
            cluster.end("warm", ArmOutcome("interrupted", "interrupted", is_interrupted=True))

    cluster = FakeCluster(context, on_wait)
    with pytest.raises(stop_signals.Interrupted) as raised:
        parallel_arms.run_side_by_side(context, arm_runs, cluster)
    assert raised.value.exit_code == 75
    assert cluster.interrupted == ["naive", "warm"]
    assert set(cluster.tasks) == {"naive", "warm"}, "no arm is submitted any more"
    assert waits == [0, 2, 2, 2], "it waited for both arms after it had interrupted them"
    assert not stop_signals.is_requested()
    stopping, failed = recorder.warnings()
    assert "stopping 1 arm(s) after their current step" in stopping
    assert failed == "the arm 'naive' failed: arms/naive: the disk is full"
    assert cluster.killed == []


def test_arms_that_do_not_end_are_killed_after_the_time_of_grace(planned, monkeypatch):
    arm_runs, context, recorder = planned
    clock = iter(range(0, 10_000, 50))
    monkeypatch.setattr(parallel_arms.time, "monotonic", lambda: next(clock))

    def on_wait(cluster):
        if not cluster.interrupted:
            raise ValueError("a bug")
        cluster.end("warm")

    cluster = FakeCluster(context, on_wait)
    with pytest.raises(ValueError, match="a bug"):
        parallel_arms.run_side_by_side(context, arm_runs, cluster)
    assert cluster.interrupted == ["naive", "warm"]
    assert cluster.killed == ["naive"]
    assert recorder.warnings()[-1] == "killed without another checkpoint: naive"


def test_a_lost_connection_is_reported_once(planned):
    arm_runs, context, _ = planned

    def on_wait(cluster):
        raise RunError("Ray", "the connection to Ray was lost" if not cluster.interrupted else "another")

    with pytest.raises(RunError, match="the connection to Ray was lost"):
        parallel_arms.run_side_by_side(context, arm_runs, FakeCluster(context, on_wait))


# -- the process of an arm --------------------------------------------------------------------------------------------


def task_of(folder, **changes):
    given = {"earlier": {}, "stages_to_keep": 0, "parent": None, "tracked": False, "is_prepared": True}
    location = {"working_directory": str(folder), "experiment": "out/run", "arm": "a", "environment": {}}
    return ArmTask(**{**given, **location, **changes})


@pytest.mark.parametrize("folder_exists", [True, False])
def test_a_machine_without_the_folder_of_the_experiment_fails_the_arm(tmp_path, monkeypatch, folder_exists):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path if folder_exists else tmp_path / "elsewhere"
    outcome = arm_worker.run_arm_task(task_of(folder))
    assert outcome.failure == f"the machine {socket.gethostname()} does not have the folder {folder}/out/run"
    assert outcome.error.endswith('set "output" to a folder on a disk that all machines share')
    assert not list(tmp_path.iterdir())


def test_the_environment_of_a_task_is_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_SOME_OPTION", "old")
    arm_worker.run_arm_task(task_of(tmp_path, environment={"HARNESS_SOME_OPTION": "new"}))
    assert os.environ["HARNESS_SOME_OPTION"] == "new"


def test_only_named_environment_variables_are_sent(monkeypatch):
    monkeypatch.setenv("PATH_TO_MY_DIARY", "secret")
    monkeypatch.setenv("HARNESS_TRUST_REMOTE_CODE", "1")
    monkeypatch.setenv("JUDGE_KEY", "abc")
    monkeypatch.setenv("OTHER_KEY", "def")
    sent = parallel_arms.shared_environment({"evaluate": {"x": {"metrics": [{"server": {"key_env": "JUDGE_KEY"}}]}}})
    assert sent["JUDGE_KEY"] == "abc"
    assert "OTHER_KEY" not in sent
    assert sent["HARNESS_TRUST_REMOTE_CODE"] == "1"
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} <= set(sent)
    assert not {"PATH", "PATH_TO_MY_DIARY", "HOME"} & set(sent)


def test_warnings_of_the_preparation_are_not_repeated():
    started = object.__new__(events.RunStarted)
    for after_start, texts in ((True, ["later"]), (False, ["early", "later"])):
        warnings = arm_worker._WarningList(after_start=after_start)
        for event in (events.WarningRaised(text="early"), started, *[events.WarningRaised(text="later")] * 2):
            warnings.harness_on_event(event)
        assert warnings.texts == [(text, ()) for text in texts]


def test_tasks_are_plain_data(tmp_path):
    import dataclasses

    task = task_of(tmp_path, earlier={"naive": 1})
    assert ArmTask(**json.loads(json.dumps(dataclasses.asdict(task)))) == task


# -- errors of Ray ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        ("WorkerCrashedError", (), "its process died: it was killed, or memory ran out; its output: worker.log"),
        ("OutOfMemoryError", ("much text",), "Ray ended its process, because the machine was short of memory"),
        ("TaskCancelledError", (), "it was canceled"),
        (
            "RayTaskError",
            ("f", "Traceback\n…\nModuleNotFoundError: No module named 'harness'", None),
            "No module named",
        ),
        ("RaySystemError", ("the store\nis full",), "Ray could not run it: RaySystemError: "),
    ],
)
def test_a_task_that_has_no_outcome_is_an_arm_that_failed(error, arguments, message):
    require_installed_ray()
    exceptions = importlib.import_module("ray.exceptions")

    def get(_):
        raise getattr(exceptions, error)(*arguments)

    cluster = object.__new__(ray_cluster.RayCluster)
    cluster._ray = SimpleNamespace(exceptions=exceptions, get=get)
    outcome = cluster.outcome("handle")
    assert message in outcome.failure
    assert "\n" not in outcome.error
    assert outcome.failure == outcome.error


def test_an_interruption_in_ray_keeps_the_name_of_its_signal(monkeypatch):
    """Ray raises a KeyboardInterrupt of its own instead of that of the signal handler."""

    def wait(*_, **__):
        raise KeyboardInterrupt

    cluster = object.__new__(ray_cluster.RayCluster)
    cluster._ray = SimpleNamespace(wait=wait, exceptions=SimpleNamespace(RayError=RuntimeError))
    with pytest.raises(KeyboardInterrupt) as raised:
        cluster.wait(["handle"], 0.1)
    assert not isinstance(raised.value, stop_signals.Interrupted)
    monkeypatch.setattr(stop_signals._State, "requested", "SIGTERM")
    with pytest.raises(stop_signals.Interrupted, match="SIGTERM"):
        cluster.wait(["handle"], 0.1)


def test_an_error_of_ray_is_a_failure_that_can_be_resumed():
    def wait(*_, **__):
        raise ConnectionError("the stream is closed")

    cluster = object.__new__(ray_cluster.RayCluster)
    cluster._ray = SimpleNamespace(wait=wait, exceptions=SimpleNamespace(RayError=RuntimeError))
    with pytest.raises(RunError, match=r"the connection to Ray was lost: .*the stream is closed; .*--resume RUN"):
        cluster.wait(["handle"], 0.1)
