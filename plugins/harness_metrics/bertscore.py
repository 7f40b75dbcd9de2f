"""BERTScore: similarity of answer and reference by the token embeddings of an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Component, ComponentExample, Item
from harness_metrics.base import MeanMetric

if TYPE_CHECKING:
    from harness_metrics.encoder import TextEncoder, TokenEmbeddings

COMPONENTS: dict[str, Component] = {
    "bertscore": Component(
        summary="Mean BERTScore by an encoder in a folder: precision, recall and F1, at most 1.",
        factory="harness_metrics.bertscore:BertScore",
        options={
            "model": {
                "type": "string",
                "format": "path",
                "minLength": 1,
                "description": "Folder of an encoder (BERT, XLM-RoBERTa, DeBERTa …) for the language, with its "
                "tokenizer. Nothing is downloaded.",
            },
            "layer": {
                "type": ["integer", "null"],
                "minimum": 0,
                "default": None,
                "description": "The layer whose output is compared, 0 for the embeddings. null: three quarters up, "
                "near the authors' choices (9 of BERT-base, 10 of RoBERTa-base, 17 of RoBERTa-large).",
            },
            "device": {
                "enum": ["auto", "cpu"],
                "default": "auto",
                "description": "auto: the CUDA device if there is one, which also holds the trained model.",
            },
        },
        required=("model",),
        example=ComponentExample(lambda folder: {"model": _write_example_encoder(folder)}),
    ),
}

_SPEC_KEY = "metrics.bertscore"


class BertScore(MeanMetric):
    """Mean BERTScore of the answers: precision, recall and F1, at most 1 (Zhang et al., 2020, arXiv:1904.09675).

    Each token of the answer is matched with the token of the reference whose contextual embedding has the highest
    cosine similarity; the mean is the precision. Recall goes from the reference to the answer. F1 is their harmonic
    mean, 0 where one of them is not above 0.

    As in the authors' package, the begin and end tokens of a text can be matched but are not counted. There are no idf
    weights and no rescaling by a baseline. Differences between runs mean the same without them, but all values are
    close to 1, those of unrelated texts included.

    Text that the encoder has no tokens for scores 0. Text beyond its window is ignored, and the item is counted as
    unparsed. With several references the best one counts, for each score separately. Statistics of each: score, 1.
    """

    compares_wording = True
    score_names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    citation = "Zhang et al. (2020), BERTScore: Evaluating Text Generation with BERT, https://arxiv.org/abs/1904.09675"

    def __init__(self, model: str, layer: int | None, device: str) -> None:
        """Create the metric; the encoder is loaded at first use.

        Args:
            model: The folder of an encoder and its tokenizer.
            layer: The layer whose output is compared, 0 for the embeddings; None: three quarters up.
            device: `auto` (a CUDA device if there is one) or `cpu`.
        """
        self._folder, self._requested_layer, self._device = Path(model), layer, device

    def check_available(self) -> None:
        """Check the encoder's folder and the layer.

        Raises:
            HarnessError: The folder is not that of an encoder, or it has no such layer.
        """
        from harness_metrics.encoder import resolve_layer

        resolve_layer(self._folder, self._requested_layer, _SPEC_KEY)

    @cached_property
    def _layer(self) -> int:
        from harness_metrics.encoder import resolve_layer

        return resolve_layer(self._folder, self._requested_layer, _SPEC_KEY)

    @cached_property
    def _encoder(self) -> TextEncoder:
        from harness_metrics.encoder import TextEncoder

        return TextEncoder(self._folder, self._layer, on_cpu=self._device == "cpu", where=f"{_SPEC_KEY}.model")

    def signature(self) -> str:
        """Return the encoder's name and digest, layer, dtype and versions."""
        from harness_metrics.model_files import model_fingerprint

        encoder = f"model:{model_fingerprint(self._folder)}|layer:{self._layer}|idf:no|rescaled:no"
        return f"bertscore|{encoder}|dtype:float32|transformers:{version('transformers')}|version:1"

    def prepare(self, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, float]]]:
        """Yield each item with its scores, and with 1 as `complete` if its texts fit into the encoder's window."""
        for item in items:
            scores = {name: vector[0] for name, vector in super().statistics(item).items()}
            yield item, {**scores, "complete": float(self._fits_window(item))}

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the scores, which `prepare` has computed or which are computed now, and 1."""
        if item.computed is None:
            return super().statistics(item)
        return {name: (item.computed[name], 1.0) for name in self.score_names}

    def is_parsed(self, item: Item) -> bool:
        """Return whether answer and reference fit into the encoder's window."""
        return self._fits_window(item) if item.computed is None else bool(item.computed["complete"])

    def _fits_window(self, item: Item) -> bool:
        return not any(self._encoder.is_truncated(text) for text in (item.answer or "", item.reference))

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the best precision, recall and F1 over the references."""
        answer_embeddings = self._encoder(answer)
        scores_by_reference = [
            greedy_match_scores(answer_embeddings, self._encoder(reference)) for reference in references
        ]
        return {
            name: (max(scores), 1.0)
            for name, scores in zip(self.score_names, zip(*scores_by_reference, strict=True), strict=True)
        }


def greedy_match_scores(answer: TokenEmbeddings, reference: TokenEmbeddings) -> tuple[float, float, float]:
    """Return precision, recall and F1 of greedy cosine matching, each in [-1, 1]; 0 where a text has no token."""
    if not answer.is_text_token.any() or not reference.is_text_token.any():
        return 0.0, 0.0, 0.0
    cosines = (answer.vectors @ reference.vectors.T).clamp(-1, 1)  # (T, R)
    precision = float(cosines.amax(1)[answer.is_text_token].mean())
    recall = float(cosines.amax(0)[reference.is_text_token].mean())
    both_positive = precision > 0 and recall > 0
    return precision, recall, 2 * precision * recall / (precision + recall) if both_positive else 0.0


def _write_example_encoder(folder: Path) -> str:
    """Write a tiny random encoder and return its folder."""
    from harness.testing.tiny_model import write_tiny_encoder

    return str(write_tiny_encoder(folder))
