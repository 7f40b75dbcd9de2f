"""`harness export`: the export answers as the run's model does, and faults leave nothing behind."""

from __future__ import annotations

import errno
import json
from dataclasses import replace

import harness_exporters.merged
import pytest
import torch

from harness.runner import export_comparison
from harness.runner.export_comparison import MAX_ITEMS, choose_items


@pytest.fixture(scope="module")
def run(desk):
    """A finished run with a LoRA adapter."""
    return desk.start(desk.document(mitigations={"lora": {"rank": 2}}))


@pytest.mark.slow
def test_the_merged_model_answers_as_the_adapter_does(desk, run, capsys, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "merged"
    assert desk.command("export", run, "--to", "merged", folder, "--set", "dtype=float32") == 0
    first, second = capsys.readouterr().out.strip().splitlines()
    assert first == f"{folder}: merged model in float32 with its chat template"
    items = len(choose_items(run))
    assert second.startswith(f"verified: {items} of {items} answers equal, log-likelihoods within ")
    assert not (folder / "adapter_config.json").exists()
    merged, adapted = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoPeftModelForCausalLM.from_pretrained(run / "model"),
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer("Where is amber?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, rtol=1e-3, atol=1e-4)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in merged.generation_config.eos_token_id
    assert desk.command("export", run, "--to", "merged", folder) == 2
    assert "the folder exists; name a new folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_chat_template_is_that_of_the_run(desk, capsys, tmp_path):
    from transformers import AutoTokenizer

    run = desk.start(desk.document(template="instruction_zh"))
    folder = tmp_path / "zh"
    assert desk.command("export", run, "--to", "merged", folder) == 0
    assert "answers equal, log-likelihoods" in capsys.readouterr().out  # all prompts have equal tokens
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Where is amber?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "### 指令:\nWhere is amber?\n\n### 回答:\n"


def test_an_export_that_is_not_verified_is_so_called(desk, run, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("harness_exporters.merged.TransformersModel.from_folder", None)  # it must not be called
    assert desk.command("export", run, "--to", "merged", tmp_path / "m", "--no-verify") == 0
    assert capsys.readouterr().out.splitlines()[1] == "not verified"


def alter(monkeypatch, **attributes):
    """Change what the exported model gives: `logits`, `encode_prompt` or `ends_answer`."""

    class Altered(harness_exporters.merged.TransformersModel):
        pass

    for name, function in attributes.items():
        original = getattr(harness_exporters.merged.TransformersModel, name)
        setattr(Altered, name, lambda self, value, f=function, o=original: f(o(self, value)))
    monkeypatch.setattr("harness_exporters.merged.TransformersModel", Altered)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"logits": lambda logits: logits * 1.5}, "likelihoods of the exported model differ by"),
        ({"logits": lambda logits: -logits}, "likelihoods of the exported model differ by"),
        ({"encode_prompt": lambda tokens: [*tokens, 5]}, "its chat template gives other tokens for"),
    ],
)
def test_a_model_that_differs_is_refused_and_removed(desk, run, capsys, monkeypatch, tmp_path, attributes, text):
    alter(monkeypatch, **attributes)
    assert desk.command("export", run, "--to", "harness-sft/merged", tmp_path / "m", "--set", "dtype=float32") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert "report it" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_export_that_16_bits_change_too_much_ends_with_the_command_for_float32(
    desk, run, capsys, monkeypatch, tmp_path
):
    alter(monkeypatch, logits=lambda logits: -logits)
    assert desk.command("export", run, "--to", "merged", tmp_path / "m", "--set", "dtype=bfloat16") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is allowed in its number format" in line
    assert line.endswith(f"export float32: harness export {run} --to merged {tmp_path / 'm'} --set dtype=float32")


ITEM = export_comparison.ComparedItem("Where?", (1, 2), (3, 0), (), (), 0.0)


class Stored:
    """An exported model with the most likely tokens that it is given."""

    tolerance = 0.01

    def __init__(self, tokens, gap, stops=True):
        self._tokens, self._gap, self._stops = tokens, gap, stops

    def encode_prompt(self, messages):
        return [1, 2]

    def logits(self, tokens):
        logits = torch.zeros(3, 6)
        logits[torch.arange(3), torch.tensor(self._tokens)] = self._gap
        return logits.numpy()

    def ends_answer(self, token):
        return self._stops


class TinyTokenizer:
    eos_token_id = 0

    def __getattr__(self, name):
        return lambda *_: {"get_added_vocab": {}, "decode": "word"}.get(name, "token")

    all_special_tokens = all_special_ids = ()


class TinyTemplate:
    def stop_strings(self, tokenizer):
        return ()


@pytest.fixture
def trained():
    class Trained:
        template, tokenizer = TinyTemplate(), TinyTokenizer()

    return Trained()


def test_the_first_different_token_and_its_gap_are_reported(trained):
    comparison = export_comparison.compare_export(trained, [ITEM], Stored([9 % 6, 3, 4], gap=0.05))
    (difference,) = comparison.different
    assert (difference.position, difference.expected, difference.actual) == (1, 0, 4)
    assert difference.gap == pytest.approx(0.05)
    lines = export_comparison.describe_comparison(comparison, trained.tokenizer)
    assert lines[0].startswith("verified: 0 of 1 answers equal")
    assert lines[1] == "  'Where?': token 2 is 'word', not 'word' (0.05 nats more likely)"
    export_comparison.require_agreement(comparison, "folder", trained.tokenizer)  # within the tolerance


def test_a_token_that_is_much_more_likely_is_refused(trained):
    comparison = export_comparison.compare_export(trained, [ITEM], Stored([3, 3, 4], gap=0.5))
    with pytest.raises(export_comparison.HarnessError, match=r"an answer differs by 0\.5 nats at a token"):
        export_comparison.require_agreement(comparison, "folder", trained.tokenizer)


def test_a_stop_token_that_does_not_stop_is_refused(trained):
    comparison = export_comparison.compare_export(trained, [ITEM], Stored([3, 3, 0], gap=1, stops=False))
    assert comparison.different == ()
    assert comparison.missing_stops == (0,)
    with pytest.raises(export_comparison.HarnessError, match="does not stop at"):
        export_comparison.require_agreement(comparison, "folder", trained.tokenizer)
    whole = replace(comparison, missing_stops=())
    export_comparison.require_agreement(whole, "folder", trained.tokenizer)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--to", "merge"], "no plugin provides the exporter 'merge'; did you mean 'merged'?"),
        (["--to", "merged", "--set", "dtype=int3"], "exporter merged.dtype: 'int3' is not one of"),
        (["--to", "merged", "--set", "size=3"], "('size' was unexpected); its options are: dtype"),
        (["--to", "merged", "--set", "dtype"], "an option is key=value"),
    ],
)
def test_invalid_arguments_are_one_line(desk, run, capsys, arguments, text):
    assert desk.command("export", run, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_items_of_all_suites_are_sampled(run, tmp_path):
    items = choose_items(run)
    assert 0 < len(items) <= MAX_ITEMS
    assert {item.prompt.split()[0] for item in items} == {"Where", "Spell"}
    assert choose_items(tmp_path) == [export_comparison.DEFAULT_ITEM]


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_items_may_hold_other_line_separators(tmp_path, separator):
    (tmp_path / "predictions").mkdir()
    prompts = [f"Where{separator}is amber?", "Spell it."]
    rows = [{"id": prompt, "prompt": prompt, "reference": "x"} for prompt in prompts]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (tmp_path / "predictions" / "one-stage0.jsonl").write_text("".join(lines), encoding="utf-8")
    assert [item.prompt for item in choose_items(tmp_path)] == prompts


@pytest.mark.slow
def test_a_full_disk_is_one_line_with_the_command(desk, run, capsys, monkeypatch, tmp_path):
    def fill_disk(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness_exporters.merged.Merged.export", fill_disk)
    assert desk.command("export", run, "--to", "merged", tmp_path / "m") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"no disk space is left to write the exported model; free some, then: harness export {run} --to merged"
    )
    assert list(tmp_path.iterdir()) == []
