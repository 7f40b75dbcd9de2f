"""The built-in metrics, declared; each module beside this one implements one of them."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_metrics.normalise import OPTION

_LOWERCASE = {"type": "boolean", "default": False, "description": "Compare without case."}


@hookimpl
def harness_metrics() -> dict[str, Component]:
    return {
        "bleu": Component(
            summary="Corpus BLEU of the answers, 0 to 100, by sacrebleu.",
            load="harness_metrics.bleu:Bleu",
            options={
                "tokenize": {
                    "enum": ["auto", "13a", "zh", "char", "intl", "none"],
                    "default": "auto",
                    "description": "sacrebleu's tokeniser; `auto` takes `zh` for Chinese references, `char` for other "
                    "scripts without spaces, else `13a`.",
                },
                "lowercase": _LOWERCASE,
                "effective_order": {
                    "type": "boolean",
                    "default": False,
                    "description": "Leave out n-gram orders without a match: for suites of answers of a few words.",
                },
            },
        ),
        "rouge": Component(
            summary="Mean F-measure of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1, for any script.",
            load="harness_metrics.rouge:Rouge",
            options={
                "stem": {
                    "type": "boolean",
                    "default": False,
                    "description": "Compare Porter stems of English words, as ROUGE-1.5.5 with `-m`.",
                }
            },
        ),
        "chrf": Component(
            summary="Corpus chrF of the answers, 0 to 100, by sacrebleu; needs no tokeniser.",
            load="harness_metrics.chrf:Chrf",
            options={
                "word_order": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 4,
                    "default": 0,
                    "description": "Also n-grams of words up to this order; 2 is chrF++.",
                },
                "lowercase": _LOWERCASE,
            },
        ),
        "exact_match": Component(
            summary="Share of answers that equal the reference, 0 to 1.",
            load="harness_metrics.exact_match:ExactMatch",
            options={"normalise": OPTION},
        ),
        "token_f1": Component(
            summary="Mean F1 of the words shared with the reference, 0 to 1, as in SQuAD.",
            load="harness_metrics.token_f1:TokenF1",
            options={"normalise": OPTION},
        ),
        "response_perplexity": Component(
            summary="Perplexity of the reference responses' tokens and their mean NLL; lower is better.",
            load="harness_metrics.response_perplexity:ResponsePerplexity",
        ),
    }
