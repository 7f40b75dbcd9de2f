"""Express a template as the text between turns, and as a Jinja chat template, for programs that serve a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.data.tokenization.rendering import render_messages
from harness.data.tokenization.special_tokens import special_token_guard
from harness.errors import ComponentError, HarnessError
from harness.interfaces.exporter import TurnSeparators
from harness.interfaces.template import Template
from harness.registry import Registry
from harness.spec.component_options import fill_component_options
from harness.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = Message("system", "Qsystemq")
_USERS = tuple(Message("user", f"Quser{number}q") for number in (1, 2, 3))
_ANSWERS = tuple(Message("assistant", f"Qanswer{number}q") for number in (1, 2))

PROBES: tuple[tuple[Message, ...], ...] = (
    (_USERS[0],),
    (_USERS[0], _ANSWERS[0], _USERS[1]),
    (_USERS[0], _ANSWERS[0], _USERS[1], _ANSWERS[1], _USERS[2]),
    (_SYSTEM, _USERS[0]),
    (_SYSTEM, _USERS[0], _ANSWERS[0], _USERS[1]),
)
"""Prompts by which two templates are compared."""


def find_turn_separators(template: Template, tokenizer: PreTrainedTokenizerBase) -> TurnSeparators | None:
    """Return what the template writes between turns; None if it is not of this form.

    The begin-of-sequence token that the tokenizer adds itself is not part of it, unless the template writes it.
    """
    first, second, third = _USERS
    prompt = _split(template, tokenizer, (first, _ANSWERS[0], second))
    complete = _split(template, tokenizer, (first, _ANSWERS[0]), is_prompt=False)
    if prompt is None or complete is None:
        return None
    start, user_assistant, assistant_user, prompt_end = prompt
    with_system = _split(template, tokenizer, (_SYSTEM, first, _ANSWERS[0], second))
    if with_system is not None and with_system[2:] != prompt[1:]:
        return None
    longer = _split(template, tokenizer, (first, _ANSWERS[0], second, _ANSWERS[1], third))
    if longer != [start, user_assistant, assistant_user, user_assistant, assistant_user, prompt_end]:
        return None
    spaced = render_text(template, tokenizer, (Message("user", f" {first.content} "),))
    return TurnSeparators(
        start,
        with_system[0] if with_system else None,
        with_system[1] if with_system else None,
        user_assistant,
        assistant_user,
        prompt_end,
        complete[-1],
        strips=spaced is not None and f" {first.content} " not in spaced,
    )


def render_text(
    template: Template, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, is_prompt: bool = True
) -> str | None:
    """Return the text of a conversation; None if the template refuses it."""
    try:
        spans = render_messages(template, messages, tokenizer, add_generation_prompt=is_prompt, tools=())
    except ComponentError:
        raise
    except HarnessError:
        return None
    return "".join(span.text for span in spans)


def build_chat_template(separators: TurnSeparators, begin_token: str = "") -> str:
    """Return a Jinja chat template with these separators.

    Args:
        separators: What is between turns.
        begin_token: What the tokenizer puts before every text: a chat template writes it itself.
    """
    begin = "" if separators.start_user.startswith(begin_token) else begin_token
    system = "{{ raise_exception('this model was trained without system messages') }}"
    if separators.start_system is not None:
        system = _print(begin + separators.start_system)
    pieces = (
        "{%- for message in messages -%}",
        *("{%- if message['role'] == 'system' -%}", system),
        "{%- elif message['role'] == 'user' -%}",
        *("{%- if loop.first -%}", _print(begin + separators.start_user)),
        "{%- elif messages[loop.index0 - 1]['role'] == 'system' -%}",
        _print(separators.system_user or ""),
        *("{%- else -%}", _print(separators.assistant_user)),
        "{%- endif -%}",
        *("{%- elif message['role'] == 'assistant' -%}", _print(separators.user_assistant)),
        "{%- else -%}{{ raise_exception('the roles are system, user and assistant') }}",
        "{%- endif -%}",
        "{{- message['content']", " | trim" if separators.strips else "", " -}}",
        "{%- endfor -%}",
        *("{%- if add_generation_prompt -%}", _print(separators.prompt_end)),
        *("{%- elif messages[-1]['role'] == 'assistant' -%}", _print(separators.end)),
        "{%- endif -%}",
    )  # fmt: skip
    return "".join(pieces)


def serving_chat_template(
    template: Template,
    own_template: Template | None,
    tokenizer: PreTrainedTokenizerBase,
    separators: TurnSeparators | None,
    begin_token: str,
) -> str | None:
    """Return a Jinja chat template that renders prompts as `template` does; None if there is none.

    Args:
        template: The template of a run.
        own_template: The chat template of the tokenizer as a template; None: the tokenizer has none.
        tokenizer: The tokenizer.
        separators: The separators of `template`, if it has that form.
        begin_token: See `build_chat_template`.
    """
    get_chat_template = getattr(template, "get_chat_template", None)
    if callable(get_chat_template):
        variables: Mapping[str, Any] = getattr(template, "variables", {})
        assignments = "".join(
            f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in variables.items()
        )
        return assignments + str(get_chat_template(tokenizer))
    if own_template is not None and _render_alike(template, own_template, tokenizer, begin_token):
        return str(tokenizer.get_chat_template())
    return None if separators is None else build_chat_template(separators, begin_token)


def tokenizer_template(registry: Registry, tokenizer: PreTrainedTokenizerBase) -> Template | None:
    """Return the chat template of a tokenizer as a template; None if it has none."""
    if not tokenizer.chat_template:
        return None
    options = fill_component_options(registry, "templates", "tokenizer", {})
    template: Template = registry.create("templates", "tokenizer", options)
    return template


def compare_with_tokenizer(
    template: Template, own_template: Template | None, tokenizer: PreTrainedTokenizerBase
) -> Literal["same", "other", "none"]:
    """Return whether the tokenizer's chat template renders prompts as `template` does; `none`: it has none.

    Args:
        template: The template of a run.
        own_template: The chat template of the tokenizer as a template; None: the tokenizer has none.
        tokenizer: The tokenizer.
    """
    if own_template is None:
        return "none"
    begin_token = str(tokenizer.decode(list(special_token_guard(tokenizer).bos_prefix)))
    return "same" if _render_alike(template, own_template, tokenizer, begin_token) else "other"


def _render_alike(template: Template, other: Template, tokenizer: PreTrainedTokenizerBase, begin_token: str) -> bool:
    """Return whether two templates render every prompt of `PROBES` alike, but for the begin-of-sequence token."""

    def texts(which: Template) -> list[str | None]:
        rendered = [render_text(which, tokenizer, messages) for messages in PROBES]
        return [text if text is None else text.removeprefix(begin_token) for text in rendered]

    return texts(template) == texts(other)


def _split(
    template: Template, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, is_prompt: bool = True
) -> list[str] | None:
    """Return the text around the contents of the messages; None if a content is not there exactly once, in order."""
    rest = render_text(template, tokenizer, messages, is_prompt=is_prompt)
    if rest is None or any(rest.count(message.content) != 1 for message in messages):
        return None
    parts = []
    for message in messages:
        before, found, rest = rest.partition(message.content)
        if not found:
            return None
        parts.append(before)
    return [*parts, rest]


def _print(text: str) -> str:
    """Return the Jinja expression that writes a text."""
    return "{{- " + json.dumps(text, ensure_ascii=False) + " -}}" if text else ""
