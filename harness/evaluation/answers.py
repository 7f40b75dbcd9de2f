"""Answers to prompts: generated here in batches, or by a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.batching import in_batches, longest_first
from harness.evaluation.context import UNCUT, Finish, Subject
from harness.evaluation.generation import Answer, Choose, Drawn, find_stops, generate, likeliest
from harness.evaluation.server import Server, ask_all
from harness.seeding import derive


class Answers:
    """The answer to every prompt, and why each ended."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        suite = subject.suite
        self._stops = find_stops(subject.template, subject.tokenizer, suite.stop, template_stops=not suite.plain)
        self._server = None if suite.server is None else Server.of(suite.server, subject.stage)
        self._room = self._prompt_room()
        self.settings: Mapping[str, Any] = {
            "plain": suite.plain,
            "max_new_tokens": suite.max_new_tokens,
            "max_length": self._room,
            "eos": self._stops.eos,
            "stop_tokens": sorted(self._stops.tokens),
            "stop_texts": list(self._stops.texts),
            "temperature": suite.temperature,
            "top_p": suite.top_p if suite.temperature else None,
            "seed": subject.seed if suite.temperature else None,
            "server": None if self._server is None else self._server.identity(),
        }

    @cached_property
    def _prompts(self) -> list[list[int]]:
        return [self._subject.prompt(example, self._room) for example in self._subject.examples]

    def asked(self, index: int) -> Any:
        return self._prompts[index]

    def run(self, todo: Sequence[int], finish: Finish) -> None:
        finished: set[int] = set()

        def done(index: int, answer: Answer) -> None:
            finish(index, self._facts(index, answer))
            finished.add(index)

        order = [todo[place] for place in longest_first([len(self._prompts[index]) for index in todo])]
        if self._server is not None:
            self._by_server(self._server, order, done)
            return

        def work(batch: list[int]) -> None:
            generate(
                self._subject.here(),
                self._subject.tokenizer,
                {index: self._prompts[index] for index in batch},
                stops=self._stops,
                max_new_tokens=self._subject.suite.max_new_tokens,
                choose=self._choose(batch),
                finished=done,
            )

        suite = self._subject.suite
        in_batches(order, suite.batch_size, work, finished, where=self._subject.phase, note=self._subject.note)

    def _by_server(self, server: Server, order: Sequence[int], done: Callable[[int, Answer], None]) -> None:
        suite, words = self._subject.suite, self._subject.tokenizer
        special = [words.convert_ids_to_tokens(token) for token in sorted(self._stops.tokens)]
        requests: dict[int, dict[str, Any]] = {}
        for index in order:
            ids = self._prompts[index]
            requests[index] = {
                "prompt": ids if server.prompts == "tokens" else words.decode(ids, skip_special_tokens=False),
                "max_tokens": suite.max_new_tokens,
                "temperature": suite.temperature,
                "top_p": suite.top_p,
                "seed": self._seed(index) if suite.temperature else self._subject.seed,
                "stop": [*self._stops.texts, *special],
            }
        ask_all(server, requests, done, where=f"evaluate.{suite.name}.server")

    def _facts(self, index: int, answer: Answer) -> Mapping[str, Any]:
        prompt, example = self._prompts[index], self._subject.examples[index]
        cut = len(prompt) == self._room and len(self._subject.prompt(example, UNCUT)) > self._room
        return {
            "answer": answer.text,
            "finish": answer.finish,
            "answer_tokens": answer.tokens,
            "prompt_tokens": len(prompt),
            "prompt_cut": cut,
        }

    def _choose(self, batch: Sequence[int]) -> Choose:
        suite = self._subject.suite
        if not suite.temperature:
            return likeliest
        return Drawn(suite.temperature, suite.top_p, {index: self._seed(index) for index in batch})

    def _seed(self, index: int) -> int:
        return derive(self._subject.seed, "sample", self._subject.examples[index].id)

    def _prompt_room(self) -> int:
        """The tokens that a prompt may have, so that the answer still has positions that the model knows."""
        known, new = self._subject.positions(), self._subject.suite.max_new_tokens
        room = min(self._subject.max_length, known - new)
        if room < 1:
            what = f"{new} leaves a prompt no room in the model's {known} positions"
            where = f"evaluate.{self._subject.suite.name}.max_new_tokens"
            raise HarnessError(where, what, f"choose less than {known}")
        return room
