"""Answers to prompts: generated here in batches, or by a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.batching import longest_first, run_in_batches
from harness.evaluation.context import NO_LENGTH_LIMIT, EvalContext, ItemCallback
from harness.evaluation.generation import Answer, TokenSampler, TopPSampler, generate_answers, greedy, resolve_stops
from harness.evaluation.server import CompletionServer, request_completions
from harness.seeding import derive_seed


class GeneratedAnswers:
    """The answer to every prompt, and why each ended."""

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

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self._context.prompt_ids(example, self._max_prompt_tokens) for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        return self._prompts[index]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        finished: set[int] = set()

        def done(index: int, answer: Answer) -> None:
            on_item(index, self._item_fields(index, answer))
            finished.add(index)

        order = [todo[place] for place in longest_first([len(self._prompts[index]) for index in todo])]
        if self._server is not None:
            self._generate_by_server(self._server, order, done)
            return

        def work(batch: list[int]) -> None:
            generate_answers(
                self._context.require_model(),
                self._context.tokenizer,
                {index: self._prompts[index] for index in batch},
                stops=self._stops,
                max_new_tokens=self._context.suite.max_new_tokens,
                sampler=self._build_sampler(batch),
                on_answer=done,
            )

        suite = self._context.suite
        run_in_batches(order, suite.batch_size, work, finished, where=self._context.phase, notify=self._context.notify)

    def _generate_by_server(
        self, server: CompletionServer, order: Sequence[int], on_answer: Callable[[int, Answer], None]
    ) -> None:
        suite, words = self._context.suite, self._context.tokenizer
        special = [words.convert_ids_to_tokens(token) for token in sorted(self._stops.token_ids)]
        requests: dict[int, dict[str, Any]] = {}
        for index in order:
            ids = self._prompts[index]
            requests[index] = {
                "prompt": ids if server.prompts == "tokens" else words.decode(ids, skip_special_tokens=False),
                "max_tokens": suite.max_new_tokens,
                "temperature": suite.temperature,
                "top_p": suite.top_p,
                "seed": self._item_seed(index) if suite.temperature else self._context.seed,
                "stop": [*self._stops.strings, *special],
            }
        request_completions(server, requests, on_answer, where=f"evaluate.{suite.name}.server")

    def _item_fields(self, index: int, answer: Answer) -> Mapping[str, Any]:
        prompt, example = self._prompts[index], self._context.examples[index]
        cut = (
            len(prompt) == self._max_prompt_tokens
            and len(self._context.prompt_ids(example, NO_LENGTH_LIMIT)) > self._max_prompt_tokens
        )
        return {
            "answer": answer.text,
            "finish": answer.finish,
            "answer_tokens": answer.token_count,
            "prompt_tokens": len(prompt),
            "prompt_cut": cut,
        }

    def _build_sampler(self, batch: Sequence[int]) -> TokenSampler:
        suite = self._context.suite
        if not suite.temperature:
            return greedy
        return TopPSampler(suite.temperature, suite.top_p, {index: self._item_seed(index) for index in batch})

    def _item_seed(self, index: int) -> int:
        return derive_seed(self._context.seed, "sample", self._context.examples[index].id)

    def _compute_max_prompt_tokens(self) -> int:
        """The tokens that a prompt may have, so that the answer still has positions that the model knows."""
        known, new = self._context.max_positions(), self._context.suite.max_new_tokens
        room = min(self._context.max_length, known - new)
        if room < 1:
            what = f"{new} leaves a prompt no room in the model's {known} positions"
            where = f"evaluate.{self._context.suite.name}.max_new_tokens"
            raise HarnessError(where, what, f"choose less than {known}")
        return room
