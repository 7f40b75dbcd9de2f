"""Several answers to each prompt: seeds of their own, stored, resumed, and independent of the batch."""

from __future__ import annotations

import pytest

from harness.evaluation.predictions import load_items, predictions_path
from harness.evaluation.scoring import find_limit_violations

PROMPTS = ("yes", "a much longer question", "no")


@pytest.fixture
def evaluate(kit, tiny_model, tmp_path):
    """Return a function that samples answers: the evaluation and the number of prompts that the model computed."""
    rows = [kit.example(prompt, "r") for prompt in PROMPTS]

    def run(samples, size=4, *, model=None, folder=None, seed=0):
        suite = kit.suite(batch_size=size, max_new_tokens=6, temperature=1.0, samples=samples)
        model = model or tiny_model.eval()
        return kit.evaluate(model, suite, rows, {"same": kit.same}, seed=seed, max_length=100, folder=folder)

    return run


def test_each_answer_has_its_own_seed_and_the_first_that_of_a_single_one(evaluate):
    one, three = evaluate(1), evaluate(3)
    assert [item.answers for item in one.items] == [(item.answer,) for item in one.items]
    assert [item.answer for item in three.items] == [item.answer for item in one.items]
    assert [len(set(item.answers)) for item in three.items] == [3, 3, 3]
    assert [item.answers[:2] for item in evaluate(2).items] == [item.answers[:2] for item in three.items]


def test_sampled_answers_do_not_depend_on_the_batch(evaluate):
    answers = [item.answers for item in evaluate(3).items]
    assert [item.answers for item in evaluate(3, 1).items] == answers
    assert [item.answers for item in evaluate(3, 2).items] == answers
    assert [item.answers for item in evaluate(3, seed=1).items] != answers


def test_an_interrupted_evaluation_resumes_with_the_items_that_lack_an_answer(evaluate, tiny_model, tmp_path):
    whole = evaluate(3, 1)
    passes = []

    def fail(*_):
        passes.append(1)
        if len(passes) > 26:  # 18 of the first item, and part of the second
            raise KeyboardInterrupt

    handle = tiny_model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate(3, 1, folder=tmp_path)
    handle.remove()
    part = load_items(predictions_path(tmp_path, "desk", 0))
    assert [(item.prompt, len(item.answers)) for item in part] == [(PROMPTS[1], 3)]
    count = []
    handle = tiny_model.register_forward_pre_hook(lambda *_: count.append(1))
    assert evaluate(3, 1, folder=tmp_path) == whole
    assert len(count) < 2 * 3 * 6 + 1
    count.clear()
    assert evaluate(3, 1, folder=tmp_path) == whole
    assert count == []
    handle.remove()
    assert load_items(predictions_path(tmp_path, "desk", 0)) == whole.items


def test_pass_at_k_counts_the_right_answers(kit, metric):
    rows = [kit.example("yes", "yes"), kit.example("no", "never")]
    suite = kit.suite(temperature=0.01, samples=4, max_truncated=0.0)
    result = kit.evaluate(kit.echo(), suite, rows, {"pass": metric("pass_at_k", k=[1, 4])})
    assert [(score.name, score.value) for score in result.scores] == [("pass_at_1", 0.5), ("pass_at_4", 0.5)]
    assert find_limit_violations(suite, 0, result.items, result.scores) == ()
