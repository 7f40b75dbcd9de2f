"""The data of another trainer's configuration as sources of a spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.drafting import foreign_values
from harness.drafting.foreign_hugging_face import SPLIT
from harness.drafting.foreign_values import NotConvertible, is_off
from harness.drafting.imported_spec import ImportedSpec
from harness.drafting.relative_path import relative_path
from harness.errors import HarnessError
from harness.spec.json_locations import parse_json

HELD_OUT = 0.1
SOURCE_OF_SUFFIX = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
DATA_KEYS = {"llamafactory": "dataset", "axolotl": "datasets", "ms-swift": "dataset", "trl": "dataset_name"}


def import_data(
    tool: str,
    config: Mapping[str, Any],
    file: Path,
    dataset_info: Path | Mapping[str, Any] | None,
    imported: ImportedSpec,
) -> None:
    """Set the sources, the mode and the suites from the data that a configuration names.

    Raises:
        HarnessError: The data is not named, or what names it cannot be read.
    """
    key = DATA_KEYS[tool]
    named = config.get(key)
    if not named:
        raise HarnessError(str(file), f"names no data: it has no {key!r}", "check the first argument")
    entries = _entries(named, key)
    info, info_folder = _read_dataset_info(config, file, dataset_info) if tool == "llamafactory" else ({}, file.parent)
    share = _held_out_share(tool, config, imported)
    limit = _max_samples(tool, config, imported)
    sources: dict[str, Any] = {}
    for entry in entries:
        if tool == "llamafactory":
            name, source = _llama_factory_source(str(entry), info, info_folder, imported)
        elif tool == "axolotl":
            name, source = _axolotl_source(entry, imported)
        elif tool == "ms-swift":
            name, source = _swift_source(str(entry), imported)
        else:
            name, source = _trl_source(str(entry), config, imported)
        ((kind, options),) = source.items()
        if limit:
            options |= {"limit": limit, "shuffle": False}
        if config.get("mask_history"):
            options["train_on"] = "last"
        sources[_unique(name, sources)] = {kind: {**options, "held_out": share}}
    if limit:
        imported.carried.append(("max_samples", "limit and shuffle: false, since it takes the first rows"))
    if config.get("mask_history"):
        imported.carried.append(("mask_history", "train_on: last"))
    imported.carried.append((key, f"sources: {', '.join(sources)}"))
    imported.document["sources"] = sources
    imported.document["mode"] = {"domain": {"sources": list(sources)}}
    imported.document["evaluate"] = {name: {"source": name, "metrics": {"response_perplexity": {}}} for name in sources}
    _import_early_stopping(config, imported)


def _import_early_stopping(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Stop a stage when the loss on held-out rows no longer improves."""
    key = "early_stopping_patience"
    if is_off(config.get(key)):
        return
    train = imported.document.setdefault("train", {})
    try:
        patience = foreign_values.to_count(config[key])
        if not train.get("evaluate_steps") and not train.get("evaluate_epochs"):
            raise NotConvertible("there is no evaluation within an epoch that could stop training")
    except NotConvertible as error:
        imported.dropped.append((key, str(error)))
        return
    scores = {f"{suite}/response_nll": 1.0 for suite in imported.document["evaluate"]}
    train["early_stopping"] = {"scores": scores, "patience": patience}
    imported.carried.append((key, "train.early_stopping on the held-out rows"))


def _entries(named: Any, key: str) -> list[Any]:
    if isinstance(named, str):
        return [part.strip() for part in named.split(",") if part.strip()]
    if isinstance(named, list):
        return named
    raise HarnessError(key, "is neither a name nor a list of names", "name the data as its trainer does")


def _max_samples(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> int | None:
    """Return LLaMA-Factory's number of rows of each data set; None if there is none."""
    if tool != "llamafactory" or not config.get("max_samples"):
        return None
    try:
        return foreign_values.to_count(config["max_samples"])
    except NotConvertible as error:
        imported.dropped.append(("max_samples", str(error)))
        return None


def _held_out_share(tool: str, config: Mapping[str, Any], imported: ImportedSpec) -> float:
    key = {"llamafactory": "val_size", "axolotl": "val_set_size", "ms-swift": "split_dataset_ratio"}.get(tool, "")
    try:
        share = foreign_values.to_share(config.get(key) or 0)
    except NotConvertible as error:
        imported.dropped.append((key, str(error)))
        share = 0.0
    if share:
        imported.changed.append((key, f"held_out: {SPLIT}"))
        return share
    imported.changed.append(("no rows for validation", f"held_out {HELD_OUT:g}: what is learned is measured on them"))
    return HELD_OUT


def _read_dataset_info(
    config: Mapping[str, Any], file: Path, dataset_info: Path | Mapping[str, Any] | None
) -> tuple[Mapping[str, Any], Path]:
    if isinstance(dataset_info, Mapping):
        return dataset_info, Path()
    if dataset_info is None:
        folder = Path(str(config.get("dataset_dir") or "data"))
        candidates = [folder, file.parent / folder, file.parent]
        dataset_info = next(
            (path / "dataset_info.json" for path in candidates if (path / "dataset_info.json").is_file()), None
        )
        if dataset_info is None:
            hint = f"harness import llamafactory {file} path/to/dataset_info.json"
            raise HarnessError(str(file), "its data sets are named in a dataset_info.json, which was not found", hint)
    return _load_dataset_info(dataset_info), dataset_info.parent


def _load_dataset_info(file: Path) -> Mapping[str, Any]:
    if file.is_dir():
        raise HarnessError(str(file), "is a folder", f"name the file: {file / 'dataset_info.json'}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(str(file), f"cannot be read: {error}", "name LLaMA-Factory's dataset_info.json") from error
    info = parse_json(text, str(file)).value
    if not isinstance(info, dict):
        raise HarnessError(f"{file}:1:1", "is not an object of data sets", 'write {"NAME": {"file_name": "FILE"}}')
    return info


def _mapping(entry: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = entry.get(key) or {}
    if not isinstance(value, Mapping):
        raise HarnessError(f"{where}: {key}", "is not an object", "write KEY: VALUE pairs")
    return value


def _llama_factory_source(
    name: str, info: Mapping[str, Any], folder: Path, imported: ImportedSpec
) -> tuple[str, dict[str, Any]]:
    entry = info.get(name)
    if not isinstance(entry, dict):
        raise HarnessError(f"dataset {name}", "is not in dataset_info.json", "name another dataset_info.json")
    if entry.get("ranking"):
        imported.dropped.append((f"dataset {name}", "it has pairs of a chosen and a rejected answer"))
    options: dict[str, Any] = {}
    columns, tags = (_mapping(entry, key, f"dataset {name}") for key in ("columns", "tags"))
    sharegpt = entry.get("formatting") == "sharegpt"
    standard = (
        {"messages": "messages", "system": "system", "tools": "tools"}
        if sharegpt
        else {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    )
    if sharegpt:
        options["form"] = "messages"
        columns = {"messages": "conversations", **columns}
    mapping = {standard[key]: column for key, column in columns.items() if key in standard and column != standard[key]}
    mapping |= {part: tags[f"{part}_tag"] for part in ("role", "content") if f"{part}_tag" in tags}
    if mapping:
        options["columns"] = mapping
    roles = {str(tags[f"{role}_tag"]): role for role in ("user", "assistant", "system") if f"{role}_tag" in tags}
    roles |= {
        str(tags[key]): role
        for key, role in (("observation_tag", "tool"), ("function_tag", "function_call"))
        if key in tags
    }
    if roles:
        options["roles"] = roles
    for key in ("images", "videos", "audios"):
        if key in columns:
            imported.dropped.append((f"dataset {name}: {key}", "only texts are trained"))
    if entry.get("num_samples"):
        options["limit"] = foreign_values.to_count(entry["num_samples"])
    if entry.get("weight"):
        imported.dropped.append((f"dataset {name}: weight", "shares are set by mitigations.mixing, in trained tokens"))
    if hub := entry.get("hf_hub_url"):
        if entry.get("subset"):
            options["config"] = entry["subset"]
        return name, {"hub": {"name": hub, **({"split": entry["split"]} if entry.get("split") else {}), **options}}
    if not entry.get("file_name"):
        imported.dropped.append((f"dataset {name}", "it is neither a file nor a data set of the Hugging Face hub"))
    return name, _file_source(str(folder / str(entry.get("file_name", name))), options, imported)


REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message whose text is read as reasoning."""
_AXOLOTL_ENTRY_KEYS = (
    *("path", "type", "name", "split", "data_files", "ds_type", "field", "field_messages", "roles"),
    *("message_property_mappings", "message_field_role", "message_field_content", "drop_system_message"),
)
_TRAINED = "the loss is on every response and its end of turn"
_AXOLOTL_ENTRY_REASONS = {
    **dict.fromkeys(("shards", "conversation", "roles_to_train", "train_on_eos", "train_on_eot"), _TRAINED),
    "field_thinking": f"reasoning is read from {', '.join(REASONING_KEYS)}",
}


def _axolotl_source(entry: Any, imported: ImportedSpec) -> tuple[str, dict[str, Any]]:
    if not isinstance(entry, Mapping) or "path" not in entry:
        raise HarnessError("datasets", "an entry has no path", "write - path: ORG/NAME")
    path, kind = str(entry["path"]), entry.get("type")
    options: dict[str, Any] = {}
    forms = {
        "alpaca": "alpaca",
        "completion": "text",
        "sharegpt": "sharegpt",
        "chat_template": "messages",
        None: "auto",
    }
    if isinstance(kind, str | None) and str(kind or "").partition(".")[0] in ("", *filter(None, forms)):
        form = forms[str(kind).partition(".")[0] if kind else None]
        options |= {} if form == "auto" else {"form": form}
    else:
        imported.dropped.append(
            (f"datasets {path}: type", f"the prompt strategy {kind!r} is not known: set form and columns")
        )
    mapping = {"messages": entry["field_messages"]} if entry.get("field_messages") else {}
    properties = _mapping(entry, "message_property_mappings", f"datasets {path}")
    parts = {part: properties.get(part) or entry.get(f"message_field_{part}") for part in ("role", "content")}
    mapping |= {part: column for part, column in parts.items() if column}
    if entry.get("field") and options.get("form") == "text":
        mapping["text"] = entry["field"]
    if mapping:
        options["columns"] = mapping
    if entry.get("drop_system_message"):
        options["system"] = "drop"
    roles = _mapping(entry, "roles", f"datasets {path}")
    names = {
        str(name): role for role, given in roles.items() for name in (given if isinstance(given, list) else [given])
    }
    if any(name != role for name, role in names.items()):
        options["roles"] = names
    for key, value in entry.items():
        if key in _AXOLOTL_ENTRY_KEYS or is_off(value):
            continue
        if key in ("field_thinking", "template_thinking_key") and value in REASONING_KEYS:
            continue
        imported.dropped.append((f"datasets {path}: {key}", _AXOLOTL_ENTRY_REASONS.get(key, "the key is not known")))
    name = Path(path).stem
    if entry.get("data_files"):
        return name, _file_source(entry["data_files"], options, imported)
    if Path(path).suffix in SOURCE_OF_SUFFIX:
        return name, _file_source(path, options, imported)
    options |= {"config": entry["name"]} if entry.get("name") else {}
    return name, {"hub": {"name": path, **({"split": entry["split"]} if entry.get("split") else {}), **options}}


def _swift_source(entry: str, imported: ImportedSpec) -> tuple[str, dict[str, Any]]:
    entry, _, count = entry.partition("#")
    entry, _, subset = entry.partition(":") if not Path(entry).suffix else (entry, "", "")
    options: dict[str, Any] = {"limit": int(count)} if count.isdigit() else {}
    name = Path(entry).stem
    if Path(entry).suffix in SOURCE_OF_SUFFIX:
        return name, _file_source(entry, options, imported)
    imported.changed.append(
        (f"dataset {entry}", "hub: a data set of ModelScope; the one of this name on the Hugging Face hub is read")
    )
    return name, {"hub": {"name": entry, **({"config": subset} if subset else {}), **options}}


def _trl_source(entry: str, config: Mapping[str, Any], imported: ImportedSpec) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {}
    if config.get("dataset_text_field") not in (None, "text"):
        options |= {"form": "text", "columns": {"text": config["dataset_text_field"]}}
    name = Path(entry).stem
    if Path(entry).suffix in SOURCE_OF_SUFFIX:
        return name, _file_source(entry, options, imported)
    options |= {"config": config["dataset_config"]} if config.get("dataset_config") else {}
    options |= {"split": config["dataset_train_split"]} if config.get("dataset_train_split") else {}
    return name, {"hub": {"name": entry, **options}}


def _file_source(named: Any, options: Mapping[str, Any], imported: ImportedSpec) -> dict[str, Any]:
    """Return the source of one or more files, with paths relative to the spec."""
    files = [str(file) for file in (named if isinstance(named, list) else [named])]
    paths = [relative_path(file, imported.folder) for file in files]
    kind = SOURCE_OF_SUFFIX.get(Path(files[0]).suffix, "jsonl")
    return {kind: {"path": paths if len(paths) > 1 else paths[0], **options}}


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "data"
    number = 2
    unique = name
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique
