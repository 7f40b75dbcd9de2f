"""A file or disk error is one line, whichever command raises it, and never a traceback."""

from __future__ import annotations

from harness.cli import evaluate, main


def test_os_error_is_one_line_with_path_and_remedy(monkeypatch, capsys):
    def raise_disk_full(arguments):
        raise OSError(28, "No space left on device", "runs/a/measured.json")

    monkeypatch.setattr(evaluate, "main", raise_disk_full)
    assert main.main(["evaluate", "spec.json"]) == 1
    assert capsys.readouterr().err == (
        "harness: runs/a/measured.json: cannot read or write it: No space left on device; "
        "free disk space or fix the permissions\n"
    )
