"""The probability that one of k sampled answers is right: equal to the reference, or code that passes tests."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import Component, HarnessError, Item
from harness_metrics.base import references_of
from harness_metrics.exact_match import ExactMatch
from harness_metrics.normalization import EXTRACT_OPTION, LANG_OPTION, NORMALIZE_OPTION, AnswerExtractor
from harness_metrics.sandbox import can_isolate, run_python

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|$)", re.DOTALL)

RUN_KEYS: dict[str, Any] = {
    "tests": {
        "type": "string",
        "minLength": 1,
        "description": "A column of the rows with Python code that tests the answer; the source keeps it. An answer is "
        "right if its code and then the tests run to their end without an exception.",
    },
    "timeout": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "Seconds of processor time for one answer.",
    },
    "memory": {"type": "integer", "minimum": 64, "default": 1024, "description": "Memory for one answer, in MiB."},
    "isolated": {
        "type": "boolean",
        "default": True,
        "description": "Run the code without network and with read-only files, which needs Linux. false: with your own "
        "network and files; only within a container that can be thrown away.",
    },
}
"""The JSON Schema of the option `run`."""

COMPONENTS: dict[str, Component] = {
    "pass_at_k": Component(
        summary="Probability that one of k sampled answers equals the reference or passes its tests, 0 to 1.",
        factory="harness_metrics.pass_at_k:PassAtK",
        options={
            "k": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "minItems": 1,
                "uniqueItems": True,
                "default": [1],
                "description": "The values of k, each at most the `samples` of the suite.",
            },
            "normalise": NORMALIZE_OPTION,
            "extract": EXTRACT_OPTION,
            "lang": LANG_OPTION,
            "run": {
                "type": ["object", "null"],
                "properties": RUN_KEYS,
                "required": ["tests"],
                "additionalProperties": False,
                "default": None,
                "description": "Run the code of the answers. null: compare their text.",
            },
        },
    ),
}


class PassAtK(ExactMatch):
    """Mean over the items of the probability that one of k answers is right, estimated from n ≥ k answers.

    An answer is right as in `exact_match`, or with `run` if its code passes the tests of its row. The estimator is
    unbiased (Chen et al., 2021, arXiv:2107.03374).
    """

    citation = "Chen et al. (2021), https://arxiv.org/abs/2107.03374"

    def __init__(
        self,
        k: Sequence[int],
        normalise: Sequence[str],
        extract: str | None,
        lang: str,
        run: Mapping[str, Any] | None,
    ) -> None:
        """Create the metric.

        Args:
            k: The values of k.
            normalise: As in `exact_match`.
            extract: As in `exact_match`.
            lang: As in `exact_match`.
            run: How the code of an answer is run, see `RUN_KEYS`; None: answers are compared with the reference.
        """
        self._run = run
        self.score_names = tuple(f"pass_at_{value}" for value in k)
        super().__init__(normalise, None, lang)
        self._extract, self._has_pattern = AnswerExtractor("pass_at_k", extract), extract is not None
        self._values_of_k, self.min_samples = tuple(k), max(k)

    def signature(self) -> str:
        """Return the estimator, and the signature of `exact_match` or how code is run."""
        if self._run is None:
            return f"pass_at_k|estimator:unbiased|{super().signature()}"
        limits = f"timeout:{self._run['timeout']}|memory:{self._run['memory']}"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        extracted = self._extract.signature_suffix()
        return f"pass_at_k|estimator:unbiased|run:{self._run['tests']}|python:{python}|{limits}{extracted}|version:2"

    @property
    def computes_values(self) -> bool:
        """Whether code is run, whose outcomes are stored."""
        return self._run is not None

    def check_available(self) -> None:
        """Check that this machine can run code in isolation, if it is asked for.

        Raises:
            HarnessError: It cannot.
        """
        if self._run is not None and self._run["isolated"] and not can_isolate():
            what = "this machine cannot run code without network and with read-only files (user namespaces)"
            hint = 'run it on Linux with user namespaces, or in a throw-away container with "isolated": false'
            raise HarnessError("metrics.pass_at_k", what, hint)

    def prepare(self, items: Sequence[Item]) -> Iterable[tuple[Item, list[bool]]]:
        """Yield for each item which of its answers have code that passes the tests.

        Raises:
            HarnessError: An item has no tests, or the machine cannot run code in isolation.
        """
        if self._run is None:
            return
        self.check_available()
        column = self._run["tests"]
        for item in items:
            tests = item.data.get(column)
            if not isinstance(tests, str):
                hint = f'give its source "keep": ["{column}"]'
                raise HarnessError(f"item {item.id}", f"has no text in {column!r}", hint)
            yield item, [self._passes(answer, tests, self._run) for answer in item.answers]

    def _passes(self, answer: str, tests: str, run: Mapping[str, Any]) -> bool:
        code = self._extract(answer) if self._has_pattern else code_of(answer)
        return (
            code is not None
            and bool(code)
            and run_python(code, tests, run["timeout"], run["memory"], isolated=run["isolated"])
        )

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return for each k the probability that one of k answers is right, and 1."""
        where = f"item {item.id}"
        if self._run is not None:
            self._require_samples(where, item.answers)
            return self._statistics(len(item.answers), sum(item.computed))
        return self._statistics_of_texts(where, item.answers, references_of(item))

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return the statistics of a single answer."""
        return self._statistics_of_texts("pass_at_k", [answer], references)

    def _statistics_of_texts(
        self, where: str, answers: Sequence[str], references: Sequence[str]
    ) -> dict[str, tuple[float, ...]]:
        self._require_samples(where, answers)
        correct = sum(any(self._is_match(answer, reference) for reference in references) for answer in answers)
        return self._statistics(len(answers), correct)

    def _require_samples(self, where: str, answers: Sequence[str]) -> None:
        if len(answers) < self.min_samples:
            what = f"has {len(answers)} answers, but pass_at_{self.min_samples} needs {self.min_samples}"
            raise HarnessError(where, what, f'set "samples" of the suite to {self.min_samples} or more')

    def _statistics(self, n: int, correct: int) -> dict[str, tuple[float, ...]]:
        return {f"pass_at_{k}": (pass_probability(n, correct, k), 1.0) for k in self._values_of_k}


def code_of(answer: str) -> str:
    """Return the code of an answer: its first Markdown fence, else the whole answer."""
    fence = _FENCE.search(answer)
    return fence.group(1) if fence else answer.strip()


def pass_probability(n: int, correct: int, k: int) -> float:
    """Return the fraction of the subsets of k answers that have a right one: 1 - C(n - correct, k) / C(n, k).

    Args:
        n: Number of answers, at least k.
        correct: Number of right answers among them.
        k: Size of the subsets.
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)
