"""Where a chat template puts the contents of messages: what it writes itself, told apart from what it is given.

A chat template gives text, not spans. Rendered once with a probe in the place of each content, it shows its frames:
the stretches that it writes around them. Frames found so cannot be mistaken for a user's text that looks like one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import HarnessError, Span
from harness_templates.conversation import refusal

Render = Callable[[Sequence[tuple[str, str]], bool], str]
"""(role, content) of each message, and whether to end with the header of a response → text."""

ANOTHER = "choose another template, or set `train_on` to last"
UNFIT = (
    "set its `variables` (such as enable_thinking) so that its prompt and its whole agree, or choose another template"
)


@dataclass(frozen=True)
class Skeleton:
    """The frames of conversations of one shape.

    frames: one more than there are contents: what stands before each, and after the last.
    opens: index of a trained content -> where in the frame before it the response's header ends.
    closes: index of a trained content -> where in the frame after it the end of turn ends.
    """

    frames: tuple[str, ...]
    opens: dict[int, int]
    closes: dict[int, int]

    def spans(self, contents: Sequence[str]) -> tuple[Span, ...]:
        """The rendering of conversations of this shape with these contents."""
        spans: list[Span] = []
        for index, text in enumerate(self.frames):
            close, start = self.closes.get(index - 1, 0), self.opens.get(index, len(text))
            spans += [
                Span(text[:close], trained=True, frame=True),
                Span(text[close:start], frame=True),
                Span(text[start:], trained=True, frame=True),
            ]
            if index < len(contents):
                spans.append(Span(contents[index], trained=index in self.opens))
        return tuple(span for span in spans if span.text)

    def fit(self, text: str, contents: Sequence[str]) -> tuple[str, ...] | None:
        """The contents as they stand in `text`, where a template may have stripped them; None when it is not theirs."""
        # place in the text -> the contents up to there; several only while white space can be told either way.
        paths: dict[int, tuple[str, ...]] = {0: ()}
        for frame, content in zip(self.frames, (*contents, ""), strict=True):
            after: dict[int, tuple[str, ...]] = {}
            for place, path in paths.items():
                if not text.startswith(frame, place):
                    continue
                start = place + len(frame)
                for variant in _variants(content):
                    if text.startswith(variant, start):
                        after.setdefault(start + len(variant), (*path, variant))
            paths = after
        found = paths.get(len(text))
        return None if found is None else found[:-1]


def build(
    render: Render, messages: Sequence[tuple[str, str]], trained: Sequence[int], open: bool, name: str
) -> Skeleton:
    """The skeleton of conversations of this shape; a blank content is part of it.

    trained: indices of the messages that are trained. Raises HarnessError when what the template writes up to a trained
    response, or up to its end, is not the beginning of what it writes for the whole conversation, or when it writes
    no end of turn, or leaves a message out; `Unlocated` when contents stand twice or in another order.
    """
    probed = [(role, f"Qx{i}Zk{i}" if content.strip() else content) for i, (role, content) in enumerate(messages)]
    located = [index for index, (_, content) in enumerate(messages) if content.strip()]
    whole = render(probed, open)
    frames, ends, place = [], {}, 0
    for index in located:
        probe = probed[index][1]
        start = whole.find(probe, place)
        if probe not in whole:
            what = f"the chat template leaves out the content of message {index + 1} ({messages[index][0]})"
            raise refusal(name, what, "choose another template")
        if start < 0 or whole.count(probe) != 1:
            raise Unlocated(name, "the chat template writes contents twice or in another order")
        frames.append(whole[place:start])
        place = ends[index] = start + len(probe)
    frames.append(whole[place:])
    opens, closes = {}, {}
    for index in trained:
        number = located.index(index)
        header, end = bounds(render, probed, whole, index, name)
        before = ends[located[number - 1]] if number else 0
        if not before <= header <= ends[index] - len(probed[index][1]):
            raise refusal(name, f"the chat template writes message {index + 1} into the prompt for it", UNFIT)
        opens[number], closes[number] = header - before, end - ends[index]
        if end <= ends[index]:
            raise no_end_of_turn(name)
    return Skeleton(tuple(frames), opens, closes)


def bounds(render: Render, messages: Sequence[tuple[str, str]], whole: str, index: int, name: str) -> tuple[int, int]:
    """Where in `whole` the response `messages[index]` begins, after its header, and where its end of turn ends.

    White space after the end of turn belongs to the frame. Raises HarnessError when earlier turns are rewritten.
    """
    header = render(messages[:index], True)
    upto = render(messages[: index + 1], False)
    if not (whole.startswith(header) and upto.startswith(header)):
        what = f"what the chat template writes up to message {index + 1} is no beginning of the whole conversation"
        raise refusal(name, what, ANOTHER if index + 1 < len(messages) else UNFIT)
    if not whole.startswith(upto):
        what = f"the chat template rewrites message {index + 1}, a response, once another follows"
        raise refusal(name, what, ANOTHER)
    return len(header), len(upto.rstrip())


def no_end_of_turn(name: str) -> HarnessError:
    """The error of a template after whose responses a model would never learn to stop."""
    what = "the chat template writes nothing but white space after a response: no end of turn to train"
    return refusal(name, what, "let it write {{ eos_token }} there, or choose another template")


class Unlocated(HarnessError):
    """The contents of messages cannot be told from what the template writes."""


def _variants(content: str) -> tuple[str, ...]:
    stripped = (content, content.strip(), content.lstrip(), content.rstrip())
    lines = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    return tuple(dict.fromkeys((*stripped, *lines)))
