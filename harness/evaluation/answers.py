"""Answers to prompts: generated locally in batches, or by a server."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.batching import longest_first, run_with_batch_size
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
from harness.evaluation.served_chat import ServedChat, build_chat_prompt
from harness.evaluation.server import AnswerServer, collect_answers, parse_completion
from harness.seeding import derive_seed


class GeneratedAnswers:
    """The answer to every prompt, and the reason why it ended."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        suite = context.suite
        self._stops = resolve_stops(context.template, context.tokenizer, suite.stop, use_template_stops=not suite.plain)
        self._server = None if suite.server is None else AnswerServer.from_settings(suite.server, context.stage)
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
        if suite.samples > 1:
            self.settings = {**self.settings, "samples": suite.samples}
        support = context.batch_support
        if self._server is None and not (support.left_padding and support.cache):
            self.settings = {**self.settings, "padding": support.left_padding, "cache": support.cache}

    @cached_property
    def _prompts(self) -> list[list[int]]:
        # A server that renders prompts itself gets them complete.
        limit = NO_LENGTH_LIMIT if self._server is not None and self._server.chat else self._max_prompt_tokens
        return [self._context.prompt_ids(example, limit) for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        """Return the token ids of the item's prompt, or the messages that a server renders."""
        if self._server is not None and self._server.chat:
            return build_chat_prompt(self._context.examples[index])
        return self._prompts[index]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Generate the answers of the items `todo`; see `ModelMeasurement.run`.

        The key of an answer is index * samples + its number. The answers of an item follow one another.
        """
        samples, finished = self._context.suite.samples, set[int]()
        answers: dict[int, dict[int, Answer]] = defaultdict(dict)

        def on_answer(key: int, answer: Answer) -> None:
            index, number = divmod(key, samples)
            answers[index][number] = answer
            if len(answers[index]) == samples:
                on_item(index, self._item_fields(index, [each for _, each in sorted(answers.pop(index).items())]))
            finished.add(key)

        items = [todo[position] for position in longest_first([len(self._prompts[index]) for index in todo])]
        order = [index * samples + number for index in items for number in range(samples)]
        if self._server is not None:
            self._generate_by_server(self._server, order, on_answer)
            return
        support = self._context.batch_support

        def generate(unfinished: list[int], batch_size: int) -> None:
            sampler = self._build_sampler(unfinished)

            def on_sampled_answer(key: int, answer: Answer) -> None:
                if isinstance(sampler, TopPSampler):
                    sampler.forget(key)
                on_answer(key, answer)

            generate_answers(
                self._context.require_model(),
                self._context.tokenizer,
                {key: self._prompts[key // samples] for key in unfinished},
                stops=self._stops,
                decoding=Decoding(
                    self._context.suite.max_new_tokens,
                    sampler,
                    batch_size,
                    support.cache,
                    support.lines,
                    f"evaluate.{self._context.suite.name}",
                ),
                on_answer=on_sampled_answer,
            )

        run_with_batch_size(
            order,
            self._context.suite.batch_size if support.left_padding else 1,
            generate,
            finished,
            where=self._context.phase,
            notify=self._context.notify,
        )

    def _generate_by_server(
        self, server: AnswerServer, order: Sequence[int], on_answer: Callable[[int, Answer], None]
    ) -> None:
        suite, tokenizer = self._context.suite, self._context.tokenizer
        if server.chat:  # greedy: an item has one answer, so the key of an answer is the item's index
            prompts = dict(enumerate(self._prompts))
            served = ServedChat(self._context, server, self._stops, prompts, self._max_prompt_tokens)
            served.request_answers(order, on_answer)
            return
        stop_tokens = [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(self._stops.token_ids)]
        stops: list[str] = [*self._stops.strings, *stop_tokens]
        requests: dict[int, dict[str, Any]] = {}
        for key in order:
            ids = self._prompts[key // suite.samples]
            requests[key] = {
                "prompt": ids if server.prompts == "tokens" else tokenizer.decode(ids, skip_special_tokens=False),
                "max_tokens": suite.max_new_tokens,
                "temperature": suite.temperature,
                "top_p": suite.top_p,
                "seed": self._answer_seed(key) if suite.temperature else self._context.seed,
                "stop": stops,
            }

        def ask(key: int, request: Mapping[str, Any]) -> Answer:
            return parse_completion(server.request_completion(request), stops)

        collect_answers(requests, ask, on_answer, concurrency=server.concurrency, where=f"evaluate.{suite.name}.server")

    def _item_fields(self, index: int, answers: Sequence[Answer]) -> Mapping[str, Any]:
        answer, *more = answers
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
            **({"more_answers": tuple(each.text for each in more)} if more else {}),
        }

    def _build_sampler(self, keys: Sequence[int]) -> TokenSampler:
        suite = self._context.suite
        if not suite.temperature:
            return greedy
        return TopPSampler(suite.temperature, suite.top_p, {key: self._answer_seed(key) for key in keys})

    def _answer_seed(self, key: int) -> int:
        """Return the seed of an answer; the first of several has the seed of a single one."""
        index, number = divmod(key, self._context.suite.samples)
        purpose = ["sample", self._context.examples[index].id, *([str(number)] if number else [])]
        return derive_seed(self._context.seed, *purpose)

    def _compute_max_prompt_tokens(self) -> int:
        """Return the longest prompt that leaves enough positions for the answer."""
        max_positions, max_new_tokens = self._context.max_positions(), self._context.suite.max_new_tokens
        max_prompt_tokens = min(self._context.max_length, max_positions - max_new_tokens)
        if max_prompt_tokens < 1:
            what = f"{max_new_tokens} leaves no position for a prompt: the model has {max_positions}"
            where = f"evaluate.{self._context.suite.name}.max_new_tokens"
            raise HarnessError(where, what, f"use less than {max_positions}")
        return max_prompt_tokens
