"""Corpus BLEU, by sacrebleu (Papineni et al., 2002, aclanthology P02-1040; Post, 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from harness import Component
from harness_metrics.base import LOWERCASE_OPTION, TextMetric
from harness_metrics.normalization import LANG_OPTION
from harness_metrics.tokenization import segmentation_of

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

COMPONENTS: dict[str, Component] = {
    "bleu": Component(
        summary="Corpus BLEU of the answers, 0 to 100, by sacrebleu.",
        factory="harness_metrics.bleu:Bleu",
        options={
            "tokenize": {
                "enum": ["auto", "13a", "zh", "char", "intl", "none"],
                "default": "auto",
                "description": "sacrebleu's tokenizer; `auto` selects `zh` for Chinese references, `char` for other "
                "scripts without spaces, else `13a`.",
            },
            "lang": LANG_OPTION,
            "lowercase": LOWERCASE_OPTION,
            "effective_order": {
                "type": "boolean",
                "default": False,
                "description": "Ignore n-gram orders without a match. Use it for answers of a few words.",
            },
        },
    ),
}

_MAX_NGRAM_ORDER = 4
_TOKENIZERS = {"spaced": "13a", "zh": "zh", "char": "char"}


class Bleu(TextMetric):
    """Corpus BLEU, from 0 to 100, equal to sacrebleu's `corpus_score`.

    Statistics: answer length, reference length, matches of orders 1–4, n-grams of orders 1–4.
    """

    compares_wording = True
    score_names = ("bleu",)
    score_range = 100.0
    citation = "Post (2018), A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319"

    def __init__(self, tokenize: str, lang: str, lowercase: bool, effective_order: bool) -> None:
        """Create the metric.

        Args:
            tokenize: A tokenizer of sacrebleu, or `auto`: for each item by its first reference, `zh` for Chinese,
                `char` for other scripts without spaces (kana, Hangul, Thai …), else `13a`.
            lang: The language of the references, which `auto` then uses; itself `auto`: their script.
            lowercase: Compare without case.
            effective_order: Ignore n-gram orders without any match. Suites of very short answers have BLEU 0 without.
        """
        self._tokenize, self._lang = tokenize, lang
        self._lowercase, self._effective_order = lowercase, effective_order

    def signature(self) -> str:
        """Return sacrebleu's signature; `harness-auto1` names the choice of the tokenizer by script."""
        tokenize = self._tokenize
        if tokenize == "auto":
            by_script = self._lang == "auto"
            tokenize = "harness-auto1(13a,zh,char)" if by_script else _TOKENIZERS[segmentation_of("", self._lang)]
        case, order = "lc" if self._lowercase else "mixed", "yes" if self._effective_order else "no"
        return f"bleu|nrefs:1|case:{case}|eff:{order}|tok:{tokenize}|smooth:exp|version:{version('sacrebleu')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return lengths, matches and n-gram counts of one answer."""
        tokenize = (
            _TOKENIZERS[segmentation_of(references[0], self._lang)] if self._tokenize == "auto" else self._tokenize
        )
        score = _get_scorer(tokenize, self._lowercase).sentence_score(answer, list(references))
        return {"bleu": (score.sys_len, score.ref_len, *score.counts, *score.totals)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the corpus BLEU of the summed counts."""
        from sacrebleu.metrics.bleu import BLEU

        answer_length, reference_length, *counts = map(int, total)
        return BLEU.compute_bleu(
            correct=counts[:_MAX_NGRAM_ORDER],
            total=counts[_MAX_NGRAM_ORDER:],
            sys_len=answer_length,
            ref_len=reference_length,
            smooth_method="exp",
            effective_order=self._effective_order,
        ).score


@lru_cache(maxsize=8)
def _get_scorer(tokenize: str, lowercase: bool) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    # Only the counts of a sentence are used; the effective order avoids sacrebleu's warning about sentence scores.
    return BLEU(
        tokenize=tokenize, lowercase=lowercase, effective_order=True, force=True, max_ngram_order=_MAX_NGRAM_ORDER
    )
