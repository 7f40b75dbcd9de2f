"""Evaluation of suites, from rows to scores."""

from __future__ import annotations

import json
import math

import pytest
import torch

from harness.errors import HarnessError, RunError
from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.evaluate import evaluate_suites
from harness.evaluation.scoring import score_items

SAID = ["yes", "a much longer answer", "", "no", "天气很好", "six pots"]
WANTED = ["yes", "a much longer answer!", "?", "no", "天气很好", "seven"]


def lines(file):
    """Return the records of a predictions file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def rows(kit):
    return [kit.example(said, wanted) for said, wanted in zip(SAID, WANTED, strict=True)]


@pytest.fixture
def evaluate(kit, tokenizer, rows):
    def run(model, metrics, suites=None, **options):
        suites = suites or [kit.suite()]
        examples = options.pop("examples", {suite.name: rows for suite in suites})
        outputs = {name: options.pop(name) for name in ("folder", "progress") if name in options}
        subject = ModelToEvaluate(
            model, tokenizer, kit.template(), **{"stage": 1, "seed": 0, "max_length": 128, **options}
        )
        return evaluate_suites(subject, suites, examples, {suite.name: metrics for suite in suites}, **outputs)

    return run


def test_answers_and_scores_are_in_row_order(evaluate, kit, rows):
    (result,) = evaluate(kit.echo(), {"same": kit.same})
    assert (result.stage, result.suite) == (1, "desk")
    assert [item.id for item in result.items] == [row.id for row in rows]
    assert [item.answer for item in result.items] == SAID
    assert [item.finish for item in result.items] == ["stop", "stop", "empty", "stop", "stop", "stop"]
    (score,) = result.scores
    assert (score.name, score.value, score.n, score.higher_is_better) == ("same", 3 / 6, 6, True)
    assert score.statistics == ((1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.0, 1.0))
    assert score.low < score.value < score.high
    assert score.stderr == pytest.approx(math.sqrt(0.25 / 6), rel=0.1)
    assert score.signature == "same|test"


def test_uniform_model_has_vocabulary_size_as_perplexity(evaluate, kit, tokenizer):
    (result,) = evaluate(kit.echo(), {"nll": kit.likelihood})
    assert result.scores[0].value == pytest.approx(math.log(len(tokenizer)), rel=1e-6)
    # Each byte of the reference, and the end of the turn.
    assert [item.tokens for item in result.items] == [len(text.encode()) + 1 for text in WANTED]
    assert result.scores[0].higher_is_better is False


def test_likelihood_metrics_generate_nothing(evaluate, kit, monkeypatch):
    monkeypatch.setattr("harness.evaluation.answers.generate_answers", None)
    (result,) = evaluate(kit.echo(), {"nll": kit.likelihood})
    assert all(item.answer is None and item.finish is None for item in result.items)


def test_answer_metrics_compute_no_likelihood(evaluate, kit, monkeypatch):
    monkeypatch.setattr("harness.evaluation.likelihood.response_nll", None)
    (result,) = evaluate(kit.echo(), {"same": kit.same})
    assert all(item.nll is None and item.tokens == 0 for item in result.items)


def test_items_are_written_as_json_lines(evaluate, kit, tmp_path):
    results = evaluate(
        kit.echo(),
        {"same": kit.same, "nll": kit.likelihood},
        [kit.suite("desk"), kit.suite("other")],
        folder=tmp_path / "predictions",
    )
    assert sorted(file.name for file in (tmp_path / "predictions").iterdir()) == [
        "desk-stage1.header.json",
        "desk-stage1.jsonl",
        "other-stage1.header.json",
        "other-stage1.jsonl",
    ]
    text = (tmp_path / "predictions" / "desk-stage1.jsonl").read_text(encoding="utf-8")
    written = [json.loads(line) for line in text.splitlines()]
    header = json.loads((tmp_path / "predictions" / "desk-stage1.header.json").read_text(encoding="utf-8"))
    assert (header["whole"], header["items"]) == (True, len(written))
    assert [record["id"] for record in written] == [item.id for item in results[0].items]
    records = {record["id"]: record for record in written}
    for item in results[0].items:
        record = records[item.id]
        assert (record["suite"], record["stage"]) == ("desk", 1)
        for name in ("prompt", "reference", "answer", "finish", "nll", "tokens"):
            assert record[name] == getattr(item, name)
        assert record["answer_tokens"] == len(item.answer.encode()) + 1
        assert record["prompt_cut"] is record["row_cut"] is False
    assert "天气很好" in text  # readable without escapes


def test_items_without_answers_are_written(evaluate, kit, tmp_path):
    evaluate(kit.echo(), {"nll": kit.likelihood}, folder=tmp_path, stage=0)
    records = lines(tmp_path / "desk-stage0.jsonl")
    assert len(records) == len(SAID)
    assert all(record["answer"] is None and record["nll"] > 0 for record in records)


def test_finished_items_are_on_disk_after_a_later_failure(evaluate, kit, tmp_path):
    model = kit.echo()
    calls = []

    def fail(module, args, given):
        calls.append(1)
        if len(calls) > 25:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, {"same": kit.same}, [kit.suite(batch_size=2)], folder=tmp_path)
    written = lines(tmp_path / "desk-stage1.jsonl")
    assert 0 < len(written) < len(SAID)
    assert all(record["answer"] in SAID for record in written)


@pytest.mark.parametrize("after", [0, 3])
def test_out_of_memory_halves_the_batch(evaluate, kit, tmp_path, after):
    notes = []
    model = kit.echo(room=2, after=after)
    (result,) = evaluate(
        model,
        {"same": kit.same},
        [kit.suite(batch_size=6)],
        folder=tmp_path,
        progress=lambda phase, done, total, note="", unit="": notes.append(note),
    )
    assert [item.answer for item in result.items] == SAID
    assert any("out of memory with 6 rows" in note for note in notes)
    assert len(lines(tmp_path / "desk-stage1.jsonl")) == len(SAID)
    assert max(model.rows[-3:]) <= 2


def test_out_of_memory_does_not_change_likelihoods(evaluate, kit):
    (small,) = evaluate(kit.echo(room=1), {"nll": kit.likelihood}, [kit.suite(batch_size=6)])
    (large,) = evaluate(kit.echo(), {"nll": kit.likelihood}, [kit.suite(batch_size=6)])
    assert [item.nll for item in small.items] == [item.nll for item in large.items]


def test_out_of_memory_with_one_row_is_an_error(evaluate, kit):
    with pytest.raises(RunError, match=r"evaluate desk.*one row.*max_length"):
        evaluate(kit.echo(room=0), {"same": kit.same})


def test_number_of_logits_is_limited(evaluate, kit, tokenizer, monkeypatch):
    monkeypatch.setattr("harness.evaluation.likelihood.MAX_LOGITS", 10 * len(tokenizer))
    model = kit.echo()
    (result,) = evaluate(model, {"nll": kit.likelihood}, [kit.suite(batch_size=6)])
    assert sum(model.rows) == len(SAID)
    assert len(model.rows) > 2
    assert all(item.nll for item in result.items)


def test_batch_size_does_not_change_the_result(evaluate, kit, tiny_model):
    metrics = {"same": kit.same, "nll": kit.likelihood}
    one, eight = (evaluate(tiny_model, metrics, [kit.suite(batch_size=size)])[0] for size in (1, 8))
    assert [item.answer for item in one.items] == [item.answer for item in eight.items]
    assert [item.nll for item in one.items] == pytest.approx([item.nll for item in eight.items], abs=1e-4)


def test_modes_of_modules_are_restored(evaluate, kit, tiny_model):
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    before = [module.training for module in tiny_model.modules()]
    seen = []
    tiny_model.model.layers[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    evaluate(tiny_model, {"nll": kit.likelihood})
    assert [module.training for module in tiny_model.modules()] == before
    assert seen
    assert not any(seen)


def test_model_can_be_trained_after_evaluation(evaluate, kit, tiny_model):
    evaluate(tiny_model, {"same": kit.same, "nll": kit.likelihood})
    ids = torch.arange(10, 30)[None]
    tiny_model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in tiny_model.parameters())


def test_progress_counts_each_measurement_once(evaluate, kit):
    seen = []

    def progress(phase, done, total, note="", unit=""):
        seen.append((phase, done, total, unit))

    evaluate(kit.echo(), {"same": kit.same, "nll": kit.likelihood}, progress=progress)
    assert {(phase, total, unit) for phase, _, total, unit in seen} == {("evaluate desk", 12, "items")}
    assert [done for _, done, *_ in seen] == list(range(13))


def test_row_with_truncated_response_is_an_item_without_tokens(evaluate, kit, rows, tmp_path):
    rows.append(kit.example("q" * 100, "r"))
    (result,) = evaluate(kit.echo(), {"nll": kit.likelihood}, max_length=60, folder=tmp_path)
    assert (result.items[-1].nll, result.items[-1].tokens) == (0.0, 0)
    assert result.scores[0].n == len(rows)
    records = lines(tmp_path / "desk-stage1.jsonl")
    assert [record["row_cut"] for record in records].count(True) >= 1
    assert len(records) == len(rows)


def test_long_prompt_loses_its_beginning_and_is_marked(evaluate, kit, rows, tmp_path):
    rows.append(kit.example("z" * 100, "r"))
    model = kit.echo()
    model._answer_ids = lambda ids, mask: ids[mask.bool()].tolist()[-3:]
    evaluate(model, {"same": kit.same}, max_length=60, folder=tmp_path)
    records = lines(tmp_path / "desk-stage1.jsonl")
    cut = [record for record in records if record["prompt_cut"]]
    assert [record["prompt_tokens"] for record in cut] == [60]
    assert cut[0]["prompt"] == "z" * 100


def test_suite_without_rows_is_rejected(evaluate, kit):
    with pytest.raises(HarnessError, match=r"evaluate\.desk: the source 'source' has no rows for it"):
        evaluate(kit.echo(), {"same": kit.same}, examples={"desk": ()})


def test_answers_longer_than_the_model_are_rejected(evaluate, kit):
    with pytest.raises(HarnessError, match=r"evaluate\.desk\.max_new_tokens: 512 leaves no position for a prompt"):
        evaluate(kit.echo(), {"same": kit.same}, [kit.suite(max_new_tokens=512)])


def test_prompt_for_display_has_the_original_text(kit):
    from harness.evaluation.predictions import format_prompt_for_display
    from harness.types import Example, Message

    answer = Message("assistant", "a")
    assert format_prompt_for_display(Example("1", (Message("user", "q"), answer), "p")) == "q"
    assert (
        format_prompt_for_display(Example("1", (Message("user", "sum up", input="text"), answer), "p"))
        == "sum up\n\ntext"
    )
    turns = (Message("system", "s"), Message("user", "q"), answer, Message("user", "r"), answer)
    assert format_prompt_for_display(Example("1", turns, "p")) == "system: s\nuser: q\nassistant: a\nuser: r"


def test_metric_with_undeclared_scores_is_rejected(kit):
    from harness.types import Item

    kit.same.score_names = ("other",)
    with pytest.raises(HarnessError, match=r"metrics\.same: returns same, but its score_names are other"):
        score_items([Item("1", "p", "r", "a")], {"same": kit.same}, suite="s", stage=0)


def test_interval_depends_on_the_items_only(kit):
    from harness.types import Item

    items = [Item(str(number), "p", "r", "r" if number % 3 else "x") for number in range(20)]
    first, later = (score_items(items, {"same": kit.same}, suite="s", stage=stage)[0] for stage in (0, 3))
    assert (first.low, first.high, first.stderr) == (later.low, later.high, later.stderr)
    assert 0 <= first.low < first.value < first.high <= 1
