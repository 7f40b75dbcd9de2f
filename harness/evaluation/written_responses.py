"""Responses that a model writes to the prompts of training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.rendering import is_plain_text
from harness.errors import RunError
from harness.evaluation.batching import longest_first, run_with_batch_size
from harness.evaluation.context import NO_LENGTH_LIMIT
from harness.evaluation.generation import (
    Answer,
    Decoding,
    TokenSampler,
    TopPSampler,
    generate_answers,
    greedy,
    resolve_stops,
)
from harness.evaluation.padding_probe import probe_batch_support
from harness.interfaces.prompt_rows import PromptRows
from harness.interfaces.template import Template
from harness.model.position_limit import config_as_dict, position_limit
from harness.seeding import derive_seed
from harness.types import Example, Progress, WrittenResponse, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptRowsOfModel(PromptRows):
    """The prompts of one source, and what renders and tokenizes them.

    Attributes:
        tokenizer: The model's tokenizer.
        template: The template of training.
        max_length: Tokens after which a row is truncated in training.
        progress: Receives the phase `write <source>`, in rows.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int
    progress: Progress = no_progress

    def write_responses(
        self,
        model: PreTrainedModel,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 8,
        seed: int,
    ) -> Iterator[WrittenResponse]:
        """Yield the model's response to each row; see `PromptRows.write_responses`."""
        examples = list(self.examples)
        prompts = self._prompts(model, examples, max_new_tokens)
        answers: dict[int, Answer] = {}
        phase, total = f"write {self.source}", len(prompts)

        def on_answer(index: int, answer: Answer) -> None:
            answers[index] = answer
            self.progress(phase, len(answers), total, "", "rows")

        support = probe_batch_support(model, self.tokenizer)
        keys = list(prompts)
        order = [keys[position] for position in longest_first([len(prompts[key]) for key in keys])]
        run_with_batch_size(
            order,
            batch_size if support.left_padding else 1,
            lambda todo, size: generate_answers(
                model,
                self.tokenizer,
                {index: prompts[index] for index in todo},
                stops=resolve_stops(self.template, self.tokenizer),
                decoding=Decoding(
                    max_new_tokens,
                    self._sampler([examples[index] for index in todo], todo, temperature, top_p, seed),
                    size,
                    support.cache,
                    support.lines,
                    phase,
                ),
                on_answer=on_answer,
            ),
            answers,
            where=phase,
            notify=lambda note: self.progress(phase, len(answers), total, note, "rows"),
        )
        for index, example in enumerate(examples):
            if index in answers:
                yield WrittenResponse(example, answers[index].text, answers[index].finish, answers[index].token_count)
            else:
                yield WrittenResponse(example, "", "no_prompt", 0)

    def _prompts(
        self, model: PreTrainedModel, examples: Sequence[Example], max_new_tokens: int
    ) -> dict[int, list[int]]:
        """Return row -> the token ids of its prompt, for rows that have one with room for a response."""
        limit = position_limit(config_as_dict(model.config))
        positions = NO_LENGTH_LIMIT if limit is None else limit.positions
        if positions <= max_new_tokens:
            what = f"{max_new_tokens} new tokens leave no position for a prompt: the model has {positions}"
            raise RunError(f"write {self.source}", what, f"use less than {positions}")
        prompts = {
            index: encode_prompt(example, self.template, self.tokenizer, NO_LENGTH_LIMIT)
            for index, example in enumerate(examples)
            if not is_plain_text(example) and not example.tools
        }
        longest = min(self.max_length - 1, positions - max_new_tokens)
        return {index: prompt for index, prompt in prompts.items() if len(prompt) <= longest}

    def _sampler(
        self, examples: Sequence[Example], keys: Sequence[int], temperature: float, top_p: float, seed: int
    ) -> TokenSampler:
        """Return a sampler whose samples of a row depend on its seed and its content."""
        if not temperature:
            return greedy
        seeds = {key: derive_seed(seed, "write", example.id) for key, example in zip(keys, examples, strict=True)}
        return TopPSampler(temperature, top_p, seeds)
