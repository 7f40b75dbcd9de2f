"""Chat templates in Jinja, as Hugging Face tokenizers carry them: rendered sandboxed, with exact trained spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from harness import HarnessError, Message, Span, Template
from harness_templates.base import message_text, parse_date, unsupported_error, validate_conversation
from harness_templates.jinja_layout import ConversationRenderer, TemplateLayout
from harness_templates.openai_format import ToolTextEscaper

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


RESERVED_VARIABLES = {
    "conversation",
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "tokenize",
}
RESERVED_VARIABLES |= {"continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"}
RESERVED_VARIABLES |= {"return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}


class ChatTemplate(Template):
    """A Jinja chat template. Subclasses say where its text comes from.

    Tools and calls reach the template in OpenAI's shape, with arguments as a mapping.
    variables: further variables of the template. date: what it is given for today, YYYY-MM-DD.
    """

    name: ClassVar[str]

    def __init__(self, variables: Mapping[str, Any], date: str) -> None:
        taken = sorted(RESERVED_VARIABLES & set(variables))
        if taken:
            raise HarnessError(f"template.{self.name}.variables", f"{taken[0]!r} is taken", "name it otherwise")
        self.date = parse_date(date, self.name)
        self.variables = dict(variables)
        self._layouts: WeakKeyDictionary[Any, dict[Any, TemplateLayout | None]] = WeakKeyDictionary()

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text of the chat template. Raises HarnessError when there is none."""
        raise NotImplementedError

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the template refuses it, leaves out a message, a call or
        the tools, rewrites a trained response, writes no end of turn, or when a special token in a message cannot be
        told from the template's own."""
        validate_conversation(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools, supports_tools=True
        )
        plain = tuple(
            message if message.input is None else replace(message, content=message_text(message), input=None)
            for message in messages
        )
        veil = ToolTextEscaper.for_conversation(plain, tuple(tools), tokenizer)
        conversation = self._build_renderer(
            veil.escape_messages(plain), veil.escape_tools(tuple(tools)), tokenizer, add_generation_prompt
        )
        return veil.unescape(conversation.render_spans())

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The tokens that end a response in the template, and the end-of-sequence token."""
        return self._build_renderer((), (), tokenizer, False).stop_strings()

    def _build_renderer(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Mapping[str, Any], ...],
        tokenizer: Any,
        add_generation_prompt: bool,
    ) -> ConversationRenderer:
        known = self._layouts.setdefault(tokenizer, {})
        source = self._with_fixed_date(self.get_chat_template(tokenizer))
        return ConversationRenderer(
            self.name, source, self.variables, tokenizer, known, messages, tools, add_generation_prompt
        )

    def _with_fixed_date(self, chat_template: str) -> str:
        """The template with its clock stopped: the sandbox takes no functions, so a macro shadows the clock."""
        if "strftime_now" not in chat_template:
            return chat_template
        formats = set(re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", chat_template))
        cases = {text: self.date.strftime(text) for text in formats}
        return (
            f"{{% macro strftime_now(format) %}}{{{{ {cases!r}[format] }}}}{{% endmacro %}}{{{{ '' }}}}{chat_template}"
        )


class JinjaTemplate(ChatTemplate):
    """The chat template of the spec. Raises HarnessError unless exactly one of `template` and `file` is given."""

    name = "jinja"

    def __init__(self, template: str | None, file: str | None, variables: Mapping[str, Any], date: str) -> None:
        super().__init__(variables, date)
        if (template is None) == (file is None):
            given = "both `template` and `file` are given" if file else "neither `template` nor `file` is given"
            raise HarnessError("template.jinja", given, "give one of them")
        self._chat_template = template if file is None else _read_template_file(Path(file))

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        assert self._chat_template is not None
        return self._chat_template


def _read_template_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise HarnessError("template.jinja.file", what, "give the path of a chat template") from error
    except UnicodeDecodeError as error:
        raise HarnessError("template.jinja.file", f"{path} is not UTF-8", "save it as UTF-8") from error


class TokenizerTemplate(ChatTemplate):
    """The chat template of the tokenizer; its `default` one where it carries several."""

    name = "tokenizer"

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        try:
            return str(tokenizer.get_chat_template())
        except ValueError as error:
            hint = "choose a template by name, such as chatml or alpaca, or give one with jinja"
            raise unsupported_error(
                self.name, "the model's tokenizer carries no chat template of its own", hint
            ) from error
