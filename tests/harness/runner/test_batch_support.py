"""A model without a usable cache, or whose answers depend on padding, is evaluated right and with a word."""

from __future__ import annotations

import json

import torch
from transformers import AutoModelForCausalLM, MambaConfig

from harness.runner import evaluate_stages
from harness.utils.phase_clock import PhaseClock


def test_a_state_space_model_is_trained_and_answers_with_a_warning(desk, tokenizer, capsys):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    folder = desk.folder / "mamba"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec_file = desk.write(desk.document(model={"path": "./mamba"}))
    assert desk.command("run", spec_file) == 0
    run_folder = desk.newest()
    warning = "this model has no cache to generate answers with: each token costs a complete forward pass"
    assert capsys.readouterr().err.count(f"warning: {warning}") == 1
    assert json.loads((run_folder / "data.json").read_text())["warnings"].count(warning) == 1
    assert warning in (run_folder / "report.html").read_text()
    header = json.loads((run_folder / "predictions" / "domain-stage1.header.json").read_text())
    assert header["settings"]["answer"]["cache"] is False
    assert header["settings"]["answer"]["padding"] is True

    assert desk.command("evaluate", run_folder) == 0
    assert capsys.readouterr().err.count(f"warning: {warning}") == 1


def test_an_ordinary_model_gets_no_warning(desk, capsys):
    assert desk.command("run", desk.write(desk.document())) == 0
    captured = capsys.readouterr()
    assert "padding" not in captured.err
    assert "cache" not in captured.err
    header = json.loads((desk.newest() / "predictions" / "domain-stage1.header.json").read_text())
    assert "padding" not in header["settings"]["answer"]


def test_the_probe_of_the_batches_counts_as_loading(desk, monkeypatch):
    clocks, phases = [], []
    probe = evaluate_stages.probe_and_warn

    class Clock(PhaseClock):
        def __init__(self):
            super().__init__()
            clocks.append(self)

    def probe_in_phase(*arguments):
        phases.append(clocks[-1]._running[-1])
        return probe(*arguments)

    monkeypatch.setattr(evaluate_stages, "PhaseClock", Clock)
    monkeypatch.setattr(evaluate_stages, "probe_and_warn", probe_in_phase)
    desk.start(desk.document())
    assert phases == ["load"], "once, before the first evaluation"
