"""A full disk is one line, whichever library raises it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.errors import RunError
from harness.utils.write_errors import report_write_errors


class SafetensorError(Exception):
    """Like the one of safetensors, which is not an OSError."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("ios_base::clear: unspecified iostream_category error"),
    ],
)
def test_each_library_s_error_for_a_full_disk_has_the_remedy(error, tmp_path):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "spec.json").write_text("{}")
    with pytest.raises(RunError) as caught, report_write_errors(run / "model", "the model"):
        raise error
    assert str(caught.value) == (
        f"{run}/model: no disk space is left to write the model; free some, then: harness run --resume '{run}'"
    )
    assert caught.value.exit_code == 1


def test_another_os_error_names_its_reason():
    with pytest.raises(RunError, match="Permission denied; fix the perm"), report_write_errors(Path("x"), "the model"):
        raise OSError(errno.EACCES, "Permission denied")


def test_a_fault_of_the_program_passes_unchanged():
    with pytest.raises(ZeroDivisionError), report_write_errors(Path("x"), "the model"):
        1 / 0  # noqa: B018


def test_an_arm_is_resumed_with_its_experiment(tmp_path):
    arm = tmp_path / "arms" / "one"
    arm.mkdir(parents=True)
    for folder in (tmp_path, arm):
        (folder / "spec.json").write_text("{}")
    remedy = f"then: harness run --resume {tmp_path}$"
    with pytest.raises(RunError, match=remedy), report_write_errors(arm / "stages" / "a", "the checkpoint"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunError, match=r"then: try again$"), report_write_errors(Path("elsewhere"), "the model"):
        raise OSError(errno.ENOSPC, "No space left on device")
