"""A resumed run is bit-identical to an uninterrupted one on CPU, and what cannot be resumed is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from harness import events
from harness.cli.main import main
from harness.errors import HarnessError, RunError
from harness.model import save
from harness.report import run_report
from harness.runner import folder, resume
from harness.runner import run_stages as run_stages_module
from harness.runner.folder import RunFolder
from harness.training import train_stage
from harness.utils import manifest
from harness.utils.find_run import find_run_anywhere
from harness.utils.manifest import write_manifest

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
    "share": {
        "second": None,
        "mitigations": {
            "freeze": {"share": 0.5, "columns": 0.25, "source": "general"},
            "kl": {"source": "general", "rows": 2},
            "reweight": {"by": "row_loss"},
            "ema": {"last": 2},
        },
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
    ("share", "in stage 1"),
    ("share", "in stage 2"),
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "point"), CASES)
def test_resumed_run_is_bit_identical_to_uninterrupted_run(desk, unbroken, same, listener, kind, point):
    place = interrupt_run(desk, listener, desk.continual(**KINDS[kind]), POINTS[point])
    heard = listener()
    desk.resume(place, heard)
    same(unbroken(kind), place)
    assert heard.classes()[0] is events.RunStarted
    assert heard.classes()[-1] is events.RunFinished
    assert heard.of(events.RunStarted)[0].resuming is True


@pytest.mark.slow
def test_the_checkpoint_of_a_resumed_run_is_hashed_once(desk, listener, monkeypatch):
    place = interrupt_run(desk, listener, desk.continual(), step(1, 3))
    folder = place / "stages/a/checkpoints/checkpoint-2"
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "checkpoint.json")
    hashed, real = [], manifest.sha256_of_file
    monkeypatch.setattr(manifest, "sha256_of_file", lambda file: hashed.append(file) or real(file))
    desk.resume(place)
    assert sorted(file for file in hashed if folder in file.parents) == files


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_run_interrupted_while_saving_snapshot_resumes_from_checkpoint(desk, unbroken, same, monkeypatch):

    def no(*_, **__):
        raise KeyboardInterrupt

    real = run_stages_module.save_stage_snapshot

    def half(place, *more, **options):
        monkeypatch.setattr(torch, "save", no)
        real(place, *more, **options)

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
    assert any("no disk space is left" in text and "would train this stage again" in text for text in heard.warnings())
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


def test_a_run_whose_only_checkpoint_is_damaged_says_so_and_trains_the_stage_again(desk, copy, capsys):
    damage(copy / "stages/b/checkpoints/checkpoint-2/adapter_model.safetensors")
    assert desk.command("run", "--quiet", "--resume", copy) == 0
    printed = capsys.readouterr().err
    assert "adapter_model.safetensors: its checksum differs" in printed
    assert "the stage is resumed from its first step" in printed
    assert len((copy / "stages/b/steps.jsonl").read_text().splitlines()) == 4
    assert (copy / "report.json").is_file()


def test_snapshot_of_another_model_is_refused_and_changes_nothing(tmp_path, tiny_model):
    from safetensors.torch import load_file, save_file

    folder.save_stage_snapshot(tmp_path / "end", tiny_model, {})
    weights = load_file(tmp_path / "end/weights.safetensors")
    first = next(iter(weights))
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    save_file(
        {**{name: one + 1 for name, one in weights.items()}, first: weights[first][:1]},
        tmp_path / "end/weights.safetensors",
    )
    write_manifest(tmp_path / "end", folder.SNAPSHOT_MANIFEST, {})
    with pytest.raises(RunError, match="another model"):
        folder.load_stage_snapshot(tmp_path / "end", tiny_model)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters())


def test_a_snapshot_for_the_other_processes_alone_has_no_checksums(tmp_path, tiny_model, monkeypatch):
    before = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    monkeypatch.setattr(os, "fsync", None)
    folder.save_stage_snapshot(tmp_path / "begun", tiny_model, {}, durable=False)
    assert not (tmp_path / "begun" / folder.SNAPSHOT_MANIFEST).exists()
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.zero_()
    folder.load_stage_snapshot(tmp_path / "begun", tiny_model, durable=False)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_model.named_parameters())
    with pytest.raises(RunError, match="incomplete"):
        folder.load_stage_snapshot(tmp_path / "begun", tiny_model)


def test_one_flipped_bit_of_a_snapshot_is_named(tmp_path, tiny_model):
    folder.save_stage_snapshot(tmp_path / "end", tiny_model, {})
    file = tmp_path / "end/weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"weights\.safetensors: its checksum differs.*delete this folder"):
        folder.load_stage_snapshot(tmp_path / "end", tiny_model)


def test_damaged_json_file_is_named(desk, copy, capsys):
    (copy / "data.json").write_text("{")
    assert desk.command("run", "--quiet", "--resume", copy) == 2
    assert "data.json" in said(capsys)


def test_interrupt_before_a_step_exits_with_130_and_names_the_folder(desk, monkeypatch, capsys):
    def no(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_stage, "train_stage", no)
    assert desk.command("run", desk.write(desk.document())) == 130
    said_ = capsys.readouterr()
    assert "interrupted" in said_.err
    assert desk.newest().name in said_.out + said_.err


@pytest.mark.slow
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


def test_best_weights_of_now_and_of_every_checkpoint_are_kept(tmp_path):
    checkpoints = [tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"]
    assert resume.best_weights_to_keep([1, 3, 5, 7], 7, checkpoints) == {7, 3, 1}
    assert resume.best_weights_to_keep([1, 3, 5, 7], 7, checkpoints[1:]) == {7, 3}
    assert resume.best_weights_to_keep([5, 7], 7, checkpoints) == {7}
    assert resume.best_weights_to_keep([1, 7], 7, []) == {7}


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


def damage(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, damaged):
    checkpoints = tmp_path / "checkpoints"
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        (checkpoints / f"checkpoint-{step}" / "weights").write_bytes(b"weights")
        write_manifest(checkpoints / f"checkpoint-{step}", "checkpoint.json", {"step": step})
    for step in (4, 2)[:damaged]:
        damage(checkpoints / f"checkpoint-{step}" / "weights")
    warnings = []
    found = resume.checkpoint_to_resume(tmp_path, resuming=True, warn=warnings.append)
    assert found == (None if damaged == 2 else checkpoints / "checkpoint-2")
    assert len(warnings) == damaged
    assert "checkpoint-4/weights: its checksum differs" in warnings[0]
    assert ("resumed from its first step" if damaged == 2 else "resumed from step 2") in warnings[0]
    assert resume.checkpoint_to_resume(tmp_path, resuming=True, warn=warnings.append) == found
    assert len(warnings) == damaged, "a damaged checkpoint counts as incomplete from then on"


def test_logs_of_a_stage_are_restored_from_the_checkpoint(tmp_path):
    stage, checkpoint = tmp_path, tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "steps.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    for damaged in (b'{"step": 1}\n', b"\xff\xfe\n", b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st'):
        (stage / "steps.jsonl").write_bytes(damaged)
        resume.restore_logs(stage, checkpoint)
        resume.discard_steps_after(stage, checkpoint)
        assert (stage / "steps.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_lines_of_a_log_that_cannot_be_read_are_dropped(tmp_path):
    (tmp_path / "steps.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\n[]\n{"no": 1}\n{"step": "a"}\n{"step": 3}\n{"st')
    resume.discard_steps_after(tmp_path, tmp_path / "checkpoint-3")
    assert (tmp_path / "steps.jsonl").read_bytes() == b'{"step": 1}\n{"step": 3}\n'


def test_drafts_of_a_killed_process_are_deleted_under_the_lock(tmp_path):
    for name in (".scores.json.123", "stages/a/.end.draft-77/weights", "predictions/.desk-stage0.jsonl.5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / ".keep.me").write_text("own")
    with RunFolder(tmp_path).locked():
        pass
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".keep.me", ".lock"]


def test_resume_without_a_name_lists_the_runs_of_every_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(tmp_path / "elsewhere", "tiny").path
    (run / "spec.json").write_text("{}")
    older = Path("runs") / "older-20200101-000000-ab12"
    older.mkdir(parents=True)
    (older / "spec.json").write_text("{}")
    finished = RunFolder.create("runs", "done").path
    (finished / "spec.json").write_text("{}")
    (finished / "report.json").write_text("{}")
    assert main(["run", "--resume"]) == 2
    printed = capsys.readouterr()
    assert f"harness run --resume {run}" in printed.out
    assert printed.out.index(run.name) < printed.out.index(older.name)
    assert finished.name not in printed.out
    assert f"it names no run; the newest: harness run --resume {run}" in printed.err
    assert find_run_anywhere(run.name) == run
