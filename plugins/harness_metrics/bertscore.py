"""BERTScore: how well the tokens of answer and reference match in an encoder's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Item
from harness_metrics.base import MeanMetric

if TYPE_CHECKING:
    from harness_metrics.encoder import TextEncoder, TokenEmbeddings

_SPEC_KEY = "metrics.bertscore"


class BertScore(MeanMetric):
    """Mean BERTScore of the answers: precision, recall and F1, at most 1 (Zhang et al., 2020, arXiv:1904.09675).

    Each token of the answer is matched with the token of the reference whose contextual embedding has the highest
    cosine with its own; the mean is the precision. Recall goes from the reference to the answer, F1 is their harmonic
    mean, 0 where one of them is not above 0. As in the authors' package, begin and end of the text can be matched but
    are not counted, and there are neither idf weights nor a rescaling by a baseline: differences between runs mean the
    same without, while the values crowd together near 1, unlike texts included.

    model: the folder of an encoder and its tokenizer. layer: the output of that layer is read, 0 for the embeddings;
        None: three quarters up. device: `auto` (a CUDA device where there is one) or `cpu`.

    Text that the encoder has no tokens for scores 0. Text beyond its window is not read, and the item is counted as
    unparsed. With several references the best counts, for each score by itself. Statistics of each: score, 1.
    """

    score_names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    citation = "Zhang et al. (2020), BERTScore: Evaluating Text Generation with BERT, https://arxiv.org/abs/1904.09675"

    def __init__(self, model: str, layer: int | None, device: str) -> None:
        self._folder, self._requested_layer, self._device = Path(model), layer, device

    def check_available(self) -> None:
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
        from harness_metrics.encoder import encoder_fingerprint

        made = f"model:{encoder_fingerprint(self._folder)}|layer:{self._layer}|idf:no|rescaled:no"
        return f"bertscore|{made}|dtype:float32|transformers:{version('transformers')}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Whether answer and reference fit into the encoder's window."""
        return not any(self._encoder.is_truncated(text) for text in (item.answer or "", item.reference))

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        ours = self._encoder(answer)
        every = [greedy_match_scores(ours, self._encoder(reference)) for reference in references]
        return {
            name: (max(scores), 1.0) for name, scores in zip(self.score_names, zip(*every, strict=True), strict=True)
        }


def greedy_match_scores(answer: TokenEmbeddings, reference: TokenEmbeddings) -> tuple[float, float, float]:
    """Precision, recall and F1 of greedy matching by cosine, each in [-1, 1]; 0 where one of the texts has no token."""
    if not answer.is_text_token.any() or not reference.is_text_token.any():
        return 0.0, 0.0, 0.0
    cosines = (answer.vectors @ reference.vectors.T).clamp(-1, 1)  # (T, R)
    precision = float(cosines.amax(1)[answer.is_text_token].mean())
    recall = float(cosines.amax(0)[reference.is_text_token].mean())
    both = precision > 0 and recall > 0
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0
