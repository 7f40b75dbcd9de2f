"""Answers that name one of several labels: accuracy and macro F1."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness import Component, ComponentExample, HarnessError, Item
from harness_metrics.base import TextMetric
from harness_metrics.normalization import normalize_text

COMPONENTS: dict[str, Component] = {
    "classification": Component(
        summary="Accuracy and macro F1 of answers that name one of several labels, 0 to 1.",
        factory="harness_metrics.classification:Classification",
        options={
            "labels": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 2,
                "uniqueItems": True,
                "description": "The labels. Each reference is one of them.",
            },
            "whole": {
                "type": "boolean",
                "default": False,
                "description": "The whole answer must be the label. false: the first label in the answer counts.",
            },
        },
        required=("labels",),
        example=ComponentExample(
            {"labels": ["the cat sat on the mat", "it is 4 pm", "never"]},
            better="The cat sat on the mat.",
            worse="never",
        ),
    ),
}

_STEPS = ("nfkc", "case", "punctuation")


class Classification(TextMetric):
    """Accuracy and macro F1 of a classification by the label that an answer names, both 0 to 1.

    The label of an answer is the first of the labels that occurs in it, as whole words and without case and
    punctuation; of labels that begin at the same place, the longest. An answer that names none is wrong and unparsed.
    Macro F1 is the mean over all labels of F1 = 2 TP / (2 TP + FP + FN), 0 for a label that neither occurs nor is
    named (Opitz and Burst, 2019, arXiv:1911.03347, their first definition). The report has the confusion matrix.

    Statistics of `macro_f1`: true positives, false positives and false negatives of each label.
    """

    score_names = ("accuracy", "macro_f1")
    citation = "Opitz and Burst (2019), https://arxiv.org/abs/1911.03347"

    def __init__(self, labels: Sequence[str], whole: bool) -> None:
        """Create the metric.

        Args:
            labels: The labels.
            whole: Whether the whole answer must be the label.

        Raises:
            HarnessError: Two labels differ in case or punctuation alone.
        """
        self.labels, self._whole = tuple(labels), whole
        self._normalized = [normalize_text(label, _STEPS) for label in labels]
        if len(set(self._normalized)) < len(labels) or "" in self._normalized:
            what = "has labels that differ in case or punctuation alone"
            raise HarnessError("metrics.classification.labels", what, "rename them")

    def signature(self) -> str:
        """Return labels, extent and version."""
        return f"classification|labels:{'/'.join(self.labels)}|whole:{'yes' if self._whole else 'no'}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Return whether the answer names a label."""
        return self.label_of(item.answer or "") is not None

    def label_of(self, text: str) -> int | None:
        """Return the index of the label that a text names; None if it names none."""
        normalized = normalize_text(text, _STEPS)
        if self._whole:
            return self._normalized.index(normalized) if normalized in self._normalized else None
        found = [
            (match.start(), -len(label), index)
            for index, label in enumerate(self._normalized)
            if (match := re.search(rf"\b{re.escape(label)}\b" if label.isascii() else re.escape(label), normalized))
        ]
        return min(found)[2] if found else None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return whether the label is right, and the counts of each label.

        Raises:
            HarnessError: A reference is not a label.
        """
        gold = [self._normalized.index(text) for text in map(self._normalize_reference, references)]
        label = self.label_of(answer)
        is_right = label in gold
        expected = label if is_right else gold[0]
        counts = [0.0] * (3 * len(self.labels))
        for index in range(len(self.labels)):
            counts[3 * index] = float(is_right and index == label)
            counts[3 * index + 1] = float(not is_right and index == label)
            counts[3 * index + 2] = float(not is_right and index == expected)
        return {"accuracy": (float(is_right), 1.0), "macro_f1": tuple(counts)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the accuracy, or the mean of the labels' F1."""
        if name == "accuracy":
            return total[0] / total[1] if total[1] else float("nan")
        counts = [total[start : start + 3] for start in range(0, len(total), 3)]
        return sum(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0 for tp, fp, fn in counts) / len(counts)

    def is_ratio(self, name: str) -> bool:
        """Return whether the score is the accuracy."""
        return name == "accuracy"

    def _normalize_reference(self, reference: str) -> str:
        normalized = normalize_text(reference, _STEPS)
        if normalized not in self._normalized:
            hint = f"labels are: {', '.join(self.labels)}"
            raise HarnessError("metrics.classification", f"the reference {reference[:40]!r} is not a label", hint)
        return normalized
