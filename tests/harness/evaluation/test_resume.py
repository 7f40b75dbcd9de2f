"""Stored predictions are used again only for the same model, prompts and settings."""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import replace

import pytest
import torch

from harness.errors import HarnessError
from harness.evaluation import likelihood
from harness.evaluation.batch_support import BatchSupport
from harness.evaluation.predictions import (
    PredictionsWriter,
    header_path,
    load_items,
    load_predictions,
    predictions_path,
)
from harness.interfaces.template import Template

SAID = ["yes", "a much longer answer", "no", "six pots"]


@pytest.fixture
def rows(kit):
    return [kit.example(said, said) for said in SAID]


@pytest.fixture
def evaluate(kit, tokenizer, rows, tmp_path):
    """Return a function that evaluates into one folder: the evaluation and the number of forward passes."""

    def run(model, suite=None, **options):
        passes = []
        handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
        suite = suite or kit.suite(max_new_tokens=6)
        settings = {"stage": 1, "max_length": 128, "folder": tmp_path, **options}
        examples = settings.pop("rows", rows)
        metrics = settings.pop("metrics", {"same": kit.same, "nll": kit.likelihood})
        try:
            result = kit.evaluate(model, suite, examples, metrics, **settings)
        finally:
            handle.remove()
        return result, len(passes)

    return run


@pytest.fixture
def adapted(tiny_model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()


def test_second_evaluation_does_not_call_the_model(evaluate, tiny_model):
    first, passes = evaluate(tiny_model)
    assert passes > 0
    second, none = evaluate(tiny_model)
    assert none == 0
    assert second == first


def test_interrupted_evaluation_resumes(evaluate, kit, tiny_model, tmp_path):
    alone = kit.suite(batch_size=1, max_new_tokens=6)
    whole, all_passes = evaluate(tiny_model, alone, folder=tmp_path / "whole")
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > len(SAID) + 8:  # all likelihoods, one answer, and part of another
            raise KeyboardInterrupt

    handle = tiny_model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, alone)
    handle.remove()
    part = load_predictions(predictions_path(tmp_path, "desk", 1))
    assert part.complete is False
    assert [item.answer is not None for item in part.items].count(True) == 1
    again, passes = evaluate(tiny_model, alone)
    assert again == whole
    assert passes == all_passes - len(SAID) - 6
    assert load_predictions(predictions_path(tmp_path, "desk", 1)).complete is True


@pytest.mark.parametrize("lines", [True, False])
def test_a_batch_interrupted_while_it_is_written_is_measured_again_as_a_whole(
    evaluate, kit, tiny_model, tmp_path, monkeypatch, lines
):
    options = {"metrics": {"nll": kit.likelihood}, "batch_support": BatchSupport(lines=lines)}
    monkeypatch.setattr(likelihood, "MAX_LINE_TOKENS", 100)  # two rows each
    shapes = []
    tiny_model.register_forward_pre_hook(
        lambda *arguments: shapes.append(tuple(arguments[-1]["input_ids"].shape)), with_kwargs=True
    )
    whole, passes = evaluate(tiny_model, kit.suite(batch_size=2), folder=tmp_path / "whole", **options)
    assert passes == 2
    all_shapes, written, add_fields = shapes[:], [], PredictionsWriter.add_fields

    def fail_within_second_batch(self, item, *arguments):
        written.append(item.id)
        if len(written) == 4:
            raise KeyboardInterrupt
        add_fields(self, item, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionsWriter, "add_fields", fail_within_second_batch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny_model, kit.suite(batch_size=2), **options)
    shapes.clear()
    again, _ = evaluate(tiny_model, kit.suite(batch_size=2), **options)
    assert [item.nll for item in again.items] == [item.nll for item in whole.items]  # bit for bit
    assert shapes == all_shapes[1:]


@pytest.mark.parametrize(
    "tail", [b'{"id": "id-yes", "answer": "never whole', b'{"id": "id-yes"}', b"\xff\xfe\n", b"3\n"]
)
def test_incomplete_line_is_dropped_and_measured_again(evaluate, tiny_model, tmp_path, tail):
    whole, _ = evaluate(tiny_model)
    file = predictions_path(tmp_path, "desk", 1)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + tail)
    again, passes = evaluate(tiny_model)
    assert again == whole
    assert passes == 1 + 6  # one likelihood, and six tokens of one answer
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == [item.id for item in whole.items]


def weights(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    return model


def configured(model, **changes):
    """Return the same weights with another config."""
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


def rotated(model):
    return configured(model, rope_parameters={**model.config.rope_parameters, "rope_theta": 500.0})


def published(model, **changes):
    for name, value in changes.items():
        setattr(model.generation_config, name, value)
    return model


MISSES = {
    "a weight": lambda model, kit, **_: (weights(model), {}),
    "the rotary scaling": lambda model, kit, **_: (rotated(model), {}),
    "another key of the config": lambda model, kit, **_: (configured(model, rms_norm_eps=1e-3), {}),
    "the generation config": lambda model, kit, **_: (published(model, repetition_penalty=1.2), {}),
    "the dtype": lambda model, kit, **_: (model.to(torch.bfloat16), {}),
    "the attention": lambda model, kit, **_: (model.set_attn_implementation("eager") or model, {}),
    "the template": lambda model, kit, **_: (model, {"template": SpacedTemplate(kit.template())}),
    "the tokenizer": lambda model, kit, tokenizer, **_: (model, {"tokenizer": renamed(tokenizer)}),
    "max_length": lambda model, kit, **_: (model, {"max_length": 100}),
    "a prompt": lambda model, kit, rows, **_: (model, {"rows": [with_changed_prompt(rows[0]), *rows[1:]]}),
    "max_new_tokens": lambda model, kit, **_: (model, {"suite": kit.suite(max_new_tokens=7)}),
    "stop": lambda model, kit, **_: (model, {"suite": kit.suite(max_new_tokens=6, stop=["zzz"])}),
    "temperature": lambda model, kit, **_: (model, {"suite": kit.suite(max_new_tokens=6, temperature=1.0)}),
    "the template's use": lambda model, kit, **_: (model, {"suite": kit.suite(max_new_tokens=6, plain=True)}),
}


def with_changed_prompt(row):
    """Return the row with another prompt and the same id."""
    return replace(row, messages=(replace(row.messages[0], content="other?"), row.messages[1]))


def renamed(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["never used"])
    return other


class SpacedTemplate(Template):
    """ChatML with a space before each content."""

    def __init__(self, turns):
        self._turns = turns

    def render(self, messages, tokenizer, **given):
        return self._turns.render([replace(one, content=f" {one.content}") for one in messages], tokenizer, **given)

    def stop_strings(self, tokenizer):
        return self._turns.stop_strings(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("what", MISSES)
def test_every_change_is_measured_again(evaluate, kit, tiny_model, tokenizer, rows, what, tmp_path):
    evaluate(tiny_model)
    model, options = MISSES[what](tiny_model, kit, tokenizer=tokenizer, rows=rows)
    fresh, _ = evaluate(model, folder=tmp_path / "fresh", **options)
    again, passes = evaluate(model, **options)
    assert passes > 0
    assert again == fresh
    assert evaluate(model, **options)[1] == 0


def test_location_and_saving_do_not_change_the_fingerprint(evaluate, tiny_model, tokenizer, tmp_path):
    """Stored answers stay valid after a model was trained, saved and loaded, also from another location."""
    from harness.evaluation import fingerprint
    from harness.model import load as load_module
    from harness.model import locate, save

    tiny_model.generation_config.do_sample = True
    tiny_model.generation_config.temperature = 0.6
    for name in ("first", "second"):
        tiny_model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)

    def load(name):
        settings = {"path": str(tmp_path / name), "attention": "sdpa", "trust_remote_code": False, "revision": None}
        return load_module.load_model(locate.resolve_model(settings), settings)

    net = load("first")
    assert evaluate(net)[1] > 0
    save.save_model(net, tokenizer, tmp_path / "saved")
    assert fingerprint.model_configs(load("saved")) == fingerprint.model_configs(net)
    assert evaluate(load("saved"))[1] == 0
    assert evaluate(load("second"))[1] == 0
    config = json.loads((tmp_path / "second/generation_config.json").read_text())
    (tmp_path / "second/generation_config.json").write_text(json.dumps({**config, "temperature": 0.9}))
    assert evaluate(load("second"))[1] > 0, "published to be asked otherwise"


def test_config_of_the_base_model_is_part_of_the_key(evaluate, metric, tiny_model):
    def base(net):
        return lambda: contextlib.nullcontext(net)

    metrics = {"kl": metric("kl_to_base")}
    assert evaluate(tiny_model, metrics=metrics, base_context=base(tiny_model))[1] > 0
    assert evaluate(tiny_model, metrics=metrics, base_context=base(tiny_model))[1] == 0
    assert evaluate(tiny_model, metrics=metrics, base_context=base(rotated(tiny_model)))[1] > 0


def test_autocast_changes_the_fingerprint(evaluate, tiny_model):
    evaluate(tiny_model)
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(tiny_model)[1] > 0
        assert evaluate(tiny_model)[1] == 0


def test_adapter_its_scale_and_its_absence_change_the_fingerprint(evaluate, adapted):
    evaluate(adapted)
    with adapted.disable_adapter():
        assert evaluate(adapted)[1] > 0
        assert evaluate(adapted)[1] == 0
    assert evaluate(adapted)[1] > 0
    with torch.no_grad():
        next(weight for name, weight in adapted.named_parameters() if "lora_B" in name).add_(1e-3)
    assert evaluate(adapted)[1] > 0
    adapted.peft_config["default"].lora_alpha *= 2
    assert evaluate(adapted)[1] > 0
    assert evaluate(adapted)[1] == 0


def test_seed_is_part_of_the_key_of_sampled_answers_only(evaluate, kit, tiny_model):
    evaluate(tiny_model)
    assert evaluate(tiny_model, seed=1)[1] == 0
    drawn = kit.suite(max_new_tokens=6, temperature=0.7)
    evaluate(tiny_model, drawn)
    assert evaluate(tiny_model, drawn, seed=1)[1] > 0


def test_setting_invalidates_only_its_own_measurement(evaluate, kit, tiny_model):
    before, _ = evaluate(tiny_model)
    after, passes = evaluate(tiny_model, kit.suite(max_new_tokens=7))
    assert passes == 7  # the answers; the likelihoods have nothing to do with it
    assert [item.nll for item in after.items] == [item.nll for item in before.items]


def test_additional_metric_keeps_the_answers(evaluate, kit, tiny_model, tmp_path):
    evaluate(tiny_model, metrics={"same": kit.same})
    both, passes = evaluate(tiny_model)
    assert passes == 1
    assert all(item.answer is not None and item.nll is not None for item in both.items)
    # Removing a metric keeps the stored answers.
    evaluate(tiny_model, metrics={"nll": kit.likelihood})
    assert evaluate(tiny_model)[1] == 0


def test_additional_row_is_measured_alone(evaluate, kit, tiny_model, rows):
    evaluate(tiny_model, rows=rows[:-1])
    assert evaluate(tiny_model)[1] == 1 + 6


def test_header_has_fingerprint_and_settings(evaluate, kit, adapted, tmp_path):
    notes = []
    evaluate(adapted)
    header = load_predictions(predictions_path(tmp_path, "desk", 1)).header
    assert header["identity"].keys() == {
        "model", "adapter", "config", "dtype", "attention", "tokenizer", "template", "harness",
    }  # fmt: skip
    assert header["identity"]["dtype"] == "float32"
    assert header["settings"]["answer"]["max_new_tokens"] == 6
    assert header["settings"]["likelihood"] == {"max_length": 128}
    base = header["identity"]["model"]
    with adapted.disable_adapter():
        evaluate(adapted, progress=lambda phase, done, total, note="", unit="": notes.append(note))
    assert any("stored predictions have another adapter: measuring all items again" in note for note in notes)
    header = load_predictions(predictions_path(tmp_path, "desk", 1)).header
    assert (header["identity"]["model"], header["identity"]["adapter"]) == (base, "none")


def test_adapter_does_not_change_the_base_digest(tiny_model):
    from peft import LoraConfig, get_peft_model

    from harness.evaluation.fingerprint import weight_digests as digests

    before = digests(tiny_model)
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], modules_to_save=["norm"]))
    assert before[1] == "none"
    assert digests(model)[0] == before[0]
    assert len(digests(model)[1]) == 64


def test_items_of_the_former_format_are_read_and_measured_again(evaluate, tiny_model, tmp_path):
    result, _ = evaluate(tiny_model)
    file = predictions_path(tmp_path, "desk", 1)
    header = header_path(file)
    former = {**json.loads(header.read_text()), "format": 1}
    header.unlink()
    file.write_text(json.dumps({"header": former}) + "\n" + file.read_text())
    stored = load_predictions(file)
    assert stored.complete
    assert stored.items == load_items(file) == result.items
    notes = []
    again, passes = evaluate(tiny_model, progress=lambda phase, done, total, note="", unit="": notes.append(note))
    assert passes > 0
    assert again == result
    assert any("another format: measuring all items again" in note for note in notes)
    assert all("id" in json.loads(line) for line in file.read_text().splitlines())


def test_every_line_is_an_item_with_its_own_scores(evaluate, kit, tiny_model, tmp_path):
    result, _ = evaluate(tiny_model)
    file = predictions_path(tmp_path, "desk", 1)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["id"] for record in records] == [item.id for item in result.items]
    nats_per_token = {item.id: item.nll / item.tokens for item in result.items}
    for record in records:
        assert record["scores"].keys() == {score.name for score in result.scores}
        assert record["scores"][kit.likelihood.score_names[0]] == pytest.approx(nats_per_token[record["id"]])
    evaluate(tiny_model, metrics={"same": kit.same})
    assert load_predictions(file).scores["id-yes"].keys() == set(kit.same.score_names), "of the current metrics only"


def test_answers_are_complete_when_a_metric_fails(evaluate, kit, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(type(kit.same), "statistics", lambda *_: {})
    with pytest.raises(HarnessError, match="returns no score"):
        evaluate(tiny_model)
    assert load_predictions(predictions_path(tmp_path, "desk", 1)).complete


def test_other_file_is_rejected(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(HarnessError, match=r"x\.jsonl: is not a predictions file"):
        load_predictions(tmp_path / "x.jsonl")


def test_items_are_loaded_as_they_were_written(evaluate, kit, tiny_model, tmp_path):
    result, _ = evaluate(tiny_model)
    assert load_predictions(predictions_path(tmp_path, "desk", 1)).items == result.items


@pytest.mark.parametrize("changed", ["nll", "answer", "tokens"])
def test_a_stored_line_that_does_not_match_its_checksum_is_measured_again(evaluate, tiny_model, tmp_path, changed):
    whole, _ = evaluate(tiny_model)
    file = predictions_path(tmp_path, "desk", 1)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2][changed] = "edited" if changed == "answer" else lines[2][changed] + 1
    lines[1]["prompt"] = "another prompt"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(HarnessError, match="does not match its checksum; restore the file, or evaluate again"):
        load_predictions(file)
    again, passes = evaluate(tiny_model)
    assert passes > 0
    assert again == whole
    assert load_predictions(file).items == whole.items
    assert evaluate(tiny_model)[1] == 0
