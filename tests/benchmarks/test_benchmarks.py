"""The benchmarks' own code: what is compared with what, and what a partial run keeps."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict

import pytest
from support.paths import ROOT


def load_benchmark(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_all, train_step = load_benchmark("run_all"), load_benchmark("train_step")
PREPARE = {"1000": {"bare": [1.0], "harness": [1.5], "with checks": [2.0], "trl": [8.0]}}
MACHINE = {"processor": "CPU", "cores": 2, "memory_gb": 8, "load": 0.0}


def result_of(part, raw, date="2026-01-01"):
    about = {"date": date, "quick": False, "machine": MACHINE, "versions": {"torch": "2"}, "commit": "abc"}
    rows = [asdict(row) for row in run_all.CONVERTERS[part](raw)]
    return {part: {"about": about, "seconds": 1, "rows": rows, "raw": raw}}


def test_harness_with_other_settings_is_not_a_rival_of_harness():
    rows = {row.contender: row for row in run_all.prepare_rows(PREPARE)}
    assert {name: row.ratio and row.ratio[0] for name, row in rows.items()} == {
        "encode_batch alone": 0.5, "harness, masks not verified": None, "harness": None, "trl": 4.0
    }  # fmt: skip
    assert rows["harness, masks not verified"].own_ratio[0] == pytest.approx(2 / 1.5)
    plot = run_all.draw_plot(result_of("prepare", PREPARE))
    assert ("trl" in plot, "masks not verified" in plot) == (True, False)


def test_rivals_with_lora_are_compared_with_harness_with_lora():
    names = ["harness", "harness, lora", "TRL", "TRL, lora"]
    rounds = {name: [{"tokens_per_second": rate}] for name, rate in zip(names, (10, 40, 5, 8), strict=True)}
    measured = {"peak_gb": 1.0, "matmul_share": 0.5}
    summary = {name: {**rounds[name][0], **measured} for name in names}
    rows = {row.contender: row for row in run_all.train_rows({"rounds": rounds, "summary": summary})}
    assert (rows["TRL"].ratio[0], rows["TRL, lora"].ratio[0], rows["harness, lora"].own_ratio[0]) == (2.0, 5.0, 4.0)


def test_a_partial_run_keeps_the_results_of_other_parts_with_their_own_date():
    first = {"now": [[1.0, 100.0]], "before": [[3.0, 500.0]]}
    earlier = result_of("first_seconds", {"check": first}) | result_of("prepare", PREPARE)
    merged = run_all.merge_results(earlier, result_of("prepare", PREPARE, date="2026-02-02"))
    assert merged["first_seconds"] == earlier["first_seconds"]
    table = run_all.format_markdown(merged)
    assert "\nfirst_seconds: 2026-01-01, commit abc: CPU" in table
    assert "\nprepare: 2026-02-02, commit abc: CPU" in table
    failed = run_all.merge_results(earlier, {"prepare": {"about": {}, "seconds": 1, "failure": "it exits with 1"}})
    assert failed["prepare"]["rows"] == earlier["prepare"]["rows"]
    assert "Not measured in the last attempt: prepare (it exits with 1)." in run_all.format_markdown(failed)


def test_operations_are_those_of_the_matrices_and_less_for_frozen_ones(tiny_model):
    weights = sum(weight.numel() for weight in tiny_model.parameters() if weight.ndim == 2)
    assert train_step.operations_of_token(tiny_model) == 6 * weights  # the embeddings are the head too
    adapted = train_step.add_adapter(tiny_model)
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert train_step.operations_of_token(adapted) == 4 * weights + 6 * trained


def test_the_time_of_a_stage_is_that_of_its_steps(tiny_model, tokenizer, monkeypatch):
    moments = iter(range(100))
    monkeypatch.setattr(train_step, "clock", lambda: next(moments))
    rows = train_step.build_rows(200, 16)
    assert train_step.train_with_harness(tiny_model, tokenizer, rows, {})["seconds"] == 2  # start, step, step
