"""The memory of a run in one line."""

from __future__ import annotations

from harness.utils.stage_memory import format_memory

KINDS = {"weights": 538_000_000, "gradients": 2_000_000, "optimizer": 4_000_000, "mitigations": 0}


def test_the_stage_with_the_highest_peak_is_shown_by_kind():
    memory = {"one": {**KINDS, "peak": 1_000_000_000}, "two": {**KINDS, "mitigations": 5_000, "peak": 2_100_000_000}}
    line = "peak 2.1 GB; weights 538.0 MB, gradients 2.0 MB, optimizer 4.0 MB"
    assert format_memory({"memory": memory}) == f"{line}, mitigations 5.0 kB"
    assert format_memory({"memory": {"one": memory["one"]}}) == f"{line.replace('2.1', '1.0')}"


def test_reports_without_memory_have_no_line():
    assert format_memory({}) == ""
    assert format_memory({"memory": {}}) == ""
    assert format_memory({"memory": {"one": {}}}) == ""
    assert format_memory({"memory": {"one": {**KINDS, "peak": None}}}) == ""
