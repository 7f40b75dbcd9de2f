"""What a disk or a folder refuses is one line, whichever command meets it, and never a traceback."""

from __future__ import annotations

from harness.cli import commands, main


def test_an_error_of_a_file_is_one_line_with_its_place(monkeypatch, capsys):
    def full(arguments):
        raise OSError(28, "No space left on device", "runs/a/measured.json")

    monkeypatch.setattr(commands, "evaluate", full)
    assert main.main(["evaluate", "spec.json"]) == 1
    told = capsys.readouterr().err
    assert told == (
        "harness: runs/a/measured.json: cannot be written or read: No space left on device; "
        "free space or mend its rights\n"
    )
