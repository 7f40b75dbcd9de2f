"""A local judge: grades by the probabilities of the tokens 1 to 5 after the question, in one pass and without parsing.

Nothing is downloaded, and no code of the folder is executed. Texts under judgement are tokenized as plain text, so a
special token in an answer cannot end the judge's turn or begin another one.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import HarnessError, Item
from harness.model.device import select_device
from harness.rating.rubric import LEVELS, Rubric
from harness.utils.silence import silence_libraries
from harness_metrics.judge_prompts import SYSTEM, dimension_prompt, pair_prompt

_PLACEHOLDER = "\ue000judged texts\ue001"
MIN_MASS = 0.01
"""Smallest probability of all grades together; below it the judge did not mean to reply with a grade."""


class ModelGrader:
    """Grades by a local chat model."""

    def __init__(self, folder: Path, rubric: Rubric, *, on_cpu: bool, where: str) -> None:
        """Load the judge.

        Args:
            folder: The folder of the judge.
            rubric: The rubric.
            on_cpu: Use the CPU even if there is a CUDA device.
            where: The metric's key in the spec, for errors.

        Raises:
            HarnessError: The folder does not load, has no chat template, or its digits are not single tokens.
        """
        self._folder, self._rubric = folder, rubric
        self._device = torch.device("cpu") if on_cpu else select_device()
        with torch.random.fork_rng(devices=[]), silence_libraries():
            try:
                self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                model: Any = loaded
            except Exception as error:  # transformers raises errors of any type for a bad folder
                hint = "name the folder of a chat model as transformers saves it"
                raise HarnessError(f"{where}.model", f"{folder} does not load: {error}", hint) from error
        self._model: Any = model.to(self._device).eval()
        if not self._tokenizer.chat_template:
            what = f"{folder} has no chat template"
            raise HarnessError(f"{where}.model", what, "name a chat model, or use a server")
        self._grade_tokens = [self._tokens_of(str(level), where) for level in LEVELS]
        self._slot_tokens = [self._tokens_of(slot, where) for slot in ("A", "B")]

    def close(self) -> None:
        """Free the memory of the model, on the device too."""
        self._model = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def grade(self, items: Sequence[Item], *, pairs: bool) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Yield each item with its grades."""
        for item in items:
            value: dict[str, Any] = {"grades": {}, "failures": 0, "replies": 0, "tokens": 0}
            for dimension in self._rubric.dimensions:
                probabilities = self._probabilities(dimension_prompt(item, dimension, self._rubric), value)
                grade = expected_grade([sum(probabilities[token] for token in ids) for ids in self._grade_tokens])
                value["grades"][dimension.key] = grade
                value["failures"] += grade is None
            for name, answer_first in (("first", True), ("second", False)) if pairs else ():
                parts = pair_prompt(item, self._rubric, answer_first=answer_first, as_json=False)[:3]
                probabilities = self._probabilities(parts, value)
                a, b = (sum(probabilities[token] for token in ids) for ids in self._slot_tokens)
                value[name] = ("A" if a > b else "B" if b > a else "tie") if a + b >= MIN_MASS else None
                value["failures"] += value[name] is None
            yield item, value

    def encode(self, before: str, texts: str, after: str) -> list[int]:
        """Return the tokens of a question, with the texts under judgement as plain text.

        Args:
            before: What comes before the texts.
            texts: The texts.
            after: What follows them.
        """
        messages = [{"role": "user", "content": f"{SYSTEM}\n\n{before}{_PLACEHOLDER}{after}"}]
        rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        head, _, tail = rendered.partition(_PLACEHOLDER)
        encode = self._tokenizer.encode
        plain = encode(texts, add_special_tokens=False, split_special_tokens=True)
        return [*encode(head, add_special_tokens=False), *plain, *encode(tail, add_special_tokens=False)]

    def _probabilities(self, parts: tuple[str, str, str], value: dict[str, Any]) -> list[float]:
        """Return the probability of each token after the question, and count the pass in the item's value."""
        token_ids = self.encode(*parts)
        value["replies"] += 1
        value["tokens"] += len(token_ids)
        logits = self._model(input_ids=torch.tensor([token_ids], device=self._device)).logits[0, -1]  # (V,)
        probabilities: list[float] = logits.double().softmax(-1).cpu().tolist()
        return probabilities

    def _tokens_of(self, text: str, where: str) -> list[int]:
        """Return the tokens that stand for a reply, with and without a space before it."""
        encoded = (self._tokenizer.encode(form, add_special_tokens=False) for form in (text, f" {text}"))
        ids = sorted({tokens[0] for tokens in encoded if len(tokens) == 1})
        if not ids:
            what = f"{self._folder} has no single token for {text!r}"
            raise HarnessError(f"{where}.model", what, "use another judge, or a server")
        return ids


def expected_grade(probabilities: Sequence[float]) -> float | None:
    """Return the mean of the levels by their probabilities; None if they have almost no probability together."""
    mass = sum(probabilities)
    if mass < MIN_MASS:
        return None
    return sum(level * probability for level, probability in zip(LEVELS, probabilities, strict=True)) / mass
