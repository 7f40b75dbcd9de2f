"""A metric that runs the loaded model itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from harness import Item, Metric


class PromptNll(Metric):
    """Mean negative log-likelihood of the prompts without a template, in nats per token after the first."""

    requires: ClassVar[Literal["model"]] = "model"
    higher_is_better = False
    score_names = ("prompt_nll",)

    def signature(self) -> str:
        """Return unit, text and version."""
        return "prompt_nll|unit:nat/token|text:plain|version:1"

    def measure(self, model: Any, tokenizer: Any, items: Sequence[Item]) -> Iterator[tuple[Item, list[float]]]:
        """Yield each item with the summed negative log-likelihood of its prompt, and the number of tokens."""
        device = next(model.parameters()).device
        for item in items:
            ids = tokenizer(item.prompt, return_tensors="pt")["input_ids"].to(device)  # (1, T)
            log_probs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)  # (T - 1, V)
            nll = -log_probs.gather(-1, ids[0, 1:, None]).sum()
            yield item, [float(nll), float(len(log_probs))]

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the summed negative log-likelihood, and the number of tokens."""
        nll, tokens = item.computed
        return {"prompt_nll": (nll, tokens)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the mean negative log-likelihood."""
        nll, tokens = total
        return nll / tokens if tokens else float("nan")

    def is_ratio(self, name: str) -> bool:
        """Return True: the interval has a closed form."""
        return True
