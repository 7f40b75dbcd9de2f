"""ROUGE by rouge_score, with words tokenized for any script (Lin, 2004, aclanthology W04-1013)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from harness import Component
from harness_metrics.base import MeanMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, tokenize_words

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

COMPONENTS: dict[str, Component] = {
    "rouge": Component(
        summary="Mean F-measure of ROUGE-1, -2, -L and -Lsum, 0 to 1, for any script.",
        factory="harness_metrics.rouge:Rouge",
        options={
            "stem": {
                "type": "boolean",
                "default": False,
                "description": "Compare Porter stems of English words, like ROUGE-1.5.5 with `-m`.",
            }
        },
    ),
}


class Rouge(MeanMetric):
    """Mean F-measure of ROUGE-1, -2, -L and -Lsum over the answers, from 0 to 1; no resampled aggregate.

    ROUGE-L treats a text as one sequence, ROUGE-Lsum as the set of its lines. With several references the best one
    counts, for each score separately. ROUGE-2 of texts of one word is 0.
    """

    compares_wording = True
    score_names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    citation = "Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries, https://aclanthology.org/W04-1013"

    def __init__(self, stem: bool) -> None:
        """Create the metric.

        Args:
            stem: Compare Porter stems of English words of more than three letters, like ROUGE-1.5.5 with `-m`.
        """
        self._stem = stem

    @cached_property
    def _scorer(self) -> RougeScorer:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer(list(self.score_names), tokenizer=_RougeTokenizer(self._stem))

    def signature(self) -> str:
        """Return word tokenization, stemming and rouge_score's version."""
        return f"rouge|tok:{TOKENIZATION_VERSION}|stem:{'yes' if self._stem else 'no'}|version:{version('rouge-score')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the best F-measures over the references."""
        scores = self._scorer.score_multi(list(references), answer)
        return {name: (float(scores[name].fmeasure), 1.0) for name in self.score_names}


class _RougeTokenizer:
    """The tokenizer of rouge_score. Its default keeps only `[a-z0-9]+` and scores identical Chinese texts 0."""

    def __init__(self, stem: bool) -> None:
        self._stemmer: Any = None
        if stem:
            from nltk.stem.porter import PorterStemmer

            self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = tokenize_words(text)
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]
