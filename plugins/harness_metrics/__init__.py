"""The built-in metrics, declared; each module beside this one implements one of them."""

from __future__ import annotations

from harness import Component, hookimpl
from harness_metrics.normalization import EXTRACT_OPTION, LANG_OPTION, NORMALIZE_OPTION

_LOWERCASE_OPTION = {"type": "boolean", "default": False, "description": "Compare without case."}


@hookimpl
def harness_metrics() -> dict[str, Component]:
    return {
        "bleu": Component(
            summary="Corpus BLEU of the answers, 0 to 100, by sacrebleu.",
            factory="harness_metrics.bleu:Bleu",
            options={
                "tokenize": {
                    "enum": ["auto", "13a", "zh", "char", "intl", "none"],
                    "default": "auto",
                    "description": "sacrebleu's tokeniser; `auto` takes `zh` for Chinese references, `char` for other "
                    "scripts without spaces, else `13a`.",
                },
                "lang": LANG_OPTION,
                "lowercase": _LOWERCASE_OPTION,
                "effective_order": {
                    "type": "boolean",
                    "default": False,
                    "description": "Leave out n-gram orders without a match: for suites of answers of a few words.",
                },
            },
        ),
        "rouge": Component(
            summary="Mean F-measure of ROUGE-1, -2, -L and -Lsum, 0 to 1, for any script.",
            factory="harness_metrics.rouge:Rouge",
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
            factory="harness_metrics.chrf:Chrf",
            options={
                "word_order": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 4,
                    "default": 0,
                    "description": "Also n-grams of words up to this order; 2 is chrF++.",
                },
                "lowercase": _LOWERCASE_OPTION,
            },
        ),
        "exact_match": Component(
            summary="Share of answers that equal the reference, 0 to 1.",
            factory="harness_metrics.exact_match:ExactMatch",
            options={"normalise": NORMALIZE_OPTION, "extract": EXTRACT_OPTION, "lang": LANG_OPTION},
        ),
        "token_f1": Component(
            summary="Mean F1 of the words shared with the reference, 0 to 1, as in SQuAD.",
            factory="harness_metrics.token_f1:TokenF1",
            options={"normalise": NORMALIZE_OPTION, "extract": EXTRACT_OPTION, "lang": LANG_OPTION},
        ),
        "ter": Component(
            summary="Translation edit rate, edits per 100 words, by sacrebleu; lower is better.",
            factory="harness_metrics.ter:Ter",
            options={
                "lang": LANG_OPTION,
                "normalized": {
                    "type": "boolean",
                    "default": False,
                    "description": "Split punctuation off before counting, as Tercom's normalisation does.",
                },
                "no_punct": {"type": "boolean", "default": False, "description": "Drop punctuation before counting."},
                "case_sensitive": {
                    "type": "boolean",
                    "default": False,
                    "description": "Count a change of case as one.",
                },
            },
        ),
        "bertscore": Component(
            summary="Mean BERTScore by an encoder in a folder: precision, recall and F1, at most 1.",
            factory="harness_metrics.bertscore:BertScore",
            options={
                "model": {
                    "type": "string",
                    "format": "path",
                    "minLength": 1,
                    "description": "Folder of an encoder (BERT, XLM-RoBERTa, DeBERTa …) that knows the language, "
                    "with its tokenizer. Nothing is fetched.",
                },
                "layer": {
                    "type": ["integer", "null"],
                    "minimum": 0,
                    "default": None,
                    "description": "The layer whose output is compared, 0 for the embeddings. null: three quarters up, "
                    "near those that the authors chose (9 of BERT-base, 10 of RoBERTa-base, 17 of RoBERTa-large).",
                },
                "device": {
                    "enum": ["auto", "cpu"],
                    "default": "auto",
                    "description": "auto: on the CUDA device where there is one, beside the model that is trained.",
                },
            },
            required=("model",),
        ),
        "distinct": Component(
            summary="Share of n-grams that are no repetition within their answer, 0 to 1.",
            factory="harness_metrics.distinct:Distinct",
            options={
                "orders": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1, "maximum": 9},
                    "minItems": 1,
                    "uniqueItems": True,
                    "default": [1, 2],
                    "description": "Lengths of the n-grams; each gives a score.",
                }
            },
        ),
        "length_ratio": Component(
            summary="Words of the answers over words of the references; 1 is as long.",
            factory="harness_metrics.length_ratio:LengthRatio",
        ),
        "regex": Component(
            summary="Share of answers in which a regular expression is found, 0 to 1.",
            factory="harness_metrics.regex:Regex",
            options={
                "pattern": {"type": "string", "format": "regex", "description": "Regular expression of Python's re."},
                "whole": {
                    "type": "boolean",
                    "default": False,
                    "description": "The answer must match from end to end, white space about it aside.",
                },
            },
            required=("pattern",),
        ),
        "json_valid": Component(
            summary="Share of answers that parse as JSON, and that fit a JSON Schema, 0 to 1.",
            factory="harness_metrics.json_valid:JsonValid",
            options={
                "schema": {
                    "type": ["object", "null"],
                    "default": None,
                    "description": "A JSON Schema; gives the score schema_valid beside json_valid. null: none.",
                },
                "fenced": {
                    "type": "boolean",
                    "default": False,
                    "description": "Also take JSON in a Markdown code fence that is the whole answer.",
                },
            },
        ),
        "multiple_choice": Component(
            summary="Accuracy of multiple choice by likelihood: acc, acc_norm and acc_bytes, 0 to 1.",
            factory="harness_metrics.multiple_choice:MultipleChoice",
        ),
        "response_perplexity": Component(
            summary="Perplexity of the reference responses' tokens and their mean NLL; lower is better.",
            factory="harness_metrics.response_perplexity:ResponsePerplexity",
        ),
        "bits_per_byte": Component(
            summary="Bits a byte of plain texts, and their byte and word perplexity; lower is better.",
            factory="harness_metrics.bits_per_byte:BitsPerByte",
        ),
        "kl_to_base": Component(
            summary="Mean KL divergence from the base model a response token, in nats; lower is nearer.",
            factory="harness_metrics.base_divergence:KlToBase",
        ),
        "agreement_with_base": Component(
            summary="Share of response tokens at which model and base hold the same one likeliest, 0 to 1.",
            factory="harness_metrics.base_divergence:AgreementWithBase",
        ),
    }
