"""Digests of a template and a tokenizer: two that can produce different tokens never have the same digest.

`template_fingerprint` covers what a template renders; `tokenization_fingerprint` covers everything that can change
tokens and masks, including code.
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
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from harness.data.tokenization.rendering import Rendering, render_messages
from harness.data.tokenization.special_tokens import special_token_guard
from harness.errors import ComponentError, HarnessError
from harness.interfaces.guard import IDENTITY_ATTRIBUTE
from harness.interfaces.template import Template
from harness.types import Message, Plan, ToolCall
from harness.utils.json_depth import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINGERPRINTED_LIBRARIES = ("harness-sft", "tokenizers", "transformers", "jinja2")
"""Distributions whose versions are part of a tokenization fingerprint."""

FINGERPRINTED_MODULES = ("types", "data.tokenization.tokenize")
"""Modules of harness whose code is part of it, with the modules of `data` that they import. Between two releases the
version does not change."""

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
"""The conversations that a template's fingerprint renders, with tools and without."""


def template_fingerprint(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256, in hex, of what a template renders for conversations of every shape, masks included.

    A shape that the format does not support counts as refused. Templates that render alike have equal fingerprints.
    """
    renderings: list[object] = []
    for tools in ((), (_EXAMPLE_TOOL,)):
        for conversation in CANONICAL_CONVERSATIONS:
            for is_prompt, messages in ((False, conversation), (True, conversation[:-1])):
                try:
                    rendering = Rendering.from_spans(
                        render_messages(template, messages, tokenizer, add_generation_prompt=is_prompt, tools=tools)
                    )
                except ComponentError:
                    raise
                except HarnessError:
                    renderings.append("refused")
                    continue
                # Nothing in a prompt is trained, whatever its spans say.
                trained_spans = [] if is_prompt else rendering.trained_spans
                renderings.append([rendering.text, rendering.markup_spans, trained_spans])
    return hashlib.sha256(json.dumps(renderings, ensure_ascii=False).encode()).hexdigest()


class NotFingerprintable(Exception):
    """A template holds a value that cannot be compared between runs. The message describes the value."""


def tokenization_fingerprint(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256, in hex, of everything that can change a row's tokens and mask, except the row.

    It covers the template's class, options and code (with the modules of its package that it imports), what the
    template renders, the tokenizer with its special tokens and chat template, and library versions.

    Raises:
        NotFingerprintable: When the template holds a value of an unknown type, or its code is not in a file.
    """
    template_class = type(template)
    parts = [
        [importlib.metadata.version(name) for name in FINGERPRINTED_LIBRARIES],
        sorted(module_digests((f"harness.{name}" for name in FINGERPRINTED_MODULES), within="harness.data.")),
        [template_class.__module__, template_class.__qualname__],
        _option_value(_options_of(template), template_class.__module__),
        sorted(module_digests(base.__module__ for base in template_class.__mro__ if base not in Template.__mro__)),
        _chat_template_source(template, tokenizer),
        template_fingerprint(template, tokenizer),
        _tokenizer_state(tokenizer),
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _options_of(template: Template) -> dict[str, object]:
    return {name: value for name, value in vars(template).items() if name != IDENTITY_ATTRIBUTE}


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    guard = special_token_guard(tokenizer)
    tokens = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token]
    special = sorted((index, str(token), token.special) for index, token in tokenizer.added_tokens_decoder.items())
    return [guard.backend_digest, tokens, special, guard.bos_prefix, repr(tokenizer.chat_template)]


def _chat_template_source(template: Template, tokenizer: PreTrainedTokenizerBase) -> str | None:
    source: Callable[[PreTrainedTokenizerBase], object] | None = getattr(template, "get_chat_template", None)
    try:
        return str(source(tokenizer)) if callable(source) else None
    except HarnessError:
        return None


def _option_value(value: object, module: str) -> object:
    """Return an option's value as JSON; only equal values have equal JSON.

    Weak containers cache results for live objects and are not options.

    Args:
        value: The value.
        module: The template's module. Objects of classes in its package are compared by their attributes.

    Raises:
        NotFingerprintable: For a value of an unknown type.
    """
    type_name = type(value).__qualname__
    if isinstance(value, (bool, int, float, str, bytes, complex, type(None), datetime.date, datetime.timedelta, Path)):
        return [type_name, repr(value)]
    if isinstance(value, (WeakSet, WeakKeyDictionary, WeakValueDictionary)):
        return [type_name]
    if isinstance(value, dict):
        pairs = [[_option_value(key, module), _option_value(item, module)] for key, item in value.items()]
        return [type_name, sorted(pairs, key=repr)]
    if isinstance(value, (list, tuple)):
        return [type_name, [_option_value(item, module) for item in value]]
    if isinstance(value, (set, frozenset)):
        return [type_name, sorted((_option_value(item, module) for item in value), key=repr)]
    if isinstance(value, re.Pattern):
        return [type_name, repr(value.pattern), value.flags]
    if inspect.isroutine(value) or inspect.isclass(value):
        defining_module = getattr(value, "__module__", None) or "builtins"
        is_builtin = defining_module in sys.builtin_module_names
        code = [] if is_builtin else sorted(module_digests([defining_module]))
        return [type_name, defining_module, value.__qualname__, code]
    is_of_package = _top_level_package(type(value).__module__) == _top_level_package(module)
    if hasattr(value, "__dict__") and (is_of_package or dataclasses.is_dataclass(value)):
        return [type(value).__module__, type_name, _option_value(vars(value), module)]
    raise NotFingerprintable(f"it holds a value of type {type_name}, which cannot be compared between runs")


def module_digests(names: Iterable[str], within: str | tuple[str, ...] = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of the code of modules, and of those of the same package that they import.

    Args:
        names: The modules.
        within: Follow only imports of modules whose names begin with this text, or one of these.

    Raises:
        NotFingerprintable: The code of a module is not in a file.
    """
    pending, seen = list(names), set()
    while pending:
        name = pending.pop()
        if name in seen or name == "builtins":
            continue
        seen.add(name)
        code, package = _read_module_code(name)
        yield name, hashlib.sha256(code).hexdigest()
        pending += [
            other for other in _imported_modules(code, package, _top_level_package(name)) if other.startswith(within)
        ]


@lru_cache(maxsize=256)
def _imported_modules(code: bytes, package: str, top_level: str) -> tuple[str, ...]:
    """Return the modules of the package `top_level` that some code imports. package: what relative imports refer to."""
    names: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(name for name in dict.fromkeys(names) if _top_level_package(name) == top_level and _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return _find_module_spec(name) is not None
    except (ImportError, ValueError):
        return False  # a name in a module, not a module


def _find_module_spec(name: str) -> ModuleSpec | None:
    """Return the spec of a module without importing its parents, as `importlib.util.find_spec` would."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    parent = name.rpartition(".")[0]
    if not parent:
        return importlib.util.find_spec(name)
    parent_spec = _find_module_spec(parent)
    if parent_spec is None or parent_spec.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, parent_spec.submodule_search_locations)


def _read_module_code(name: str) -> tuple[bytes, str]:
    """Return the code of a module, and the package to which its relative imports refer."""
    module = sys.modules.get(name)
    try:
        spec = _find_module_spec(name)
        file = getattr(module, "__file__", None) or (spec.origin if spec else None)
        return Path(str(file)).read_bytes(), (spec.parent if spec and spec.parent else name)
    except (OSError, AttributeError, ValueError):
        raise NotFingerprintable(f"the code of {name} is not in a file") from None


def _top_level_package(name: str) -> str:
    return name.partition(".")[0]


TEMPLATE_FILE = "template.json"
OTHER_TEMPLATE_HINT = 'or allow the difference with "checks": {"other_template": true}'


def save_template_fingerprint(folder: Path, plan: Plan, fingerprint: str, chat_template: str = "same") -> None:
    """Write the template's name, options and fingerprint into the folder of a model trained with it.

    Args:
        folder: The folder of the model.
        plan: The plan of the run.
        fingerprint: See `template_fingerprint`.
        chat_template: How the saved tokenizer's chat template renders: `turn_separators.compare_with_tokenizer`.
    """
    name, options = plan.template
    record = {"template": {name: dict(options)}, "fingerprint": fingerprint, "chat_template": chat_template}
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / TEMPLATE_FILE).write_text(text + "\n", encoding="utf-8")


def load_template_fingerprint(folder: Path) -> tuple[str, str] | None:
    """Return the name and the fingerprint of the template that a model was trained with.

    Args:
        folder: The model's folder.

    Returns:
        Name and fingerprint; None when the folder has no record.

    Raises:
        HarnessError: When the record cannot be read.
    """
    file = folder / TEMPLATE_FILE
    if not file.is_file():
        return None
    try:
        record: Any = load_json(file.read_text(encoding="utf-8"))
        (name,) = record["template"]
        return str(name), str(record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the record of the model's template cannot be read ({type(error).__name__})"
        raise HarnessError(str(file), what, "restore the file from the run that trained the model") from error


def template_mismatches(
    plan: Plan,
    template: Template,
    templates: Mapping[str, Template],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None,
    where: Callable[[tuple[str, ...]], str],
) -> Iterator[HarnessError]:
    """Yield an error for each template that renders differently from the training template.

    Args:
        plan: The plan.
        template: The training template.
        templates: Suite -> its own template.
        tokenizer: The model's tokenizer.
        folder: The folder of the model to train further; None: the model is not in a local folder.
        where: Path of a key -> its location in the spec.
    """
    fingerprint, name = template_fingerprint(template, tokenizer), plan.template[0]
    earlier = None if folder is None else load_template_fingerprint(folder)
    if earlier is not None and earlier[1] != fingerprint:
        what = f"the model was trained with the template {earlier[0]!r}, "
        what += f"and {_describe_template(name, earlier[0])} renders differently"
        yield HarnessError(where(("template",)), what, f"continue with the model's template, {OTHER_TEMPLATE_HINT}")
    for suite in plan.suites:
        if suite.template is not None and template_fingerprint(templates[suite.name], tokenizer) != fingerprint:
            what = f"{_describe_template(suite.template[0], name)} renders differently from the training template "
            what += repr(name)
            yield HarnessError(
                where(("evaluate", suite.name, "template")), what, f"remove this key, {OTHER_TEMPLATE_HINT}"
            )


def _describe_template(name: str, other: str) -> str:
    return f"this spec's {name!r}" if name == other else repr(name)
