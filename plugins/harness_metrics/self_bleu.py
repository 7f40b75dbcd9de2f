"""Similarity of several answers to the same prompt."""

from __future__ import annotations

from harness import Component, HarnessError, Item
from harness_metrics.base import RatioMetric
from harness_metrics.tokenization import segmentation_of

COMPONENTS: dict[str, Component] = {
    "self_bleu": Component(
        summary="BLEU of each sampled answer against the other answers to its prompt, 0 to 100; high: little variety.",
        factory="harness_metrics.self_bleu:SelfBleu",
    ),
}


class SelfBleu(RatioMetric):
    """Mean BLEU of an answer with the other answers to its prompt as references, 0 to 100.

    It rises when sampled answers become alike (Zhu et al., 2018, Texygen, arXiv:1802.01886, who compare all texts of a
    model; with the answers to one prompt it does not depend on the number of prompts). The suite needs `samples` of 2
    or more. BLEU is sacrebleu's sentence BLEU with effective order. Neither direction is better.

    Statistics: sum of the BLEU of the answers, their number.
    """

    requires = "answer"
    score_names = ("self_bleu",)
    score_range = 100.0
    higher_is_better = None
    min_samples = 2

    def signature(self) -> str:
        """Return scope, tokenization and version."""
        return "self_bleu|within:prompt|tok:13a, zh or char|effective_order:yes|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the summed BLEU of the answers and their number.

        Raises:
            HarnessError: The item has fewer than two answers.
        """
        from sacrebleu.metrics.bleu import BLEU

        answers = item.answers
        if len(answers) < 2:
            what = f"has {len(answers)} answers, but self_bleu compares several"
            raise HarnessError(f"item {item.id}", what, 'set "samples" of the suite to 2 or more')
        total = 0.0
        for index, answer in enumerate(answers):
            others = [*answers[:index], *answers[index + 1 :]]
            tokenize = {"spaced": "13a"}.get(segmentation_of(answer), segmentation_of(answer))
            total += BLEU(tokenize=tokenize, effective_order=True).sentence_score(answer, others).score
        return {"self_bleu": (total, float(len(answers)))}
