"""Where a chat template puts the contents of messages: what it writes itself, told apart from what it is given.

A chat template gives text, not spans. Rendered once with a probe in the place of each content, it shows its frames:
the stretches that it writes around them. Frames found so cannot be mistaken for a user's text that looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness import HarnessError, Message, Span
from harness_templates.conversation import joined, refusal
from harness_templates.tools import dumps

Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to end with the header of a response → text."""

Place = tuple[int, int]
"""A frame, by its index, and where in it."""

ESCAPED = re.compile(r'[\x00-\x1f"\\]')
"""What JSON writes otherwise than text does."""

ANOTHER = 'set the source\'s option train_on to "last", or choose another template'
UNFIT = (
    "set its `variables` (such as enable_thinking) so that its prompt and its whole agree, or choose another template"
)


@dataclass(frozen=True)
class Skeleton:
    """The frames of conversations of one shape.

    frames: one more than there are contents: what stands before each, and after the last.
    trained: the trained stretches in order, each from after a response's header to the end of its end of turn.
    """

    frames: tuple[str, ...]
    trained: tuple[tuple[Place, Place], ...]

    def spans(self, contents: Sequence[str]) -> tuple[Span, ...]:
        """The rendering of conversations of this shape with these contents."""
        spans: list[Span] = []
        inside = False
        for index, text in enumerate(self.frames):
            place = 0
            for offset in [offset for stretch in self.trained for frame, offset in stretch if frame == index]:
                spans.append(Span(text[place:offset], trained=inside, frame=True))
                place, inside = offset, not inside
            spans.append(Span(text[place:], trained=inside, frame=True))
            if index < len(contents):
                spans.append(Span(contents[index], trained=inside))
        return joined(spans)

    def fit(self, text: str, contents: Sequence[str]) -> tuple[str, ...] | None:
        """The contents as they stand in `text`, where a template may have stripped them or written them as JSON; None
        when it is not theirs."""
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


def build(render: Render, messages: Sequence[Message], trained: Sequence[int], open: bool, name: str) -> Skeleton:
    """The skeleton of conversations of this shape; a blank content is part of it, and so is all but the contents.

    trained: indices of the messages that are trained. Raises HarnessError when what the template writes up to a trained
    response, or up to its end, is not the beginning of what it writes for the whole conversation, or when it writes
    no end of turn, or leaves a message out; `Unlocated` when contents stand twice or in another order.
    """
    located = [index for index, message in enumerate(messages) if message.content.strip()]
    probed = [replace(m, content=f"Qx{i}Zk{i}") if i in located else m for i, m in enumerate(messages)]
    whole = render(probed, open)
    starts, ends, place = {}, {}, 0
    for index in located:
        probe = probed[index].content
        start = whole.find(probe, place)
        if probe not in whole:
            what = f"the chat template leaves out the content of message {index + 1} ({messages[index].role})"
            raise refusal(name, what, "choose another template")
        if start < 0 or whole.count(probe) != 1:
            raise Unlocated(name, "the chat template writes contents twice or in another order")
        starts[index], place = start, start + len(probe)
        ends[index] = place
    frames = list(zip([0, *ends.values()], [*starts.values(), len(whole)], strict=True))
    stretches = []
    for index in trained:
        header, end = bounds(render, probed, whole, index, name)
        before = max((ends[other] for other in located if other < index), default=0)
        if not before <= header <= starts.get(index, end):
            raise no_prompt(name, index)
        if end <= ends.get(index, header):
            raise no_end_of_turn(name)
        stretches.append((_place(header, frames), _place(end, frames)))
    return Skeleton(tuple(whole[begin:end] for begin, end in frames), tuple(stretches))


def bounds(render: Render, messages: Sequence[Message], whole: str, index: int, name: str) -> tuple[int, int]:
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


def no_prompt(name: str, index: int) -> HarnessError:
    """The error of a template by whose prompt a model would not be asked what it was trained on."""
    what = f"the prompt that the chat template writes for message {index + 1} is not what stands before that message"
    return refusal(name, what, UNFIT)


def no_end_of_turn(name: str) -> HarnessError:
    """The error of a template after whose responses a model would never learn to stop."""
    what = "the chat template writes nothing but white space after a response: no end of turn to train"
    return refusal(name, what, "let it write {{ eos_token }} there, or choose another template")


class Unlocated(HarnessError):
    """The contents of messages cannot be told from what the template writes."""


def _place(position: int, frames: Sequence[tuple[int, int]]) -> Place:
    """The frame that holds a position of the whole, and where in it; of two that touch it, the later."""
    index = max(index for index, (begin, _) in enumerate(frames) if begin <= position)
    return index, position - frames[index][0]


def _variants(content: str) -> tuple[str, ...]:
    stripped = (content, content.strip(), content.lstrip(), content.rstrip())
    lines = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    written = (dumps(content)[1:-1],) if ESCAPED.search(content) else ()
    return tuple(dict.fromkeys((*stripped, *lines, *written)))
