"""Templates created as in a run, and conversations to render."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from harness import Example, Message, ToolCall

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""Llama 2's chat template, as published with meta-llama/Llama-2-7b-chat-hf."""


@pytest.fixture(scope="session")
def make():
    """Return make(name, **options), which creates a built-in template with its declared defaults."""
    from harness_templates import harness_templates

    def build(name, **options):
        component = harness_templates()[name]
        module, _, attribute = component.factory.partition(":")
        defaults = {key: schema["default"] for key, schema in component.options.items()}
        return getattr(importlib.import_module(module), attribute)(**{**defaults, **options})

    return build


@pytest.fixture(scope="session")
def built_in(make):
    """Return built_in(name), which creates a template with defaults; jinja gets Llama 2's published template."""
    return lambda name, **options: make(name, **({"template": LLAMA2} if name == "jinja" else {}), **options)


@pytest.fixture(scope="session")
def llama2_jinja():
    return LLAMA2


@pytest.fixture(scope="session")
def shipped():
    """Return shipped(name), which reads a chat template that is distributed with TRL."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return lambda name: (folder / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def single():
    return (Message("user", "Name a river."), Message("assistant", "The Elbe."))


@pytest.fixture(scope="session")
def multi():
    return (
        Message("user", "Name a river."),
        Message("assistant", "The Elbe."),
        Message("user", "再说一条河。"),
        Message("assistant", "长江 🙂"),
    )


@pytest.fixture(scope="session")
def with_input():
    return (Message("user", "Sum up.", input="A long story."), Message("assistant", "A story."))


@pytest.fixture(scope="session")
def conversations(single, multi):
    """Return name -> messages, of the shapes that every built-in format supports."""
    system = Message("system", "Be brief.")
    return {"single": single, "multi": multi, "system": (system, *single), "system_multi": (system, *multi)}


@pytest.fixture(scope="session")
def example():
    """Return example(messages, tools), which builds an example located at `rows.jsonl:7`."""
    return lambda messages, tools=(): Example("id", tuple(messages), "rows.jsonl:7", tuple(tools))


@pytest.fixture(scope="session")
def marked():
    """Return marked(spans), which joins the text of the spans, with trained text between ⟦ and ⟧."""

    def write(spans):
        text, inside = "", False
        for span in spans:
            if span.train != inside:
                text += "⟦" if span.train else "⟧"
            text, inside = text + span.text, span.train
        return text + ("⟧" if inside else "")

    return write


@pytest.fixture(scope="session")
def family():
    """Return family(name), which builds the tokenizer of a model family once (see `families`)."""
    folder = Path(__file__).parent
    loaded = importlib.util.spec_from_file_location("families", folder / "families.py")
    families = importlib.util.module_from_spec(loaded)
    sys.modules["families"] = families
    loaded.loader.exec_module(families)
    return functools.cache(lambda name: families.make(families.FAMILIES[name]))


@pytest.fixture(scope="session")
def weather():
    """Return a tool schema."""
    return {
        "name": "get_weather",
        "description": "The weather in a city, e.g. Köln.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }


@pytest.fixture(scope="session")
def calling():
    """Return a conversation with a tool call, its answer and a response to it."""
    return (
        Message("user", "How is the weather in Köln?"),
        Message("assistant", "", tool_calls=(ToolCall("get_weather", {"city": "Köln", "days": 2}),)),
        Message("tool", '{"sky": "grey"}', name="get_weather"),
        Message("assistant", "Grey."),
    )


@pytest.fixture(scope="session")
def as_dicts():
    """Return as_dicts(messages, json=), OpenAI's shape built without the code under test."""

    def write(messages, *, json=None):
        dicts = []
        for message in messages:
            openai_message = {"role": message.role, "content": message.content}
            if message.tool_calls:
                openai_message["tool_calls"] = [
                    {
                        "type": "function",
                        "function": {"name": c.name, "arguments": json(c.arguments) if json else dict(c.arguments)},
                    }
                    for c in message.tool_calls
                ]
            dicts.append(openai_message)
        return dicts

    return write
