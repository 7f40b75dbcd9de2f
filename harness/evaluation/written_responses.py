"""What a model writes to training rows: responses to their prompts, or prompts of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.tokenization.prompts import encode_prompt, encode_user_turn
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
from harness.types import Example, Progress, WrittenPrompt, WrittenResponse, no_progress

if TYPE_CHECKING:
    import torch
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
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenResponse]:
        """Yield the model's response to each row; see `PromptRows.write_responses`."""
        examples = list(self.examples)
        prompts = self._prompts(model, examples, max_new_tokens)
        seeds = {index: derive_seed(seed, "write", examples[index].id) for index in prompts}
        sampling = Sampling(max_new_tokens, temperature, top_p, batch_size)
        answers = self._generate(model, prompts, seeds, sampling, f"write {self.source}")
        for index, example in enumerate(examples):
            if index in answers:
                yield WrittenResponse(example, answers[index].text, answers[index].finish, answers[index].token_count)
            else:
                yield WrittenResponse(example, "", "no_prompt", 0)

    def write_prompts(
        self,
        model: PreTrainedModel,
        count: int,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenPrompt]:
        """Yield prompts that the model writes; see `PromptRows.write_prompts`."""
        self._longest_prompt(model, max_new_tokens)
        turn = encode_user_turn(self.template, self.tokenizer)
        prompts = dict.fromkeys(range(count), turn.header_ids)
        seeds = {index: derive_seed(seed, "write prompt", index) for index in prompts}
        sampling = Sampling(max_new_tokens, temperature, top_p, batch_size, (turn.end,))
        sums: dict[int, float] = {}
        answers = self._generate(model, prompts, seeds, sampling, f"write prompts of {self.source}", sums)
        for index in range(count):
            answer = answers[index]
            yield WrittenPrompt(
                answer.text.strip(), answer.finish, answer.token_count, sums[index] / answer.token_count
            )

    def _prompts(
        self, model: PreTrainedModel, examples: Sequence[Example], max_new_tokens: int
    ) -> dict[int, list[int]]:
        """Return row -> the token ids of its prompt, for rows that have one with room for a response."""
        longest = min(self.max_length - 1, self._longest_prompt(model, max_new_tokens))
        prompts = {
            index: encode_prompt(example, self.template, self.tokenizer, NO_LENGTH_LIMIT)
            for index, example in enumerate(examples)
            if not is_plain_text(example) and not example.tools
        }
        return {index: prompt for index, prompt in prompts.items() if len(prompt) <= longest}

    def _longest_prompt(self, model: PreTrainedModel, max_new_tokens: int) -> int:
        """Return the tokens of the longest prompt that leaves positions for `max_new_tokens`.

        Raises:
            RunError: There is no such prompt.
        """
        limit = position_limit(config_as_dict(model.config))
        positions = NO_LENGTH_LIMIT if limit is None else limit.positions
        if positions <= max_new_tokens:
            what = f"{max_new_tokens} new tokens leave no position for a prompt: the model has {positions}"
            raise RunError(f"write {self.source}", what, f"use less than {positions}")
        return positions - max_new_tokens

    def _generate(
        self,
        model: PreTrainedModel,
        prompts: Mapping[int, Sequence[int]],
        seeds: Mapping[int, int],
        sampling: Sampling,
        phase: str,
        sums: dict[int, float] | None = None,
    ) -> dict[int, Answer]:
        """Return key -> what the model writes after its prompt.

        Args:
            model: The model.
            prompts: Key -> token ids.
            seeds: Key -> seed of its samples.
            sampling: How tokens are selected.
            phase: The phase that `progress` receives.
            sums: Receives key -> sum of the log-probabilities of its tokens under the model, in nats.
        """
        answers: dict[int, Answer] = {}
        support = probe_batch_support(model, self.tokenizer)
        stops = resolve_stops(self.template, self.tokenizer, sampling.extra_stops)

        def on_answer(key: int, answer: Answer) -> None:
            answers[key] = answer
            self.progress(phase, len(answers), len(prompts), "", "rows")

        def generate(todo: Sequence[int], size: int) -> None:
            sampler = sampling.sampler({key: seeds[key] for key in todo})
            if sums is not None:
                sums.update(dict.fromkeys(todo, 0.0))  # also of a text that begins again after memory ran out
                sampler = _summing(sampler, sums)
            generate_answers(
                model,
                self.tokenizer,
                {key: prompts[key] for key in todo},
                stops=stops,
                decoding=Decoding(sampling.max_new_tokens, sampler, size, support.cache, support.lines, phase),
                on_answer=on_answer,
            )

        keys = list(prompts)
        run_with_batch_size(
            [keys[position] for position in longest_first([len(prompts[key]) for key in keys])],
            sampling.batch_size if support.left_padding else 1,
            generate,
            answers,
            where=phase,
            notify=lambda note: self.progress(phase, len(answers), len(prompts), note, "rows"),
        )
        return answers


@dataclass(frozen=True)
class Sampling:
    """How tokens are selected, see `PromptRows.write_responses`, and the texts that end besides the template's."""

    max_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    extra_stops: tuple[str, ...] = ()

    def sampler(self, seeds: Mapping[int, int]) -> TokenSampler:
        """Return a sampler whose samples of a text depend on its seed alone. seeds: key -> seed."""
        return TopPSampler(self.temperature, self.top_p, seeds) if self.temperature else greedy


def _summing(sampler: TokenSampler, sums: dict[int, float]) -> TokenSampler:
    """Return the sampler, which adds the log-probability of each token under the model to the sum of its key."""

    def sample(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:  # logits: (B, V)
        tokens = sampler(logits, keys)  # (B,)
        values = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]  # (B,)
        for key, value in zip(keys, values.tolist(), strict=True):
            sums[key] += value
        return tokens

    return sample
