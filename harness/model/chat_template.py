"""Render a chat template as transformers' `apply_chat_template` does, without importing transformers.

A chat template is code that comes with a model: it is rendered in Jinja's sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message that hold its reasoning; the first is the one that templates read."""


def render_chat_template(
    chat_template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """Return the text that a chat template renders.

    Args:
        chat_template: The Jinja text.
        messages: Messages of JSON types, in OpenAI's shape; keys whose value is None are left out.
        tools: The tools of the row, as JSON schemas; None: no tools.
        add_generation_prompt: Whether the text ends with the header of a response.
        variables: Further variables of the template, such as the special tokens by name.

    Raises:
        jinja2.TemplateError: The template is wrong or refuses the conversation.
        ValueError: There are no messages.
    """
    if not messages:
        raise ValueError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    rendered: str = _compile(chat_template).render(
        messages=[_with_reasoning_keys(message) for message in messages],
        tools=tools,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return rendered


def _with_reasoning_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning under `reasoning_content` and under `thinking`, which gpt-oss reads."""
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[key] for key in REASONING_KEYS if key in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}


@lru_cache(maxsize=64)
def _compile(chat_template: str) -> Any:
    import jinja2.ext
    from jinja2 import nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %} … {% endgeneration %}`: marks the text that a model generates, and renders it as it is."""

        tags = {"generation"}  # noqa: RUF012 - Jinja reads a set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

        def render_body(self, caller: Any) -> Any:
            return caller()

    class TemplateNamespace(jinja2.utils.Namespace):
        """A namespace that refuses names with a leading underscore, which could reach into the interpreter."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, values = args[0], dict(*args[1:], **kwargs)
            for name in values:
                TemplateNamespace._check_name(name)  # an attribute of `self` would be a value of the namespace
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            TemplateNamespace._check_name(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check_name(name: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace cannot store the name {name!r}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_TemplateDict(), namespace=TemplateNamespace
    )
    return environment.from_string(chat_template)


class _TemplateDict:
    """`dict` of a template, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(text: str) -> str:
    return datetime.datetime.now().strftime(text)
