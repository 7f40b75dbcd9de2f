"""How many empty, truncated, unparsed or cut items a suite bears before its scores are no measure of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.contracts import Breach, Evaluation, Item, Score, Suite
from harness.errors import RunError


def breaches(suite: Suite, stage: int, items: Sequence[Item], scores: Sequence[Score]) -> tuple[Breach, ...]:
    """Which of the suite's limits (`max_empty`, `max_truncated`, `max_unparsed`, `max_cut`) its items break."""
    answered = [item for item in items if item.answer is not None]
    counts = (
        ("empty", suite.max_empty, sum(item.finish == "empty" for item in answered), len(answered), ""),
        ("truncated", suite.max_truncated, sum(item.finish == "length" for item in answered), len(answered), ""),
        ("cut", suite.max_cut, sum(item.prompt_cut or item.row_cut for item in items), len(items), ""),
        *(
            ("unparsed", suite.max_unparsed, score.counts["unparsed"], score.n, score.metric)
            for score in _one_a_metric(scores)
            if "unparsed" in score.counts
        ),
    )
    return tuple(
        Breach(stage, suite.name, what, count, n, allowed, metric)
        for what, allowed, count, n, metric in counts
        if allowed is not None and n and count > allowed * n
    )


def require(evaluations: Iterable[Evaluation], *, since: int = 0) -> None:
    """Raise RunError (exit code 1) naming every limit that these evaluations break; to be called when all is saved.

    since: the first stage that counts. A pretrained base model (stage 0) that cannot end an answer under a chat
    template is no reason to fail a run that teaches it to.
    """
    found = [breach for one in evaluations if one.stage >= since for breach in one.breaches]
    if found:
        stages = [f"evaluate.{one.suite}.max_{one.what}: after stage {one.stage} {one}" for one in found]
        hint = "look at the answers in the run's folder; check the template, max_new_tokens and stop"
        raise RunError("; ".join(stages), "the scores do not measure the model", hint)


def _one_a_metric(scores: Sequence[Score]) -> Iterator[Score]:
    yield from {score.metric: score for score in scores}.values()
