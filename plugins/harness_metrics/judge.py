"""A model as a judge: it grades answers on the dimensions of a rubric, and compares them with the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from harness import Component, ComponentExample, HarnessError, Item, Metric
from harness.rating.rubric import Rubric, load_rubric

COMPONENTS: dict[str, Component] = {
    "judge": Component(
        summary="Grades of a judge model on the dimensions of the rating rubric, 1 to 5, and wins over the reference.",
        factory="harness_metrics.judge:Judge",
        options={
            "model": {
                "type": ["string", "null"],
                "format": "path",
                "minLength": 1,
                "default": None,
                "description": "Folder of a local chat model that judges. It must not be the model that is evaluated.",
            },
            "server": {
                "type": ["object", "null"],
                "default": None,
                "additionalProperties": False,
                "required": ["url", "model"],
                "properties": {
                    "url": {"type": "string", "pattern": "^https?://", "description": "Base URL of the API."},
                    "model": {"type": "string", "minLength": 1, "description": "Name of the judge on the server."},
                    "key_env": {
                        "type": ["string", "null"],
                        "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                        "default": None,
                        "description": "The environment variable that contains the API key.",
                    },
                    "concurrency": {"type": "integer", "minimum": 1, "default": 8},
                    "timeout": {"type": "number", "exclusiveMinimum": 0, "default": 120},
                    "retries": {"type": "integer", "minimum": 0, "default": 4},
                    "body": {"type": "object", "default": {}},
                },
                "description": "A judge behind OpenAI's chat API (`/chat/completions`): url, model, key_env (the "
                "environment variable with the API key), concurrency, timeout, retries, body (fields of each request).",
            },
            "rubric": {"enum": ["en", "zh"], "default": "en", "description": "The rubric, in English or Chinese."},
            "rubric_file": {
                "type": ["string", "null"],
                "format": "path",
                "minLength": 1,
                "default": None,
                "description": "A rubric of your own, see docs/rating.md. It replaces `rubric`.",
            },
            "pairs": {
                "type": "boolean",
                "default": True,
                "description": "Also compare each answer with its reference in both orders. This measures whether the "
                "judge is consistent: without it, only its failures are known.",
            },
            "max_requests": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "The most requests to a server that one evaluation of a suite may send, retries "
                "included. When it is reached, the evaluation fails and keeps its grades. null: any number.",
            },
            "min_consistency": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.7,
                "description": "The judge is unusable if fewer of its comparisons are the same in both orders.",
            },
            "max_failures": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.1,
                "description": "The judge is unusable if a larger share of its replies has no valid grades.",
            },
            "device": {
                "enum": ["auto", "cpu"],
                "default": "auto",
                "description": "For a local judge. auto: the CUDA device if there is one.",
            },
        },
        example=ComponentExample(lambda folder: {"server": _start_example_server()}),
    ),
}

_SPEC_KEY = "metrics.judge"
WIN, TIE, LOSS = 1.0, 0.5, 0.0


class Grader(Protocol):
    """Asks a judge."""

    def grade(self, items: Sequence[Item], *, pairs: bool) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Yield each item with its value as soon as it is there, in any order.

        A value has `grades` (dimension -> grade, None if there is none), `failures` and `replies` (numbers of replies
        without a valid grade, and of all), `tokens`, and with pairs `first` and `second`: the slot that the judge
        chose when the answer was in the first and in the second slot (`A`, `B`, `tie`, or None without a valid reply).
        """

    def close(self) -> None:
        """Free what it holds, such as the memory of a model."""


class Judge(Metric):
    """Mean grades by a judge, 1 to 5, and the share of its wins over the reference.

    A local judge grades by the probabilities of the tokens 1 to 5, in one pass each and without parsing: the grade is
    their mean (G-Eval; Liu et al., 2023, arXiv:2303.16634). A server grades all dimensions in one reply.

    With `pairs`, the answer and the reference are compared in both orders. An answer wins only if it is chosen in both
    (Zheng et al., 2023, arXiv:2306.05685). It loses in the same way; everything else is half a win.

    Grades that are missing, because a dimension does not apply or a reply has none, are left out of the means and
    counted. Statistics of each score: grade, 1.
    """

    requires = "answer"
    score_range = 4.0

    def __init__(  # noqa: PLR0913 (one parameter per option)
        self,
        model: str | None,
        server: Mapping[str, Any] | None,
        rubric: str,
        rubric_file: str | None,
        pairs: bool,
        max_requests: int | None,
        min_consistency: float,
        max_failures: float,
        device: str,
    ) -> None:
        """Create the metric; a local judge is loaded only to grade.

        Args:
            model: Folder of a local chat model.
            server: A server; exactly one of the two is given.
            rubric: Language of the rubric.
            rubric_file: Path of another rubric.
            pairs: Whether answers are also compared with their references.
            max_requests: The most requests to a server.
            min_consistency: Share of consistent comparisons below which the judge is unusable.
            max_failures: Share of invalid replies above which the judge is unusable.
            device: `auto` or `cpu`.
        """
        if (model is None) == (server is None):
            hint = 'give one of them: "model", the folder of a local judge, or "server"'
            raise HarnessError(_SPEC_KEY, "needs exactly one judge", hint)
        self._model, self._server, self._device = model, server, device
        self._rubric_name, self._pairs, self._max_requests = rubric_file or rubric, pairs, max_requests
        self._min_consistency, self._max_failures = min_consistency, max_failures
        dimensions = tuple(f"judge_{dimension.key}" for dimension in self._rubric.dimensions)
        self.score_names = (*dimensions, *(("judge_win",) if pairs else ()))

    @cached_property
    def _rubric(self) -> Rubric:
        return load_rubric(self._rubric_name)

    def _open_grader(self) -> Grader:
        if self._server is not None:
            from harness_metrics.judge_server import ServerGrader

            return ServerGrader(self._server, self._rubric, self._max_requests, _SPEC_KEY)
        from harness_metrics.judge_model import ModelGrader

        return ModelGrader(Path(str(self._model)), self._rubric, on_cpu=self._device == "cpu", where=_SPEC_KEY)

    def _identity(self) -> str:
        """Return what the grades depend on beside the rubric. Nothing is loaded, and no server is asked."""
        if self._server is not None:
            from harness_metrics.judge_server import server_identity

            return server_identity(self._server)
        from harness_metrics.model_files import CHAT_FILES, TOKENIZER_FILES, model_fingerprint

        fingerprint = model_fingerprint(Path(str(self._model)), (*TOKENIZER_FILES, *CHAT_FILES))
        return f"model:{fingerprint}|transformers:{version('transformers')}"

    def check_available(self) -> None:
        """Check that the folder of a local judge, or the API key of a server, is there.

        Raises:
            HarnessError: It is not.
        """
        if self._model is not None and not (Path(self._model) / "config.json").is_file():
            what = f"{self._model} is not a folder of a model: it has no config.json"
            raise HarnessError(f"{_SPEC_KEY}.model", what, "name the folder of a chat model as transformers saves it")
        if self._server is not None:
            from harness_metrics.judge_server import read_key

            read_key(self._server, _SPEC_KEY)

    def signature(self) -> str:
        """Return the judge, the digest of the rubric, and how it is asked."""
        pairs = "both-orders" if self._pairs else "no"
        return f"judge|{self._identity()}|rubric:{self._rubric.digest}|pairs:{pairs}|version:2"

    def prepare(self, items: Sequence[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Yield each item with what the judge says about it. A local judge is loaded here, and freed afterwards."""
        grader = self._open_grader()
        try:
            yield from grader.grade(items, pairs=self._pairs)
        finally:
            grader.close()

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return grade and 1 of each dimension; 0 and 0 without a grade."""
        value = _judged(item)
        vectors: dict[str, tuple[float, ...]] = {}
        for dimension in self._rubric.dimensions:
            grade = value["grades"].get(dimension.key)
            vectors[f"judge_{dimension.key}"] = (0.0, 0.0) if grade is None else (float(grade), 1.0)
        if self._pairs:
            outcome = pair_outcome(value)
            vectors["judge_win"] = (0.0, 0.0) if outcome is None else (outcome, 1.0)
        return vectors

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the mean; NaN without a grade."""
        return total[0] / total[1] if total[1] else math.nan

    def is_ratio(self, name: str) -> bool:
        """Return True: the score is a mean of the graded items."""
        return True

    def default_margin(self, name: str, base: float) -> float:
        """Return 0.1 levels; 0.02 for the share of wins."""
        return 0.02 if name == "judge_win" else 0.1

    def is_parsed(self, item: Item) -> bool:
        """Return whether every reply of the judge is valid."""
        return item.computed is None or not item.computed["failures"]

    def diagnostics(self, items: Sequence[Item]) -> Mapping[str, float]:
        """Return the share of invalid replies, the tokens, and with pairs consistency and share of the first slot."""
        values = [_judged(item) for item in items]
        replies = sum(value["replies"] for value in values)
        numbers = {
            "failure_rate": sum(value["failures"] for value in values) / replies if replies else math.nan,
            "replies": float(replies),
            "tokens": float(sum(value["tokens"] for value in values)),
        }
        if not self._pairs:
            return numbers
        compared = [value for value in values if value["first"] is not None and value["second"] is not None]
        chosen = [slot for value in compared for slot in (value["first"], value["second"]) if slot != "tie"]
        return numbers | {
            "consistency": sum(map(is_consistent, compared)) / len(compared) if compared else math.nan,
            "first_slot_rate": chosen.count("A") / len(chosen) if chosen else math.nan,
        }

    def unusable_reason(self, items: Sequence[Item]) -> str:
        """Return why the judge is not used: too many invalid replies, or comparisons that depend on the order."""
        numbers = self.diagnostics(items)
        if numbers["failure_rate"] > self._max_failures:
            return f"{numbers['failure_rate']:.0%} of the judge's replies have no valid grade (max_failures)"
        consistency = numbers.get("consistency")
        if consistency is not None and not consistency >= self._min_consistency:
            share = f"{consistency:.0%}" if math.isfinite(consistency) else "none"
            return (
                f"{share} of the judge's comparisons are the same in both orders (min_consistency); it chose the "
                f"first slot in {numbers['first_slot_rate']:.0%}"
            )
        return ""


def is_consistent(value: Mapping[str, Any]) -> bool:
    """Return whether a judge has the same preference in both orders."""
    return bool({"A": "B", "B": "A"}.get(value["first"], "tie") == value["second"])


def pair_outcome(value: Mapping[str, Any]) -> float | None:
    """Return 1 if the answer is chosen in both orders, 0 if the reference is, else 0.5; None without valid replies."""
    slots = (value["first"], value["second"])
    if None in slots:
        return None
    return WIN if slots == ("A", "B") else LOSS if slots == ("B", "A") else TIE


def _judged(item: Item) -> Mapping[str, Any]:
    if not isinstance(item.computed, Mapping):
        raise HarnessError(f"item {item.id}", "has no grades", "evaluate its suite again: harness evaluate RUN")
    return item.computed


def _start_example_server() -> dict[str, Any]:
    """Start a judge that prefers longer answers, and return the option `server`."""
    from harness.testing.judge_server import start_judge_server

    return {"url": start_judge_server(), "model": "example", "concurrency": 1}
