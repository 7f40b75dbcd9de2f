"""Translation edit rate over a corpus, by sacrebleu (Snover et al., 2006, aclanthology 2006.amta-papers.25)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from harness import Component
from harness_metrics.base import TextMetric
from harness_metrics.normalization import LANG_OPTION
from harness_metrics.tokenization import TOKENIZATION_VERSION, segmentation_of, space_out

if TYPE_CHECKING:
    from sacrebleu.metrics.ter import TER

COMPONENTS: dict[str, Component] = {
    "ter": Component(
        summary="Translation edit rate, edits per 100 words, by sacrebleu; lower is better.",
        factory="harness_metrics.ter:Ter",
        options={
            "lang": LANG_OPTION,
            "normalized": {
                "type": "boolean",
                "default": False,
                "description": "Separate punctuation from words before counting, as Tercom's normalization does.",
            },
            "no_punct": {"type": "boolean", "default": False, "description": "Drop punctuation before counting."},
            "case_sensitive": {
                "type": "boolean",
                "default": False,
                "description": "Count a change of case as an edit.",
            },
        },
    ),
}


class Ter(TextMetric):
    """Edits (insertions, deletions, substitutions, shifts of phrases) per 100 reference words; lower is better.

    Equal to sacrebleu's `corpus_score`; above 100 where answers are long. An exact answer has 0.

    Statistics: edits, reference length.
    """

    compares_wording = True
    score_names = ("ter",)
    score_range = 100.0
    higher_is_better = False
    citation = "Snover et al. (2006), A Study of Translation Edit Rate, https://aclanthology.org/2006.amta-papers.25"

    def __init__(self, lang: str, normalized: bool, no_punct: bool, case_sensitive: bool) -> None:
        """Create the metric.

        Args:
            lang: The language of the references. If it is written without spaces (`auto`: by their script), each
                character is a word. sacrebleu's own `asian_support` does not split kana and Hangul, and is not used.
            normalized: As in sacrebleu.
            no_punct: As in sacrebleu.
            case_sensitive: As in sacrebleu.
        """
        self._lang = lang
        self._normalized, self._no_punct, self._case_sensitive = normalized, no_punct, case_sensitive

    @cached_property
    def _scorer(self) -> TER:
        from sacrebleu.metrics.ter import TER

        return TER(normalized=self._normalized, no_punct=self._no_punct, case_sensitive=self._case_sensitive)

    def signature(self) -> str:
        """Return sacrebleu's signature with language and word tokenization."""
        case = "mixed" if self._case_sensitive else "lc"
        norm, punct = "yes" if self._normalized else "no", "no" if self._no_punct else "yes"
        options = f"nrefs:1|case:{case}|tok:tercom+{TOKENIZATION_VERSION}|lang:{self._lang}|norm:{norm}|punct:{punct}"
        return f"ter|{options}|version:{version('sacrebleu')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return edits and reference length of one answer."""
        if segmentation_of(references[0], self._lang) != "spaced":
            answer, references = space_out(answer), [space_out(reference) for reference in references]
        # sacrebleu has no public access to the counts of a segment; the tests compare these with `corpus_score`.
        (counts,) = self._scorer._extract_corpus_statistics([answer], [[reference] for reference in references])
        return {"ter": tuple(map(float, counts))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the corpus TER of the summed counts."""
        return float(self._scorer._compute_score_from_stats(list(total)).score)

    def is_ratio(self, name: str) -> bool:
        """Return True: 100 * edits / reference length."""
        return True
