"""What a template and a tokenizer are, as digests: two that may give other tokens never have the same.

`template_fingerprint` is of what a template writes; `tokenization_fingerprint` of all that can change what it writes,
its code included.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.rendering import Rendering, render_messages
from harness.data.tokenization.special_tokens import special_token_guard
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Message, Plan, ToolCall
from harness.utils.json_depth import load_json

FINGERPRINTED_LIBRARIES = ("harness-sft", "tokenizers", "transformers", "jinja2")
"""Distributions whose version is part of an identity."""

FINGERPRINTED_MODULES = ("types", "data.tokenization.tokenize")
"""Our own modules whose code is, and that of the other modules of `data` that they import: between two releases the
version says nothing."""

_EXAMPLE_TOOL = {
    "name": "depth",
    "description": "The depth of a river.",
    "parameters": {"type": "object", "properties": {}},
}
_USER, _ANSWER = Message("user", "Name a river."), Message("assistant", "The Elbe.\nIt is long.")
_TOOL_CALL = Message("assistant", "", tool_calls=(ToolCall("depth", {"river": "Elbe"}),))
_TOOL_RESULT = Message("tool", '{"metres": 3}', name="depth")
CANONICAL_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    (_USER, _ANSWER),
    (Message("user", "Sum up.", input="Two lines\nof text."), _ANSWER),
    (Message("system", "Be brief."), _USER, _ANSWER),
    (_USER, _ANSWER, Message("user", " 再说一条河。"), Message("assistant", "长江。 ")),
    (Message("system", "Be brief."), _USER, _ANSWER, _USER, _ANSWER),
    (_USER, _USER, _ANSWER),
    (_USER, dataclasses.replace(_ANSWER, train=False), _USER, _ANSWER),
    (_USER, _TOOL_CALL, _TOOL_RESULT, _ANSWER),
    (Message("system", "Be brief."), _USER, _TOOL_CALL, _TOOL_RESULT, _TOOL_RESULT, _ANSWER, _USER, _ANSWER),
)
"""The conversations whose renderings, with tools and without, make a template's fingerprint."""


def template_fingerprint(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256, in hex, of what the template renders for conversations of every shape, masks included.

    A shape that the format has no place for counts as refused. Two templates that render alike have one fingerprint.
    """
    found: list[object] = []
    for tools in ((), (_EXAMPLE_TOOL,)):
        for messages in CANONICAL_CONVERSATIONS:
            for open, part in ((False, messages), (True, messages[:-1])):
                try:
                    one = Rendering.from_spans(
                        render_messages(template, part, tokenizer, add_generation_prompt=open, tools=tools)
                    )
                except HarnessError:
                    found.append("refused")
                    continue
                # Nothing is trained on an open conversation, whatever its spans say.
                found.append([one.text, one.markup_spans, [] if open else one.trained_spans])
    return hashlib.sha256(json.dumps(found, ensure_ascii=False).encode()).hexdigest()


class NotFingerprintable(Exception):
    """A template holds something that cannot be told apart from another thing like it. Its text says what."""


def tokenization_fingerprint(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256, in hex, of all that can change a row's tokens and mask, except the row.

    The template's class, options and code (of the modules of its own package that it uses), what it renders, the
    tokenizer with its special tokens and chat template, and the libraries' versions.
    Raises Unidentified when the template keeps something of an unknown kind or its code has no file.
    """
    kind = type(template)
    about = [
        [importlib.metadata.version(name) for name in FINGERPRINTED_LIBRARIES],
        sorted(_module_digests((f"harness.{name}" for name in FINGERPRINTED_MODULES), within="harness.data.")),
        [kind.__module__, kind.__qualname__],
        _option_value(vars(template), kind.__module__),
        sorted(_module_digests(base.__module__ for base in kind.__mro__ if base not in (Template, object))),
        _chat_template_source(template, tokenizer),
        template_fingerprint(template, tokenizer),
        _tokenizer_state(tokenizer),
    ]
    return hashlib.sha256(json.dumps(about, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    own = special_token_guard(tokenizer)
    own.reset_backend()  # the text of a tokenizer tells of a truncation that another call left on
    text = tokenizer.backend_tokenizer.to_str()
    tokens = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token]
    special = sorted((index, str(token), token.special) for index, token in tokenizer.added_tokens_decoder.items())
    return [hashlib.sha256(text.encode()).hexdigest(), tokens, special, own.bos_prefix, repr(tokenizer.chat_template)]


def _chat_template_source(template: Template, tokenizer: PreTrainedTokenizerBase) -> str | None:
    source: Callable[[PreTrainedTokenizerBase], object] | None = getattr(template, "get_chat_template", None)
    try:
        return str(source(tokenizer)) if callable(source) else None
    except HarnessError:
        return None


def _option_value(value: object, module: str) -> object:
    """A value of an option as JSON, of which equal ones alone are equal. module: of the template, whose own it may be.

    Weak containers remember what was found for live objects; they are no options.
    """
    kind = type(value).__qualname__
    if isinstance(value, (bool, int, float, str, bytes, complex, type(None), datetime.date, datetime.timedelta, Path)):
        return [kind, repr(value)]
    if isinstance(value, (WeakSet, WeakKeyDictionary, WeakValueDictionary)):
        return [kind]
    if isinstance(value, dict):
        pairs = [[_option_value(key, module), _option_value(one, module)] for key, one in value.items()]
        return [kind, sorted(pairs, key=repr)]
    if isinstance(value, (list, tuple)):
        return [kind, [_option_value(one, module) for one in value]]
    if isinstance(value, (set, frozenset)):
        return [kind, sorted((_option_value(one, module) for one in value), key=repr)]
    if isinstance(value, re.Pattern):
        return [kind, repr(value.pattern), value.flags]
    if inspect.isroutine(value) or inspect.isclass(value):
        home = getattr(value, "__module__", None) or "builtins"
        code = [] if home in sys.builtin_module_names else sorted(_module_digests([home]))
        return [kind, home, value.__qualname__, code]
    own = _top_level_package(type(value).__module__) == _top_level_package(module)
    if hasattr(value, "__dict__") and (own or dataclasses.is_dataclass(value)):
        return [type(value).__module__, kind, _option_value(vars(value), module)]
    raise NotFingerprintable(f"it holds a {kind}, of which nobody can tell whether it is the same again")


def _module_digests(names: Iterable[str], within: str = "") -> Iterator[tuple[str, str]]:
    """(name, digest of its code) of these modules, and of those of the same packages that they import.

    within: follow only imports of modules whose names begin so.
    """
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen or name == "builtins":
            continue
        seen.add(name)
        code, folder = _read_module_code(name)
        yield name, hashlib.sha256(code).hexdigest()
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), folder)
                found = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            else:
                continue
            near = (
                one for one in found if _top_level_package(one) == _top_level_package(name) and one.startswith(within)
            )
            waiting += [one for one in near if _is_module(one)]


def _is_module(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False  # a name in a module, not one itself


def _read_module_code(name: str) -> tuple[bytes, str]:
    """The code of a module, and the package that its relative imports start from."""
    module = sys.modules.get(name)
    try:
        spec = module.__spec__ if module is not None else importlib.util.find_spec(name)
        file = getattr(module, "__file__", None) or (spec.origin if spec else None)
        return Path(str(file)).read_bytes(), (spec.parent if spec and spec.parent else name)
    except (OSError, AttributeError, ValueError):
        raise NotFingerprintable(f"the code of {name} is in no file") from None


def _top_level_package(name: str) -> str:
    return name.partition(".")[0]


TEMPLATE_FILE = "template.json"
OTHER_TEMPLATE_HINT = 'or say that this is meant: "checks": {"other_template": true}'


def save_template_fingerprint(folder: Path, plan: Plan, fingerprint: str) -> None:
    """Write the template's name, options and fingerprint into the folder of a model that was trained with it."""
    name, options = plan.template
    text = json.dumps({"template": {name: dict(options)}, "fingerprint": fingerprint}, indent=2, ensure_ascii=False)
    (folder / TEMPLATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_template_fingerprint(folder: Path) -> tuple[str, str] | None:
    """The name and the fingerprint of the template that a model's folder was trained with; None where none is told.

    Raises HarnessError when there is a record that cannot be read.
    """
    file = folder / TEMPLATE_FILE
    if not file.is_file():
        return None
    try:
        told: Any = load_json(file.read_text(encoding="utf-8"))
        (name,) = told["template"]
        return str(name), str(told["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the record of the model's template cannot be read ({type(error).__name__})"
        raise HarnessError(str(file), what, "restore the file; without it nobody knows the template") from error


def template_mismatches(
    plan: Plan,
    template: Template,
    templates: Mapping[str, Template],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None,
    where: Callable[[tuple[str, ...]], str],
) -> Iterator[HarnessError]:
    """Each place where a template renders otherwise than that of training.

    templates: suite -> its own template. folder: of the model that is trained further; None: it is no local folder.
    where: path of a key -> where the spec has it.
    """
    own, name = template_fingerprint(template, tokenizer), plan.template[0]
    before = None if folder is None else load_template_fingerprint(folder)
    if before is not None and before[1] != own:
        what = f"the model was trained with the template {before[0]!r}, "
        what += f"and {_describe_template(name, before[0])} renders otherwise"
        yield HarnessError(
            where(("template",)), what, f"train on with the template that it knows, {OTHER_TEMPLATE_HINT}"
        )
    for suite in plan.suites:
        if suite.template is not None and template_fingerprint(templates[suite.name], tokenizer) != own:
            what = f"{_describe_template(suite.template[0], name)} renders otherwise than {name!r}, "
            what += "with which the model is trained"
            yield HarnessError(
                where(("evaluate", suite.name, "template")), what, f"leave it out, {OTHER_TEMPLATE_HINT}"
            )


def _describe_template(name: str, other: str) -> str:
    return f"this spec's {name!r}" if name == other else repr(name)
