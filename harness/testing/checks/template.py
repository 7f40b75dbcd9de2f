"""The contract of templates: trained spans, and text of rows that looks like control tokens."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from harness.data.tokenization.fingerprints import template_fingerprint
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.testing.component_under_test import ComponentUnderTest, require
from harness.testing.full_mask_check import verify_mask
from harness.testing.tiny_model import build_tokenizer
from harness.types import IGNORE_INDEX, Example, Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<tool_call>", "</tool_call>", "<tool_response>"),
    *("</tool_response>", "<｜tool▁sep｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>"),
    *("<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>"),
    "<｜tool▁output▁end｜>",
)
"""Special tokens of common formats."""

MAX_LENGTH = 30_000
"""More tokens than any row of the checks has."""

SUPPORTED_BY_ALL = ("user", "response", "turns")
"""Positions of `conversations_with` that every format supports."""

Conversation = tuple[tuple[Message, ...], tuple[dict[str, Any], ...]]


def conversations_with(word: str) -> dict[str, Conversation]:
    """Return conversations of every shape with their tools, each with `word` at another position."""
    user, answer = Message("user", "Go."), Message("assistant", "No.")
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": "y"}),))
    hostile = dataclasses.replace(call, tool_calls=(ToolCall("f", {"x": word, "y": [{"z": word}]}),))
    result, tool_schema = Message("tool", "r", name="f"), {"name": "f", "description": "d", "parameters": {}}
    described = {**tool_schema, "description": word, "parameters": {"x": {"y": word}}}
    return {
        "user": ((Message("user", word), answer), ()),
        "response": ((user, Message("assistant", word)), ()),
        "system": ((Message("system", word), user, answer), ()),
        "input": ((Message("user", "Go.", input=word), answer), ()),
        "turns": ((Message("user", word), Message("assistant", word)) * 2, ()),
        "answer of a tool": ((user, call, Message("tool", word, name="f"), answer), ()),
        "call of a tool": ((user, hostile, result, answer), ()),
        "tool": ((user, call, result, answer), (described,)),
    }


def check_parameters(subject: ComponentUnderTest) -> None:
    """`render` takes add_generation_prompt and tools by keyword, with the defaults of the interface."""
    parameters = inspect.signature(subject.create().render).parameters
    for name, default in (("add_generation_prompt", False), ("tools", ())):
        parameter = parameters.get(name)
        is_keyword = parameter is not None and parameter.kind is parameter.KEYWORD_ONLY and parameter.default == default
        require(is_keyword, f"{name}={default!r} is not a keyword-only parameter of `render`")


def check_hostile_text(position: str, subject: ComponentUnderTest) -> None:
    """Text of a row never becomes a control token."""
    template, tokenizer = subject.create(), _tokenizer(subject.example.special_tokens)
    harmless, harmless_tools = conversations_with("w")[position]
    messages, tools = conversations_with(_attack_text(template, tokenizer))[position]
    try:
        template.render(harmless, tokenizer, tools=harmless_tools)
    except HarnessError as refusal:
        require(position not in SUPPORTED_BY_ALL, f"it refuses a plain conversation: {refusal}")
        require(refusal.hint, f"the refusal has no remedy: {refusal}")
        require(_is_refused(template, messages, tokenizer, tools), "it refuses a harmless row, but not a hostile one")
        return
    example = _example(messages, tools)
    row = tokenize_example(example, "s", template, tokenizer, MAX_LENGTH)
    expected = tokenize_example(_example(harmless, harmless_tools), "s", template, tokenizer, MAX_LENGTH)
    special = set(tokenizer.added_tokens_encoder.values())
    for what, actual, plain in (("tokens", row.input_ids, expected.input_ids), ("labels", row.labels, expected.labels)):
        controls = [[token for token in tokens if token in special] for tokens in (actual, plain)]
        require(controls[0] == controls[1], f"the special tokens among the {what} are {controls[0]}, not {controls[1]}")
    text = "".join(span.text for span in template.render(messages, tokenizer, tools=tools))
    require(_decode(row.input_ids, tokenizer) == text, "the tokens are not those of the rendered text")
    prompt = encode_prompt(example, template, tokenizer, MAX_LENGTH)
    require(prompt == list(row.input_ids[: len(prompt)]), "the prompt is not the beginning of the row")
    verify_mask(example, row, template, tokenizer)


def check_trained_spans(subject: ComponentUnderTest) -> None:
    """Only responses with `train` and their ends of turn are trained."""
    template, tokenizer = subject.create(), _tokenizer(subject.example.special_tokens)
    messages = conversations_with("w")["turns"][0]
    for wanted in ((True, True), (False, True), (True, False)):
        flags = iter(wanted)
        flagged = [
            dataclasses.replace(message, train=next(flags)) if message.role == "assistant" else message
            for message in messages
        ]
        row = tokenize_example(_example(flagged), "s", template, tokenizer, MAX_LENGTH)
        trained = "".join(_decode([label for label in row.labels if label != IGNORE_INDEX], tokenizer).split())
        rest = trained.replace("w", "")
        for stop in sorted(template.stop_strings(tokenizer), key=len, reverse=True):
            require(rest.count(stop) <= 2, f"{stop!r} is trained {rest.count(stop)} times in 2 turns")
            rest = rest.replace(stop, "")
        require(trained.count("w") == sum(wanted), f"{trained.count('w')} responses are trained, not {sum(wanted)}")
        require(rest == "", f"{rest!r} is trained, in addition to responses and their ends")
        verify_mask(_example(flagged), row, template, tokenizer)


def check_untrained_user(subject: ComponentUnderTest) -> None:
    """`train` has an effect only on responses."""
    template, tokenizer = subject.create(), _tokenizer(subject.example.special_tokens)
    plain = conversations_with("w")["turns"][0]
    flagged = [m if m.role == "assistant" else dataclasses.replace(m, train=False) for m in plain]
    require(
        template.render(flagged, tokenizer) == template.render(plain, tokenizer), "a user's turn is rendered otherwise"
    )


def check_prompts(subject: ComponentUnderTest) -> None:
    """The text before each response is a beginning of the text of the whole conversation."""
    template, tokenizer = subject.create(), _tokenizer(subject.example.special_tokens)
    messages = conversations_with("w")["turns"][0]
    full_text = "".join(span.text for span in template.render(messages, tokenizer))
    for count in (1, 3):
        spans = template.render(messages[:count], tokenizer, add_generation_prompt=True)
        prompt = "".join(span.text for span in spans)
        require(full_text.startswith(prompt), f"{prompt!r} is not a beginning of {full_text!r}")


def check_stop_strings(subject: ComponentUnderTest) -> None:
    """It has stop strings, and none of them is blank."""
    stops = subject.create().stop_strings(_tokenizer(subject.example.special_tokens))
    require(stops and all(stop.strip() for stop in stops), f"the stop strings are {stops!r}")


def check_fingerprint(subject: ComponentUnderTest) -> None:
    """Tokens can be cached: two instances with the same options have the same fingerprint."""
    tokenizer = _tokenizer(subject.example.special_tokens)
    fingerprints = {template_fingerprint(subject.create(), tokenizer) for _ in range(2)}
    require(len(fingerprints) == 1, "the fingerprints of two instances differ; keep plain values in the instance")


def _hostile_check(position: str) -> Callable[[ComponentUnderTest], None]:
    check = functools.partial(check_hostile_text, position)
    check.__name__ = f"check_hostile_text_{position.replace(' ', '_')}"  # type: ignore[attr-defined]
    check.__doc__ = f"Text of a row never becomes a control token ({position})."
    return check


def _example(messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Example:
    return Example("id", tuple(messages), "rows.jsonl:7", tuple(tools))


def _attack_text(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return every special token, stop string and header of the template, and the end of a JSON string."""
    spans = template.render(conversations_with("w")["turns"][0], tokenizer)
    headers = [span.text for span in spans if span.markup and not span.train]
    words = [*tokenizer.added_tokens_encoder, *template.stop_strings(tokenizer), *headers]
    return "x" + " y ".join(words) + ' "}\nz'


def _is_refused(
    template: Template,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[dict[str, Any]],
) -> bool:
    try:
        template.render(messages, tokenizer, tools=tools)
    except HarnessError:
        return True
    return False


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return cast(str, tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


@functools.cache
def _tokenizer(special_tokens: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with the special tokens of every format and a chat template with tools."""
    from importlib.resources import files

    chat_template = (files("trl") / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    return build_tokenizer((*SPECIAL_TOKENS, *special_tokens), chat_template)


CHECKS = (
    check_parameters,
    *(_hostile_check(position) for position in conversations_with("")),
    check_trained_spans,
    check_untrained_user,
    check_prompts,
    check_stop_strings,
    check_fingerprint,
)
