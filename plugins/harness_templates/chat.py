"""Chat templates in Jinja, as Hugging Face tokenizers carry them: rendered sandboxed, with exact trained spans."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from harness import HarnessError, Message, Span, Template
from harness_templates.conversation import check_roles, refusal, text_of
from harness_templates.skeleton import Skeleton, Unlocated, bounds, build, no_end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pairs = tuple[tuple[str, str], ...]

PLAINEST: Pairs = (("user", "question"), ("assistant", "answer"))

RESERVED = {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"}
RESERVED |= {"continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
RESERVED |= {"return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}


class ChatTemplate(Template):
    """A Jinja chat template. Subclasses say where its text comes from.

    The spans come from renderings of the conversation's beginnings: what is written up to a response with
    `add_generation_prompt` is its header, and each must be the beginning of the whole (see `skeleton`).
    A template that treats some contents specially (reasoning, for one) has no skeleton for them; the trained spans
    are then found all the same, everything counts as frame, and a content that holds a special token is refused.

    variables: further variables of the template. date: what it is given for today, YYYY-MM-DD.
    train_on: `all` responses, or the `last` alone.
    """

    name: ClassVar[str]

    def __init__(self, variables: Mapping[str, Any], date: str, train_on: str) -> None:
        taken = sorted(RESERVED & set(variables))
        if taken:
            raise HarnessError(f"template.{self.name}.variables", f"{taken[0]!r} is taken", "name it otherwise")
        try:
            self.date = datetime.date.fromisoformat(date)
        except ValueError as error:
            where = f"template.{self.name}.date"
            raise HarnessError(where, f"{date!r} is no date ({error})", "write it as 2024-07-26") from error
        self.variables, self.train_on = dict(variables), train_on
        self._skeletons: WeakKeyDictionary[Any, dict[Any, Skeleton | None]] = WeakKeyDictionary()

    def source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of the chat template. Raises HarnessError when there is none."""
        raise NotImplementedError

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open: bool = False
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the template refuses it, rewrites earlier turns, writes
        no end of turn, or when a special token in a message cannot be told from the template's own."""
        check_roles(messages, open=open, template=self.name)
        pairs = tuple((message.role, text_of(message)) for message in messages)
        source = self._dated(self.source(tokenizer))
        whole = self._text(source, pairs, tokenizer, open)
        skeleton = self._skeleton(source, pairs, tokenizer, open)
        if skeleton is not None:
            contents = skeleton.fit(whole, [content for _, content in pairs if content.strip()])
            if contents is not None:
                return skeleton.spans(contents)
        return self._without_skeleton(source, pairs, whole, tokenizer, open)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The tokens that end a response in the template, and the end-of-sequence token."""
        source = self._dated(self.source(tokenizer))
        skeleton = self._skeleton(source, PLAINEST, tokenizer, False)
        ends = [] if skeleton is None else _stops_in(skeleton.frames[-1], tokenizer)
        return tuple(dict.fromkeys(stop for stop in (*ends, tokenizer.eos_token) if stop))

    # -- rendering ----------------------------------------------------------------------------------------------------

    def _text(self, source: str, pairs: Sequence[tuple[str, str]], tokenizer: Any, open: bool) -> str:
        messages = [{"role": role, "content": content} for role, content in pairs]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=open, **self.variables
            )
        # What a template can do wrong is open-ended: it is a program of its own.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(role for role, _ in pairs)
            what = f"the chat template fails on a conversation of {roles}: {type(error).__name__}: {error}"
            raise refusal(self.name, what, "mend the row or the template, or choose another template") from error
        return str(text)

    def _dated(self, source: str) -> str:
        """The template with its clock stopped: the sandbox takes no functions, so a macro shadows the clock."""
        if "strftime_now" not in source:
            return source
        formats = set(re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", source))
        cases = {text: self.date.strftime(text) for text in formats}
        return f"{{% macro strftime_now(format) %}}{{{{ {cases!r}[format] }}}}{{% endmacro %}}{{{{ '' }}}}{source}"

    # -- spans --------------------------------------------------------------------------------------------------------

    def _trained(self, pairs: Sequence[tuple[str, str]], open: bool) -> list[int]:
        if open:
            return []
        responses = [index for index, (role, content) in enumerate(pairs) if role == "assistant" and content.strip()]
        return responses[-1:] if self.train_on == "last" else responses

    def _skeleton(self, source: str, pairs: Pairs, tokenizer: Any, open: bool) -> Skeleton | None:
        shape = tuple((role, None if content.strip() else content) for role, content in pairs)
        known = self._skeletons.setdefault(tokenizer, {})
        key = (source, shape, open)
        if key not in known:

            def render(part: Sequence[tuple[str, str]], opened: bool) -> str:
                return self._text(source, part, tokenizer, opened)

            try:
                known[key] = build(render, pairs, self._trained(pairs, open), open, self.name)
            except Unlocated:
                known[key] = None
        return known[key]

    def _written(self, source: str, tokenizer: Any) -> str:
        """What the template writes itself and does not train, in the plainest conversation."""
        skeleton = self._skeleton(source, PLAINEST, tokenizer, False)
        spans = skeleton.spans(("", "")) if skeleton else ()
        return "".join(span.text for span in spans if not span.trained)

    def _without_skeleton(self, source: str, pairs: Pairs, whole: str, tokenizer: Any, open: bool) -> tuple[Span, ...]:
        written = self._written(source, tokenizer)
        for token in tokenizer.added_tokens_decoder.values():
            own = token.special or (token.content in written and token.content.strip())
            if own and any(token.content in content for _, content in pairs):
                what = f"a message holds {token.content}, and the chat template rewrites that message"
                raise refusal(self.name, what, "take the token out of the row, or choose another template")

        def render(part: Sequence[tuple[str, str]], opened: bool) -> str:
            return self._text(source, part, tokenizer, opened)

        spans, place = [], 0
        for index in self._trained(pairs, open):
            start, end = bounds(render, pairs, whole, index, self.name)
            if whole[start:end].endswith(pairs[index][1].strip()):
                raise no_end_of_turn(self.name)
            spans += [Span(whole[place:start], frame=True), Span(whole[start:end], trained=True, frame=True)]
            place = end
        spans.append(Span(whole[place:], frame=True))
        return tuple(span for span in spans if span.text)


def _stops_in(end: str, tokenizer: Any) -> list[str]:
    """What ends a turn in an end of turn: each token of its own in it, and the text before the first, if any."""
    tokens = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.content in end]
    if not tokens:
        return [end.strip()]
    pattern = "|".join(sorted(tokens, key=len, reverse=True))
    return [re.split(pattern, end)[0].strip(), *re.findall(pattern, end)]
