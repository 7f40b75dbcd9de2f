"""The overlap of an answer's and the reference's words, as in SQuAD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness import Item
from harness_metrics.base import MeanMetric
from harness_metrics.exact_match import equal_ignoring_whitespace
from harness_metrics.normalization import AnswerExtractor, applicable_steps, format_steps, normalize_text
from harness_metrics.tokenization import TOKENIZATION_VERSION, space_out


class TokenF1(MeanMetric):
    """Mean F1 of the words that answer and reference share, from 0 to 1 (Rajpurkar et al., 2016, arXiv:1606.05250).

    normalise: what is ignored, extract: what is compared (see `harness_metrics.normalization`). lang: English articles
        are no articles in another language.
    Words are split at spaces, and scripts without spaces into characters. With several references the best counts.
    """

    score_names = ("token_f1",)
    citation = "Rajpurkar et al. (2016), SQuAD, https://aclanthology.org/D16-1264"

    def __init__(self, normalise: Sequence[str], extract: str | None, lang: str) -> None:
        self._steps = applicable_steps(normalise, lang)
        self._extract = AnswerExtractor(self.score_names[0], extract)

    def signature(self) -> str:
        words = f"space+{TOKENIZATION_VERSION}{self._extract.signature_suffix()}"
        return f"token_f1|norm:{format_steps(self._steps)}|tok:{words}|version:1"

    def is_parsed(self, item: Item) -> bool:
        return self._extract(item.answer or "") is not None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        return {"token_f1": (max(self._f1(answer, reference) for reference in references), 1.0)}

    def _f1(self, answer: str, reference: str) -> float:
        found, wanted = self._extract(answer), self._extract(reference)
        if found is None:
            return 0.0
        answer, reference = found, reference if wanted is None else wanted
        ours = space_out(normalize_text(answer, self._steps)).split()
        theirs = space_out(normalize_text(reference, self._steps)).split()
        if not ours and not theirs:
            return float(equal_ignoring_whitespace(answer, reference))
        shared = sum((Counter(ours) & Counter(theirs)).values())
        return 2 * shared / (len(ours) + len(theirs))
