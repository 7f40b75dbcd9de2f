"""Validate a spec document against the schema, and phrase each error as a sentence with location and remedy."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

from harness.errors import HarnessError
from harness.registry import BrokenPlugin, ambiguous_name_error
from harness.spec.json_locations import JsonPath, LocatedJson
from harness.spec.schema import Schema
from harness.spec_keys import evaluation
from harness.utils.data_suffixes import SOURCE_OF_SUFFIX
from harness.utils.formatting import shorten_text

MAX_PLACES = 3
MAX_SHAPE_CHARS = 160
NO_SHAPE: Any = object()
"""No value; None is one."""

MAX_ECHO, MAX_MESSAGE = 60, 200
"""Characters of a key, and of a message of jsonschema, which repeats the value, that errors show."""

PEER_KEYS: Mapping[str, str] = {
    name: key
    for key, names in {
        "model.path": "model_name model_name_or_path base_model pretrained_model_name_or_path",
        "output": "output_dir save_path",
        "sources": "dataset datasets dataset_name train_dataset data",
        "track": "report_to wandb_project",
        "train.learning_rate": "lr",
        "train.batch_size": "per_device_train_batch_size micro_batch_size train_batch_size",
        "train.accumulation": "gradient_accumulation_steps grad_accum_steps",
        "train.epochs": "num_train_epochs num_epochs",
        "train.steps": "max_steps num_steps",
        "train.max_length": "max_seq_length max_seq_len cutoff_len sequence_len model_max_length seq_length",
        "train.scheduler": "lr_scheduler lr_scheduler_type lr_decay_style",
        "train.warmup_ratio": "warmup",
        "train.optimizer": "optim optimizer_type",
        "train.max_grad_norm": "gradient_clipping clip_grad grad_clip",
        "train.precision": "bf16 fp16 torch_dtype dtype mixed_precision compute_type",
        "train.packing": "sample_packing use_packing",
        "train.gradient_checkpointing": "activation_checkpointing recompute",
        "train.offload_activations": "activation_offloading use_unsloth_gc",
        "train.compile": "torch_compile use_torch_compile",
        "train.log_steps": "logging_steps",
        "train.save_limit": "save_total_limit",
        "train.evaluate_steps": "eval_steps",
        "model.attention": "attn_implementation flash_attn flash_attention",
        "mitigations.lora.rank": "r lora_r lora_rank",
        "mitigations.lora.alpha": "lora_alpha",
        "mitigations.lora.dropout": "lora_dropout",
        "mitigations.lora.target": "target_modules lora_target lora_target_modules",
        "mitigations.lora": "peft_config lora_config adapter finetuning_type peft",
    }.items()
    for name in names.split()
}
"""Key of TRL, peft, LLaMA-Factory or axolotl -> key of a spec."""


def find_schema_errors(
    document: Any, schema: Schema, located_json: LocatedJson, broken_plugins: Sequence[BrokenPlugin] = ()
) -> list[HarnessError]:
    """Return everything that is wrong with a document, in the order of the file.

    Args:
        document: The document, with shorthands expanded.
        schema: The composed schema.
        located_json: The file, for line and column.
        broken_plugins: Plugins that failed to load. An error about an unknown component names them.
    """
    errors = {
        str(error): error
        for schema_error in jsonschema.Draft7Validator(schema).iter_errors(document)
        for error in _explain_error(schema_error, located_json, broken_plugins, schema)
    }
    return sorted(errors.values(), key=_error_position)


def _error_position(error: HarnessError) -> tuple[str, int, int]:
    """Return file, line and column of an error; of a spec with several files they differ in the file."""
    match = _LOCATION.match(error.where)
    assert match is not None, error.where
    return match[1], int(match[2]), int(match[3])


_LOCATION = re.compile(r"(.*?):(\d+):(\d+)(?: |$)")


def _explain_error(
    error: ValidationError, located_json: LocatedJson, broken_plugins: Sequence[BrokenPlugin], root: Schema
) -> Iterator[HarnessError]:
    path: JsonPath = tuple(error.absolute_path)
    key = ".".join(shorten_text(str(step), MAX_ECHO) for step in path) or "spec"
    value: Any = error.instance
    expected: Any = error.validator_value
    schema: Schema = error.schema if isinstance(error.schema, dict) else {}

    def build_error(what: str, hint: str, at: JsonPath = path) -> HarnessError:
        return HarnessError(f"{located_json.where(at)} {key}", what, hint)

    match error.validator:
        case "additionalProperties":
            known = [name for name in schema.get("properties", {}) if name not in schema.get("aliases", {})]
            for name in sorted(set(value) - set(schema.get("properties", {}))):
                if name in schema.get("ambiguous", {}):
                    yield build_error(*ambiguous_name_error(name, schema["ambiguous"][name]), (*path, name))
                    continue
                shown = shorten_text(name, MAX_ECHO)
                what, noun = f"unknown key {shown!r}", "known"
                if "slot" in schema:
                    what, noun = f"no plugin provides {shown!r}", "installed"
                hint = _hint_for_file_name(name, schema) or hint_for_unknown_key(name, known, path, root)
                hint = hint or f"{noun}: {', '.join(sorted(known)) or 'none'}"
                if "aliases" in schema and broken_plugins:
                    hint += f"; a plugin that may provide it failed to load: {', '.join(map(str, broken_plugins))}"
                yield build_error(what, hint, (*path, name))
        case "required":
            for name in expected:
                if name not in value:
                    yield build_error(
                        f"the key {name!r} is missing", f"add it: {_first_sentence(schema['properties'].get(name, {}))}"
                    )
        case "type":
            names = " or ".join(expected) if isinstance(expected, list) else expected
            article = "an" if names[0] in "aeio" else "a"
            shape = _value_in_shape(value, schema)
            hint = f"write {article} {names}" if shape is NO_SHAPE else f"write {_shorten_json(shape, MAX_SHAPE_CHARS)}"
            example = _example_of_type(schema) if shape is NO_SHAPE else NO_SHAPE
            hint += "" if example is NO_SHAPE else f", e.g. {_shorten_json(example, MAX_SHAPE_CHARS)}"
            yield build_error(f"{_shorten_json(value)} is not {article} {names}", f"{hint}: {_first_sentence(schema)}")
        case "enum":
            near = get_close_matches(str(value), [str(choice) for choice in expected], 1)
            allowed = ", ".join(_shorten_json(choice) for choice in expected)
            yield build_error(
                f"{_shorten_json(value)} is not one of: {allowed}", f"did you mean {near[0]!r}?" if near else ""
            )
        case "minProperties" | "maxProperties" if "slot" in schema or "additionalProperties" in schema:
            names = ", ".join(sorted(set(schema.get("properties", {})) - set(schema.get("aliases", {}))))
            what = "nothing is given" if not value else f"{len(value)} are given, but only one is allowed"
            yield build_error(what, f"choose one of: {names}" if names else "add at least one")
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            words = {
                "minimum": "at least",
                "exclusiveMinimum": "above",
                "maximum": "at most",
                "exclusiveMaximum": "below",
            }
            what = f"{_shorten_json(value)} is out of range"
            yield build_error(what, f"it must be {words[error.validator]} {expected}")
        case "pattern" if expected == evaluation.NAME_PATTERN:
            yield build_error(
                f"{_shorten_json(value)} is not a valid name",
                f"use at most {evaluation.MAX_NAME_LENGTH} letters, digits, dots, dashes and underscores",
            )
        case "anyOf" if all("required" in branch for branch in schema["anyOf"]):
            keys = " or ".join(repr(name) for branch in schema["anyOf"] for name in branch["required"])
            yield build_error(f"one of the keys {keys} is missing", "add it")
        case "minItems" if not value:
            yield build_error("the list is empty", "name at least one")
        case _:
            yield build_error(shorten_text(error.message, MAX_MESSAGE), _first_sentence(schema))


def _first_sentence(schema: Schema) -> str:
    """Return the first sentence of a schema's description."""
    sentence = re.split(r"(?<!e\.g)\. ", schema.get("description", "see `harness schema`"), maxsplit=1)[0]
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _shorten_json(value: Any, length: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _value_in_shape(value: Any, schema: Schema) -> Any:
    """Return what the user probably meant, in the type that the schema requires; NO_SHAPE if that is not clear."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = [value] if isinstance(value, str) else value
    is_list_of_names = isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)
    if value is False and "null" in types:
        return None
    if isinstance(value, str) and {"number", "integer"} & {*types}:
        with contextlib.suppress(ValueError):
            number = float(value)
            if math.isfinite(number) and ("number" in types or number.is_integer()):
                return int(number) if number.is_integer() else number
    if "object" in types and is_list_of_names:
        if "slot" in schema and all(name in schema.get("properties", {}) for name in names):
            return {name: {} for name in names}
        required = schema.get("required", ())
        if isinstance(value, str) and len(required) == 1:
            return {required[0]: value}
    if "array" in types and isinstance(value, str | int | float | dict) and not isinstance(value, bool):
        return [value]
    return NO_SHAPE


def _example_of_type(schema: Schema) -> Any:
    """Return the schema's first example in the long form, which has the required type; NO_SHAPE if it has none."""
    examples = (example for example in schema.get("examples", ()) if not isinstance(example, str))
    return next(examples, NO_SHAPE)


def _hint_for_file_name(name: str, schema: Schema) -> str:
    """Return how to write a source that is given as the name of a file; "" for any other name."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    source = SOURCE_OF_SUFFIX.get(f".{suffix}", suffix)
    if source and "path" in schema.get("properties", {}).get(source, {}).get("properties", {}):
        return f"write {json.dumps({source: {'path': name}}, ensure_ascii=False)}"
    return ""


def hint_for_unknown_key(name: str, known: Sequence[str], path: Sequence[str | int], schema: Mapping[str, Any]) -> str:
    """Return what to type instead of a key, or what is allowed in its place.

    Args:
        name: The unknown key.
        known: The keys that are allowed in its place.
        path: Where it is in the document.
        schema: The composed schema of specs.
    """
    section = ".".join(map(str, path))
    if name in PEER_KEYS:
        place, _, key = PEER_KEYS[name].rpartition(".")
        return f"did you mean {key!r}?" if place == section else f"write it as {PEER_KEYS[name]}"
    places = [place for place in _places_of_key(name, schema) if place != section]
    below = [place for place in places if section and place.rpartition(".")[0] == section]
    if len(below) == 1:
        return f"write it as {below[0]}.{name}"
    near = get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    if 0 < len(places) <= MAX_PLACES:
        return f"{name!r} is a key of {' or '.join(place or 'the spec itself' for place in places)}: move it there"
    return ""


def _places_of_key(name: str, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield the objects of the spec that have the key, without those under names that the user chooses."""
    properties = schema.get("properties", {})
    if name in properties:
        yield place
    for key, option in properties.items():
        if isinstance(option, dict):
            yield from _places_of_key(name, option, f"{place}.{key}" if place else key)
