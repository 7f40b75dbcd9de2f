"""BLEU over a corpus, by sacrebleu (Papineni et al., 2002, aclanthology P02-1040; Post, 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from harness_metrics.base import TextMetric
from harness_metrics.tokenization import segmentation_of

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

_MAX_NGRAM_ORDER = 4
_TOKENIZERS = {"spaced": "13a", "zh": "zh", "char": "char"}


class Bleu(TextMetric):
    """Corpus BLEU, from 0 to 100, equal to sacrebleu's `corpus_score`.

    tokenize: a tokeniser of sacrebleu, or `auto`: for each item by its first reference, `zh` for Chinese, `char` for
        other scripts without spaces (kana, Hangul, Thai …), else `13a`.
    lang: the references' language, which `auto` then goes by; itself `auto`: their script.
    lowercase: compare without case.
    effective_order: leave out n-gram orders without any match; for suites of very short answers, where BLEU is else 0.

    Statistics: answer length, reference length, matches of orders 1–4, n-grams of orders 1–4.
    """

    score_names = ("bleu",)
    citation = "Post (2018), A Call for Clarity in Reporting BLEU Scores, https://aclanthology.org/W18-6319"

    def __init__(self, tokenize: str, lang: str, lowercase: bool, effective_order: bool) -> None:
        self._tokenize, self._lang = tokenize, lang
        self._lowercase, self._effective_order = lowercase, effective_order

    def signature(self) -> str:
        tokenize = self._tokenize
        if tokenize == "auto":
            by_script = self._lang == "auto"
            tokenize = "harness-auto1(13a,zh,char)" if by_script else _TOKENIZERS[segmentation_of("", self._lang)]
        case, order = "lc" if self._lowercase else "mixed", "yes" if self._effective_order else "no"
        return f"bleu|nrefs:1|case:{case}|eff:{order}|tok:{tokenize}|smooth:exp|version:{version('sacrebleu')}"

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        tokenize = (
            _TOKENIZERS[segmentation_of(references[0], self._lang)] if self._tokenize == "auto" else self._tokenize
        )
        score = _get_scorer(tokenize, self._lowercase).sentence_score(answer, list(references))
        return {"bleu": (score.sys_len, score.ref_len, *score.counts, *score.totals)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        from sacrebleu.metrics import BLEU

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
    from sacrebleu.metrics import BLEU

    # Only the counts of a sentence are read; the effective order spares sacrebleu's warning about sentence scores.
    return BLEU(
        tokenize=tokenize, lowercase=lowercase, effective_order=True, force=True, max_ngram_order=_MAX_NGRAM_ORDER
    )
