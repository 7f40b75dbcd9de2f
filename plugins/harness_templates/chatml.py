"""ChatML, the format of Qwen, SmolLM2 and many others: `<|im_start|>role`, the content, `<|im_end|>`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from harness import Message, Span, Template
from harness_templates.conversation import check_roles, frame, refusal, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"


class ChatML(Template):
    """ChatML. The line break after `<|im_end|>` belongs to the frame: a model that has ended its turn is done.

    system: the system message of conversations that have none; None: no system turn.
    """

    name = "chatml"

    def __init__(self, system: str | None) -> None:
        self.system = system
        self._fit: WeakSet[PreTrainedTokenizerBase] = WeakSet()

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open: bool = False
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's two tokens."""
        check_roles(messages, open=open, template=self.name)
        self._check(tokenizer)
        if self.system is not None and messages[0].role != "system":
            messages = (Message("system", self.system), *messages)
        spans: list[Span] = []
        for message in messages:
            trained = message.role == "assistant"
            spans += [
                frame(f"{START}{message.role}\n"),
                Span(text_of(message), trained=trained),
                frame(END, trained=trained),
                frame("\n"),
            ]
        if open:
            spans.append(frame(f"{START}assistant\n"))
        return tuple(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """`<|im_end|>`, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (END, tokenizer.eos_token) if stop))

    def _check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer in self._fit:
            return
        known = tokenizer.added_tokens_encoder
        for token in (START, END):
            # In pieces, they would be text like any other, and a user's text could end a turn.
            if token not in known:
                what = f"the tokenizer has no token {token}"
                raise refusal(self.name, what, "choose a template that needs none, such as alpaca, or another model")
        self._fit.add(tokenizer)
