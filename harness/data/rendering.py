"""Spans, joined into one text that knows where each kind of span stands in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from harness.contracts import Span


@dataclass(frozen=True)
class Rendering:
    """What a template renders, joined.

    trained, frames: stretches of `text`, (begin, end), in order; stretches that touch are one.
    untrained_frames: the texts of the frames that are not trained.
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    frames: tuple[tuple[int, int], ...]
    untrained_frames: tuple[str, ...]

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Rendering:
        """The spans, joined."""
        parts: list[str] = []
        trained: list[tuple[int, int]] = []
        frames: list[tuple[int, int]] = []
        headers: list[str] = []
        place = 0
        for span in spans:
            end = place + len(span.text)
            if end == place:
                continue
            parts.append(span.text)
            if span.trained:
                _extend(trained, place, end)
            if span.frame:
                _extend(frames, place, end)
                if not span.trained:
                    headers.append(span.text)
            place = end
        return cls("".join(parts), tuple(trained), tuple(frames), tuple(headers))


def _extend(stretches: list[tuple[int, int]], begin: int, end: int) -> None:
    if stretches and stretches[-1][1] == begin:
        stretches[-1] = (stretches[-1][0], end)
    else:
        stretches.append((begin, end))
