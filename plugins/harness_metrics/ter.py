"""Translation edit rate over a corpus, by sacrebleu (Snover et al., 2006, aclanthology 2006.amta-papers.25)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from harness_metrics.base import TextMetric
from harness_metrics.tokenization import TOKENIZATION_VERSION, segmentation_of, space_out

if TYPE_CHECKING:
    from sacrebleu.metrics import TER


class Ter(TextMetric):
    """Edits (words inserted, dropped, exchanged, stretches moved) per 100 words of the reference; lower is better.

    Equal to sacrebleu's `corpus_score`; over 100 where answers are long. An exact answer has 0.
    lang: the references' language. Where it is written without spaces (`auto`: by their script), each character is a
        word. sacrebleu's own `asian_support` leaves runs of kana and all Hangul whole, and is not used.
    normalized, no_punct, case_sensitive: as in sacrebleu.

    Statistics: edits, reference length.
    """

    score_names = ("ter",)
    higher_is_better = False
    citation = "Snover et al. (2006), A Study of Translation Edit Rate, https://aclanthology.org/2006.amta-papers.25"

    def __init__(self, lang: str, normalized: bool, no_punct: bool, case_sensitive: bool) -> None:
        self._lang = lang
        self._normalized, self._no_punct, self._case_sensitive = normalized, no_punct, case_sensitive

    @cached_property
    def _scorer(self) -> TER:
        from sacrebleu.metrics import TER

        return TER(normalized=self._normalized, no_punct=self._no_punct, case_sensitive=self._case_sensitive)

    def signature(self) -> str:
        case = "mixed" if self._case_sensitive else "lc"
        norm, punct = "yes" if self._normalized else "no", "no" if self._no_punct else "yes"
        made = f"nrefs:1|case:{case}|tok:tercom+{TOKENIZATION_VERSION}|lang:{self._lang}|norm:{norm}|punct:{punct}"
        return f"ter|{made}|version:{version('sacrebleu')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        if segmentation_of(references[0], self._lang) != "spaced":
            answer, references = space_out(answer), [space_out(reference) for reference in references]
        # sacrebleu has no public way to the counts of a segment; the tests compare these with `corpus_score`.
        (counts,) = self._scorer._extract_corpus_statistics([answer], [[reference] for reference in references])
        return {"ter": tuple(map(float, counts))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        return float(self._scorer._compute_score_from_stats(list(total)).score)

    def is_ratio(self, name: str) -> bool:
        return True
