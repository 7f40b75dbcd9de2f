"""What a rater's page shows and what it may do: the current item, decisions, undo, comments, and the reveal at the end.

Nothing in a page's data says which model gave which answer, before the rater has finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from harness.rating.rubric import LEVELS
from harness.rating.sampling import Showing
from harness.rating.store import (
    BOTH_BAD,
    MAX_COMMENT,
    NOT_APPLICABLE,
    ItemShown,
    RaterState,
    RatingStore,
)
from harness.rating.summary import RatingSummary, summarize_ratings
from harness.rating.task import RatingTask
from harness.utils.formatting import printable
from harness.utils.json_files import json_safe

Body = Mapping[str, Any]


class InvalidDecision(Exception):
    """A page sent something that is not a decision about the current item."""


class RatingSession:
    """The raters of one task."""

    def __init__(self, task: RatingTask, on_finish: Callable[[RatingSummary], None]) -> None:
        """Use a task.

        Args:
            task: The task.
            on_finish: Receives the summary when a rater has finished.
        """
        self.task, self.store, self._on_finish = task, RatingStore(task), on_finish
        self._keys = tuple(dimension.key for dimension in task.dimensions)
        self._lock, self._publishing = Lock(), Lock()

    def describe_task(self) -> dict[str, Any]:
        """Return what the page shows of the task: the rubric, and whether two answers are compared."""
        rubric = self.task.rubric
        return {
            "title": rubric.document["title"],
            "instructions": rubric.instructions,
            "language": rubric.language,
            "comparison": self.task.is_comparison,
            "both_bad": self.task.rubric.comparison.not_applicable if self.task.is_comparison else None,
            "dimensions": [
                {
                    "key": dimension.key,
                    "name": dimension.name,
                    "question": dimension.question,
                    "levels": [dimension.levels[level] for level in LEVELS],
                    "not_applicable": None if self.task.is_comparison else dimension.not_applicable,
                }
                for dimension in self.task.dimensions
            ],
        }

    def describe_state(self, rater: str) -> dict[str, Any]:
        """Return what the page shows now: the current item, or the results."""
        state, showings = self.store.load(rater), self.task.showings(rater)
        position = self._position(state, showings)
        decided = sum(state.is_decided(_shown(showing), self._keys) for showing in showings)
        return {
            "done": decided,
            "total": len(showings),
            "can_undo": bool(state.history) and not state.finished,
            "finished": state.finished,
            "item": None if position is None or state.finished else self._describe_item(state, showings, position),
            "results": json_safe(summarize_ratings(self.task, self.store).to_json()) if state.finished else None,
        }

    def rate(self, rater: str, body: Body) -> None:
        """Store the value of a dimension of the current item."""
        dimension, value = body.get("dimension"), body.get("value")
        allowed = self._allowed_values().get(dimension) if isinstance(dimension, str) else None
        if allowed is None or isinstance(value, bool) or value not in allowed:
            raise InvalidDecision("this value does not exist")
        with self._lock:
            showing = self._current(rater, body)
            fields = {"dimension": dimension, "value": value, "left": showing.left, "ms": _milliseconds(body)}
            self.store.append(rater, "rate", item=showing.item.key, repeat=showing.repeat, **fields)

    def skip(self, rater: str, body: Body) -> None:
        """Skip the current item."""
        with self._lock:
            showing = self._current(rater, body)
            self.store.append(rater, "skip", item=showing.item.key, repeat=showing.repeat, ms=_milliseconds(body))

    def comment(self, rater: str, body: Body) -> None:
        """Store a comment on the current item."""
        text = body.get("comment")
        if not isinstance(text, str) or len(text) > MAX_COMMENT:
            raise InvalidDecision(f"a comment is a text of at most {MAX_COMMENT} characters")
        with self._lock:
            showing = self._current(rater, body)
            self.store.append(rater, "comment", item=showing.item.key, repeat=showing.repeat, comment=text)

    def undo(self, rater: str, body: Body) -> None:
        """Take the last decision back."""
        with self._lock:
            state = self.store.load(rater)
            if state.finished or not state.history:
                raise InvalidDecision("there is nothing to undo")
            self.store.append(rater, "undo")

    def finish(self, rater: str, body: Body) -> None:
        """End the rating of this rater, who may now see the results."""
        with self._lock:
            state = self.store.load(rater)
            if state.finished or not (state.history or state.values):
                raise InvalidDecision("there is nothing to finish")
            self.store.append(rater, "finish")

    def publish(self) -> None:
        """Hand the summary of all raters on, one after the other, so that the last one has everything."""
        with self._publishing:
            self._on_finish(summarize_ratings(self.task, self.store))

    def _allowed_values(self) -> dict[str, tuple[int | str, ...]]:
        if self.task.is_comparison:
            return {self._keys[0]: (*LEVELS, BOTH_BAD)}
        return {
            dimension.key: (*LEVELS, NOT_APPLICABLE) if dimension.not_applicable else LEVELS
            for dimension in self.task.dimensions
        }

    def _position(self, state: RaterState, showings: tuple[Showing, ...]) -> int | None:
        return next(
            (index for index, each in enumerate(showings) if not state.is_decided(_shown(each), self._keys)), None
        )

    def _current(self, rater: str, body: Body) -> Showing:
        """Return the current item. Raises InvalidDecision if the page shows another one."""
        state, showings = self.store.load(rater), self.task.showings(rater)
        position = self._position(state, showings)
        if state.finished or position is None or body.get("position") != position:
            raise InvalidDecision("the page shows another item than the current one")
        return showings[position]

    def _describe_item(self, state: RaterState, showings: tuple[Showing, ...], position: int) -> dict[str, Any]:
        showing = showings[position]
        answers = [printable(answer) for answer in showing.item.answers]
        return {
            "position": position,
            "prompt": printable(showing.item.prompt),
            "reference": printable(showing.item.reference),
            "answers": answers[::-1] if showing.left == 1 else answers,
            "values": dict(state.values.get(_shown(showing), {})),
            "comment": state.comments.get(_shown(showing), ""),
        }


def _shown(showing: Showing) -> ItemShown:
    return showing.item.key, showing.repeat


def _milliseconds(body: Body) -> int | None:
    value = body.get("ms")
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None
