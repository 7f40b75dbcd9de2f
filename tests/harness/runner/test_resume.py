"""A resumed run is bit-identical to an uninterrupted one on CPU, and what cannot be resumed is refused."""

from __future__ import annotations

import json
import shutil

import pytest

from harness import events
from harness.errors import HarnessError, RunError
from harness.model import save
from harness.report import run_report
from harness.runner import folder, resume
from harness.runner import run_stages as run_stages_module
from harness.runner.folder import RunFolder
from harness.training import train_stage

EWC = {"source": "general", "samples": 4}

KINDS = {
    "lora": {"second": None, "mitigations": {"lora": {"rank": 2}, "ewc": EWC, "wise_ft": {"alpha": 0.5}}},
    "full": {
        "second": {"mitigations": {"l2sp": {}}},
        "mitigations": {"ewc": EWC, "wise_ft": {"alpha": 0.7, "alphas": [0.0, 0.5]}, "ema": {"decay": 0.5}},
    },
    "merge": {"second": {"adapter": "merge"}, "mitigations": {"lora": {"rank": 2}, "ewc": EWC}},
    "new": {
        "second": {"adapter": "new"},
        "mitigations": {"lora": {"rank": 2, "start": "pissa"}, "ema": {"decay": 0.5}},
    },
    "osf": {"second": None, "mitigations": {"osf": {"preserve": 0.25}, "ema": {"decay": 0.5}}},
}


def evaluating(stage):
    """Interrupt the evaluation after a stage; 0: of the base model, before the first stage."""

    def at(event, listener):
        return (
            isinstance(event, events.ProgressUpdated)
            and event.phase.startswith("evaluate")
            and event.done == 2
            and listener.classes().count(events.StageStarted) == stage
        )

    return at


def step(stage, number):
    return lambda event, _: isinstance(event, events.StepLogged) and event.stage_index == stage and event.step == number


POINTS = {
    "at the very beginning": lambda event, _: isinstance(event, events.RunStarted),
    "in the base evaluation": evaluating(0),
    "before the first checkpoint": step(1, 1),
    "in stage 1": step(1, 3),
    "at the last update of stage 1": step(1, 4),
    "in the evaluation after stage 1": evaluating(1),
    "between the stages": lambda event, _: isinstance(event, events.StageFinished) and event.stage_index == 1,
    "in stage 2": step(2, 3),
    "in the evaluation after stage 2": evaluating(2),
    "in a variant": lambda event, _: isinstance(event, events.VariantEvaluated) and event.stage_index == 2,
    "before the end": lambda event, _: isinstance(event, events.StageFinished) and event.stage_index == 2,
}

QUICK = (
    ("lora", "in the base evaluation"),
    ("lora", "in stage 1"),
    ("lora", "in the evaluation after stage 1"),
    ("full", "between the stages"),
    ("full", "in stage 2"),
    ("full", "in a variant"),
    ("merge", "in stage 2"),
    ("new", "in stage 2"),
    ("osf", "in stage 2"),
)
CASES = [
    pytest.param(kind, point, marks=() if (kind, point) in QUICK else pytest.mark.slow, id=f"{kind}-{point}")
    for kind in KINDS
    for point in POINTS
    if kind == "full" or point != "in a variant"
]


@pytest.fixture(scope="module")
def unbroken(desk):
    """A function of a kind that returns the folder of its uninterrupted run."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = desk.start(desk.continual(**KINDS[kind]))
        return made[kind]

    return run


def interrupt_run(desk, listener_of, document, at):
    with pytest.raises(KeyboardInterrupt):
        desk.start(document, listener_of(at))
    return desk.newest()


@pytest.mark.parametrize(("kind", "point"), CASES)
def test_resumed_run_is_bit_identical_to_uninterrupted_run(desk, unbroken, same, listener, kind, point):
    place = interrupt_run(desk, listener, desk.continual(**KINDS[kind]), POINTS[point])
    heard = listener()
    desk.resume(place, heard)
    same(unbroken(kind), place)
    assert heard.classes()[0] is events.RunStarted
    assert heard.classes()[-1] is events.RunFinished
    assert heard.of(events.RunStarted)[0].resuming is True


def test_finished_stage_is_not_trained_again(desk, listener):
    document = desk.continual(mitigations={"lora": {"rank": 2}})
    document["train"]["save_steps"] = None  # its snapshot is saved nevertheless
    place = interrupt_run(desk, listener, document, step(2, 1))
    assert (place / "stages/a/end/weights.safetensors").is_file()
    heard = listener()
    desk.resume(place, heard)
    started = {one.stage_index: one.reused for one in heard.events if isinstance(one, events.StageStarted)}
    assert started == {1: True, 2: False}
    assert {one.stage_index for one in heard.events if isinstance(one, events.StepLogged)} == {2}
    assert not list(place.glob("stages/*/end"))


def test_stored_answers_are_not_generated_again(desk, listener, generated):
    document = desk.continual(mitigations={"lora": {"rank": 2}})
    place = interrupt_run(desk, listener, document, step(2, 1))
    one_stage = sum(generated) // 2
    assert one_stage > 0
    generated.clear()
    desk.resume(place)
    assert sum(generated) == one_stage, "only the stage that had not been evaluated"


@pytest.mark.parametrize("kind", ["full", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("lora", "merge"))])
def test_run_interrupted_while_saving_loses_nothing(desk, unbroken, same, monkeypatch, kind):
    def no(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_report.Report, "write", no)  # the model is written, the report is not
        with pytest.raises(KeyboardInterrupt):
            desk.start(desk.continual(**KINDS[kind]))
    place = desk.newest()
    with monkeypatch.context() as patched:
        patched.setattr(save, "save_model", no)
        with pytest.raises(KeyboardInterrupt):
            desk.resume(place)
    desk.resume(place)
    same(unbroken(kind), place)


def test_run_interrupted_while_saving_snapshot_resumes_from_checkpoint(desk, unbroken, same, monkeypatch):
    import torch

    def no(*_, **__):
        raise KeyboardInterrupt

    real = run_stages_module.save_stage_snapshot

    def half(place, *more):
        monkeypatch.setattr(torch, "save", no)
        real(place, *more)

    with monkeypatch.context():
        monkeypatch.setattr(run_stages_module, "save_stage_snapshot", half)
        with pytest.raises(KeyboardInterrupt):
            desk.start(desk.continual(**KINDS["lora"]))
    monkeypatch.undo()
    place = desk.newest()
    assert not (place / "stages/a/end").exists()
    desk.resume(place)
    same(unbroken("lora"), place)


def test_unwritable_snapshot_is_a_warning_and_run_continues(desk, listener, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    heard = listener()
    place = desk.start(desk.document(), heard)
    assert any("No space left" in text and "would train this stage again" in text for text in heard.warnings())
    assert (place / "report.json").is_file()
    assert not list(place.glob("stages/*/*end*"))


# -- what is refused --------------------------------------------------------------------------------------------------


def said(capsys):
    (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("harness: "))
    return line


def test_resume_refuses_finished_run(desk, unbroken, capsys):
    assert desk.command("run", "--resume", unbroken("lora")) == 2
    assert "the run is finished" in said(capsys)


def test_resume_refuses_missing_run_and_additional_spec(desk, unbroken, capsys):
    assert desk.command("run", "--resume", "nowhere") == 2
    assert "there is no such run" in said(capsys)
    assert desk.command("run", "spec.json", "--resume", unbroken("lora")) == 2
    assert "uses the spec stored in its folder" in said(capsys)


@pytest.fixture(scope="module")
def stopped(desk, listener):
    """A run interrupted in its second stage, to be copied and damaged."""
    return interrupt_run(desk, listener, desk.continual(mitigations={"lora": {"rank": 2}}), step(2, 3))


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "copy")


def before_and_after(desk, place):
    """Resume the run, require that only the lock file changes, and return the exit code."""

    def files():
        return {
            str(one.relative_to(place)): one.read_bytes()
            for one in place.rglob("*")
            if one.is_file() and one.name != ".lock"
        }

    there = files()
    code = desk.command("run", "--quiet", "--resume", place)
    now = files()
    assert [name for name in there if now.get(name) != there[name]] == []
    return code


def test_resume_refuses_changed_data(desk, copy, capsys):
    file = desk.folder / "second.jsonl"
    text = file.read_text()
    try:
        file.write_text(text.replace("amber", "agate"))
        assert before_and_after(desk, copy) == 2
    finally:
        file.write_text(text)
    assert "changed since the run was started" in said(capsys)


def test_resume_refuses_locked_run(desk, copy, capsys):
    import subprocess
    import sys

    hold = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(copy / folder.LOCK_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert before_and_after(desk, copy) == 2
        other.communicate("")
    assert "another process has locked this run" in said(capsys)
    with RunFolder(copy).locked():
        pass


def test_timeout_within_locked_run_is_not_a_lock_error(tmp_path):
    from filelock import Timeout

    with pytest.raises(Timeout), RunFolder(tmp_path).locked():
        raise Timeout("another")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("stages/a/end/weights.safetensors", "delete this folder"),
        pytest.param("stages/a/end/kept.safetensors", "delete this folder", marks=pytest.mark.slow),
        ("stages/a/end/mitigations.pt", "delete this folder"),
        ("stages/b/checkpoints/checkpoint-2/adapter_model.safetensors", "damaged"),
        pytest.param("stages/b/checkpoints/checkpoint-2/optimizer.pt", "damaged", marks=pytest.mark.slow),
    ],
)
def test_damaged_file_is_one_error_line_and_run_resumes_without_it(desk, copy, capsys, file, told):
    place = copy / file
    place.write_bytes(place.read_bytes()[:-9])
    assert before_and_after(desk, copy) == 1
    line = said(capsys)
    assert told in line
    assert place.parent.name in line
    shutil.rmtree(place.parent)
    assert desk.command("run", "--quiet", "--resume", copy) == 0


def test_snapshot_of_another_model_is_refused_and_changes_nothing(tmp_path, tiny_model):
    import torch
    from safetensors.torch import load_file, save_file

    folder.save_stage_snapshot(tmp_path / "end", tiny_model, {})
    weights = load_file(tmp_path / "end/weights.safetensors")
    first = next(iter(weights))
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    save_file(
        {**{name: one + 1 for name, one in weights.items()}, first: weights[first][:1]},
        tmp_path / "end/weights.safetensors",
    )
    with pytest.raises(RunError, match="another model"):
        folder.load_stage_snapshot(tmp_path / "end", tiny_model)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters())


def test_damaged_json_file_is_named(desk, copy, capsys):
    (copy / "data.json").write_text("{")
    assert desk.command("run", "--quiet", "--resume", copy) == 2
    assert "data.json" in said(capsys)


def test_interrupt_exits_with_130_and_names_folder(desk, monkeypatch, capsys):
    def no(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_stage, "train_stage", no)
    assert desk.command("run", desk.write(desk.document())) == 130
    said_ = capsys.readouterr()
    assert "interrupted" in said_.err
    assert desk.newest().name in said_.out + said_.err


def test_stored_spec_loads_as_itself(desk, unbroken):
    from harness import registry
    from harness.spec import schema, spec

    found = registry.discover_plugins()
    for kind in KINDS:
        place = unbroken(kind)
        assert spec.load_spec(place / "spec.json", schema.compose_schema(found)).document == json.loads(
            (place / "spec.json").read_text()
        )


def test_folder_that_cannot_be_locked_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HarnessError, match="cannot be locked"), RunFolder(tmp_path / "file" / "below").locked():
        pass


# -- the decisions ----------------------------------------------------------------------------------------------------


def test_steps_after_the_checkpoint_and_torn_lines_are_discarded(tmp_path):
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "steps.jsonl").write_text("".join(lines) + '{"step": 4')
    resume.discard_steps_after(tmp_path, tmp_path / "checkpoints" / "checkpoint-2")
    assert (tmp_path / "steps.jsonl").read_text() == "".join(lines[:2])


def test_best_weights_of_now_and_of_the_newest_checkpoint_are_kept(tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    assert resume.best_weights_to_keep([1, 3, 5, 7], 7, checkpoint) == {7, 3}
    assert resume.best_weights_to_keep([5, 7], 7, checkpoint) == {7}
    assert resume.best_weights_to_keep([1, 7], 7, None) == {7}


def test_best_weights_of_later_steps_are_discarded(tmp_path):
    for name in ("2", "4", ".4.draft-1"):
        (tmp_path / name).mkdir()
    resume.discard_best_weights_after(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize(("stage_index", "carried_stages", "is_newer"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_scores_of_later_stages_are_not_overwritten(stage_index, carried_stages, is_newer):
    assert resume.has_newer_scores(stage_index, 1, carried_stages) is is_newer


@pytest.mark.parametrize(
    ("status", "violates_limits", "needs_end"),
    [(None, False, False), ("FINISHED", False, False), ("RUNNING", False, True), ("FAILED", True, False)],
)
def test_tracking_is_ended_only_if_it_is_not(status, violates_limits, needs_end):
    assert resume.needs_tracking_end(status, violates_limits=violates_limits) is needs_end
