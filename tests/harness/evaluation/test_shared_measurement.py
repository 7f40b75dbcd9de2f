"""Items that several processes measure: each once, with the fields that one process finds."""

from __future__ import annotations

import pytest

from harness.distributed.processes import Processes
from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.evaluate import measure_for_main_process
from harness.types import Example, Message


class ProcessesOfOne(Processes):
    """A main process whose workers are computed in it, one after the other.

    Attributes:
        shares: Of each request the items of each worker.
        subject: The arguments of `measure_for_main_process`, apart from the request.
    """

    def __init__(self, world_size):
        super().__init__(0, world_size)
        self.shares = []
        self.subject = None

    def share(self, request, own_part):
        own_part()
        model, suite, rows, settings = self.subject
        results = [
            measure_for_main_process(
                ModelToEvaluate(model, processes=Processes(rank, self.world_size), **settings), suite, rows, request
            )
            for rank in range(1, self.world_size)
        ]
        self.shares.append([sorted(result) for result in results])
        return results


def questions(count):
    return [
        Example(f"row-{index}", (Message("user", f"What is {index}?"), Message("assistant", "x" * (index + 1))), "a:1")
        for index in range(count)
    ]


@pytest.fixture
def evaluate_in(kit, metric, tokenizer, tiny_model):
    """Return a function that evaluates rows in a number of processes."""
    metrics = {"nll": metric("response_perplexity"), "chrf": metric("chrf")}
    settings = {"stage": 1, "seed": 0, "max_length": 200, "tokenizer": tokenizer, "template": kit.template()}

    def evaluate(world_size, rows, folder=None, **suite_settings):
        suite = kit.suite(batch_size=3, max_new_tokens=5, **suite_settings)
        processes = ProcessesOfOne(world_size)
        processes.subject = (tiny_model, suite, rows, settings)
        more = {"processes": processes} if world_size > 1 else {}
        return kit.evaluate(tiny_model.eval(), suite, rows, metrics, folder=folder, **settings, **more), processes

    return evaluate


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "samples": 2}], ids=["greedy", "sampled"])
def test_the_items_are_those_of_one_process(evaluate_in, world_size, sampling):
    rows = questions(7)
    alone, _ = evaluate_in(1, rows, **sampling)
    together, processes = evaluate_in(world_size, rows, **sampling)
    assert [item.id for item in together.items] == [row.id for row in rows]
    for item, expected in zip(together.items, alone.items, strict=True):
        assert item.nll == pytest.approx(expected.nll, rel=1e-5)
        assert (item.answer, item.more_answers) == (expected.answer, expected.more_answers)
    shares = [[list(range(rank, 7, world_size)) for rank in range(1, world_size)]] * 2
    assert processes.shares == shares, "likelihoods, then answers"


def test_stored_items_are_not_measured_again(evaluate_in, tmp_path):
    rows = questions(6)
    first, _ = evaluate_in(2, rows, tmp_path)
    file = tmp_path / "desk-stage1.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for index, line in enumerate(lines) if index not in (2, 3)))
    again, processes = evaluate_in(2, rows, tmp_path)
    assert again.items == first.items
    assert processes.shares == [[[3]], [[3]]]
