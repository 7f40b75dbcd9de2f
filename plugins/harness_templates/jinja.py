"""Jinja chat templates, as stored with Hugging Face tokenizers: rendered in a sandbox, with exact trained spans."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from harness import Component, ComponentExample, HarnessError, Message, Span, Template
from harness.utils.formatting import join_names
from harness_templates.base import date_option, message_text, parse_date, unsupported_error, validate_conversation
from harness_templates.jinja_layout import ConversationRenderer, TemplateLayout
from harness_templates.openai_format import ToolTextEscaper, split_thinking_block

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHAT_TEMPLATE_OPTIONS: dict[str, Any] = {
    "variables": {
        "type": "object",
        "default": {},
        "description": 'Further variables for the chat template, e.g. {"enable_thinking": false}.',
    },
    **date_option("a chat template that prints it"),
}

_EXAMPLE_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

COMPONENTS: dict[str, Component] = {
    "tokenizer": Component(
        summary="The chat template of the model's own tokenizer; supports tools if the template does.",
        factory="harness_templates.jinja:TokenizerTemplate",
        options=_CHAT_TEMPLATE_OPTIONS,
    ),
    "jinja": Component(
        summary="A chat template from the spec, in the Jinja dialect of Hugging Face tokenizers, sandboxed.",
        factory="harness_templates.jinja:JinjaTemplate",
        options={
            "template": {
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": "The chat template. Set this or `file`.",
            },
            "file": {
                "type": ["string", "null"],
                "format": "path",
                "default": None,
                "description": "A UTF-8 file with the chat template. Set this or `template`.",
            },
            **_CHAT_TEMPLATE_OPTIONS,
        },
        example=ComponentExample({"template": _EXAMPLE_TEMPLATE}),
    ),
}

RESERVED_VARIABLES = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
    *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
}
"""The parameters of `apply_chat_template`, which cannot be variables of a template."""


class ChatTemplate(Template):
    """A Jinja chat template. Subclasses define where its text comes from.

    Tools and calls are passed to the template in OpenAI's shape, with arguments as a mapping.
    """

    name: ClassVar[str]

    def __init__(self, variables: Mapping[str, Any], date: str) -> None:
        """Create the template.

        Args:
            variables: Further variables of the template.
            date: Today's date as the template sees it, YYYY-MM-DD.

        Raises:
            HarnessError: A variable has a reserved name, or there is no such day.
        """
        reserved = sorted(RESERVED_VARIABLES & set(variables))
        if reserved:
            raise HarnessError(f"template.{self.name}.variables", f"the name {reserved[0]!r} is reserved", "rename it")
        self.date = parse_date(date, self.name)
        self.variables = dict(variables)
        self._layouts: WeakKeyDictionary[Any, dict[Any, TemplateLayout | None]] = WeakKeyDictionary()

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text of the chat template for rows with these tools.

        Raises:
            HarnessError: There is none.
        """
        raise NotImplementedError

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """Render the conversation with the chat template, and derive its spans.

        Raises:
            HarnessError: The template refuses the conversation; omits a message, trained reasoning, a call or the
                tools; rewrites a trained response; writes no end of turn; or a special token in a message cannot be
                distinguished from the template's own.
        """
        validate_conversation(
            messages,
            add_generation_prompt=add_generation_prompt,
            template=self.name,
            tools=tools,
            supports_tools=True,
            supports_reasoning=True,
        )
        without_inputs = tuple(
            message if message.input is None else replace(message, content=message_text(message), input=None)
            for message in messages
        )
        if "reasoning_content" in self.get_chat_template(tokenizer, tools):
            without_inputs = tuple(map(split_thinking_block, without_inputs))
        escaper = ToolTextEscaper.for_conversation(without_inputs, tuple(tools), tokenizer)
        renderer = self._build_renderer(
            escaper.escape_messages(without_inputs),
            escaper.escape_tools(tuple(tools)),
            tokenizer,
            add_generation_prompt,
        )
        return escaper.unescape(renderer.render_spans())

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the tokens that end a response in the template, and the end-of-sequence token."""
        return self._build_renderer((), (), tokenizer, False).stop_strings()

    def _build_renderer(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Mapping[str, Any], ...],
        tokenizer: Any,
        add_generation_prompt: bool,
    ) -> ConversationRenderer:
        return ConversationRenderer(
            template_name=self.name,
            chat_template=self._with_fixed_date(self.get_chat_template(tokenizer, tools)),
            variables=self.variables,
            tokenizer=tokenizer,
            layouts=self._layouts.setdefault(tokenizer, {}),
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
        )

    def _with_fixed_date(self, chat_template: str) -> str:
        """Return the template with a macro in place of `strftime_now`: functions cannot be passed to the sandbox."""
        if "strftime_now" not in chat_template:
            return chat_template
        formats = set(re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", chat_template))
        cases = {text: self.date.strftime(text) for text in formats}
        return (
            f"{{% macro strftime_now(format) %}}{{{{ {cases!r}[format] }}}}{{% endmacro %}}{{{{ '' }}}}{chat_template}"
        )


class JinjaTemplate(ChatTemplate):
    """A chat template from the spec."""

    name = "jinja"

    def __init__(self, template: str | None, file: str | None, variables: Mapping[str, Any], date: str) -> None:
        """Create the template.

        Args:
            template: The text of the chat template.
            file: The path of a file with it.
            variables: See `ChatTemplate`.
            date: See `ChatTemplate`.

        Raises:
            HarnessError: Both or none of `template` and `file` are set, or the file cannot be read.
        """
        super().__init__(variables, date)
        if (template is None) == (file is None):
            what = "both `template` and `file` are set" if file else "neither `template` nor `file` is set"
            raise HarnessError("template.jinja", what, "set one of them")
        self._chat_template = template if file is None else _read_template_file(Path(file))

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text from the spec."""
        assert self._chat_template is not None
        return self._chat_template


def _read_template_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        what = f"{path} cannot be read ({error.strerror})"
        raise HarnessError("template.jinja.file", what, "set it to the path of a chat template") from error
    except UnicodeDecodeError as error:
        raise HarnessError("template.jinja.file", f"{path} is not UTF-8", "save it as UTF-8") from error


class TokenizerTemplate(ChatTemplate):
    """The chat template of the tokenizer. Of several, `tool_use` renders the rows with tools, `default` the others."""

    name = "tokenizer"

    def get_chat_template(self, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the tokenizer's chat template for rows with these tools.

        Raises:
            HarnessError: It has none.
        """
        try:
            return str(tokenizer.get_chat_template(tools=[dict(tool) for tool in tools] or None))
        except ValueError as error:
            hint = "choose a template by name, such as chatml or alpaca, or write one with jinja"
            what = "the model's tokenizer has no chat template"
            if isinstance(tokenizer.chat_template, dict):
                what += f" called default, only {join_names(tokenizer.chat_template)}"
            raise unsupported_error(self.name, what, hint) from error
