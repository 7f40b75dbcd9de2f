"""Answers to prompts: generated locally in batches, or by a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from harness.errors import HarnessError
from harness.evaluation.batching import longest_first, run_in_batches
from harness.evaluation.context import NO_LENGTH_LIMIT, EvalContext, ItemCallback
from harness.evaluation.generation import (
    Answer,
    Decoding,
    TokenSampler,
    TopPSampler,
    generate_answers,
    greedy,
    resolve_stops,
)
from harness.evaluation.server import CompletionServer, request_completions
from harness.seeding import derive_seed


class GeneratedAnswers:
    """The answer to every prompt, and the reason why it ended."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        suite = context.suite
        self._stops = resolve_stops(context.template, context.tokenizer, suite.stop, use_template_stops=not suite.plain)
        self._server = None if suite.server is None else CompletionServer.from_settings(suite.server, context.stage)
        self._max_prompt_tokens = self._compute_max_prompt_tokens()
        self.settings: Mapping[str, Any] = {
            "plain": suite.plain,
            "max_new_tokens": suite.max_new_tokens,
            "max_length": self._max_prompt_tokens,
            "eos": self._stops.eos_id,
            "stop_tokens": sorted(self._stops.token_ids),
            "stop_texts": list(self._stops.strings),
            "temperature": suite.temperature,
            "top_p": suite.top_p if suite.temperature else None,
            "seed": context.seed if suite.temperature else None,
            "server": None if self._server is None else self._server.fingerprint(),
        }
        support = context.batch_support
        if self._server is None and not (support.left_padding and support.cache):
            self.settings = {**self.settings, "padding": support.left_padding, "cache": support.cache}

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self._context.prompt_ids(example, self._max_prompt_tokens) for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        """Return the token ids of the item's prompt."""
        return self._prompts[index]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Generate the answers of the items `todo`; see `ModelMeasurement.run`."""
        suite = self._context.suite
        finished: set[int] = set()

        def on_answer(index: int, answer: Answer) -> None:
            on_item(index, self._item_fields(index, answer))
            finished.add(index)

        def generate(batch: list[int]) -> None:
            generate_answers(
                self._context.require_model(),
                self._context.tokenizer,
                {index: self._prompts[index] for index in batch},
                stops=self._stops,
                decoding=Decoding(suite.max_new_tokens, self._build_sampler(batch), self._context.batch_support.cache),
                on_answer=on_answer,
            )

        order = [todo[position] for position in longest_first([len(self._prompts[index]) for index in todo])]
        if self._server is not None:
            self._generate_by_server(self._server, order, on_answer)
        else:
            phase, notify = self._context.phase, self._context.notify
            batch_size = suite.batch_size if self._context.batch_support.left_padding else 1
            run_in_batches(order, batch_size, generate, finished, where=phase, notify=notify)

    def _generate_by_server(
        self, server: CompletionServer, order: Sequence[int], on_answer: Callable[[int, Answer], None]
    ) -> None:
        suite, tokenizer = self._context.suite, self._context.tokenizer
        stop_tokens = [tokenizer.convert_ids_to_tokens(token) for token in sorted(self._stops.token_ids)]
        requests: dict[int, dict[str, Any]] = {}
        for index in order:
            ids = self._prompts[index]
            requests[index] = {
                "prompt": ids if server.prompts == "tokens" else tokenizer.decode(ids, skip_special_tokens=False),
                "max_tokens": suite.max_new_tokens,
                "temperature": suite.temperature,
                "top_p": suite.top_p,
                "seed": self._item_seed(index) if suite.temperature else self._context.seed,
                "stop": [*self._stops.strings, *stop_tokens],
            }
        request_completions(server, requests, on_answer, where=f"evaluate.{suite.name}.server")

    def _item_fields(self, index: int, answer: Answer) -> Mapping[str, Any]:
        prompt, example = self._prompts[index], self._context.examples[index]
        prompt_cut = (
            len(prompt) == self._max_prompt_tokens
            and len(self._context.prompt_ids(example, NO_LENGTH_LIMIT)) > self._max_prompt_tokens
        )
        return {
            "answer": answer.text,
            "finish": answer.finish,
            "answer_tokens": answer.token_count,
            "prompt_tokens": len(prompt),
            "prompt_cut": prompt_cut,
        }

    def _build_sampler(self, batch: Sequence[int]) -> TokenSampler:
        suite = self._context.suite
        sampler: TokenSampler = greedy
        if suite.temperature:
            sampler = TopPSampler(suite.temperature, suite.top_p, {index: self._item_seed(index) for index in batch})

        def sample(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
            if logits.isnan().any():
                raise self._context.undefined_output_error()
            return sampler(logits, keys)

        return sample

    def _item_seed(self, index: int) -> int:
        return derive_seed(self._context.seed, "sample", self._context.examples[index].id)

    def _compute_max_prompt_tokens(self) -> int:
        """Return the longest prompt that leaves enough positions for the answer."""
        max_positions, max_new_tokens = self._context.max_positions(), self._context.suite.max_new_tokens
        max_prompt_tokens = min(self._context.max_length, max_positions - max_new_tokens)
        if max_prompt_tokens < 1:
            what = f"{max_new_tokens} leaves no position for a prompt: the model has {max_positions}"
            where = f"evaluate.{self._context.suite.name}.max_new_tokens"
            raise HarnessError(where, what, f"use less than {max_positions}")
        return max_prompt_tokens
