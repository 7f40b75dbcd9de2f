"""Count how many published configurations of other trainers a spec can express.

    python benchmarks/count_configs.py llamafactory LLaMA-Factory/examples axolotl axolotl/examples [--json FILE]

Each YAML file of the folders is imported as `harness import` does. A file is in scope if it trains a model on text by
supervised fine-tuning: not by preferences, rewards or reinforcement, not on plain text alone, images or audio. It can
be expressed if it is imported, no key of it is "not expressible", and the spec is valid. Prints Markdown; `--json`
also writes the entries of each file.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.drafting.foreign_config import read_config
from harness.drafting.import_config import import_config
from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec import schema, spec

TOOLS = ("llamafactory", "axolotl")
MODEL_KEYS = {"llamafactory": ("model_name_or_path", "model"), "axolotl": ("base_model",)}
DATA_KEYS = {"llamafactory": ("dataset", "train_dataset"), "axolotl": ("datasets",)}
MEDIA_KEYS = ("processor_type", "image_max_pixels", "image_size", "freeze_vision_tower", "freeze_mm_modules")
MEDIA_MODEL = re.compile(r"vision|audio|multimodal|vlm?[^a-z]|llava|pixtral|ocr|internvl|tts|orpheus", re.IGNORECASE)
MEDIA_COLUMNS = ("images", "videos", "audios")


@dataclass
class Counted:
    """A configuration file: why it is out of scope, else what blocks it.

    Attributes:
        tool: The trainer.
        file: The path below the folder.
        out_of_scope: Why it is not counted; "": it is.
        blocking: (key, why a spec cannot express it).
    """

    tool: str
    file: str
    out_of_scope: str = ""
    blocking: list[tuple[str, str]] = field(default_factory=list)


def find_dataset_info(file: Path) -> Path | None:
    """Return LLaMA-Factory's file of data above a configuration: data/dataset_info.json."""
    paths = (folder / "data" / "dataset_info.json" for folder in file.resolve().parents)
    return next((path for path in paths if path.is_file()), None)


def why_out_of_scope(tool: str, config: Mapping[str, Any], name: str, dataset_info: Path | None) -> str:
    """Return why a configuration is not supervised fine-tuning on text; "": it is."""
    if not any(config.get(key) for key in MODEL_KEYS[tool]):
        return "no training"
    if config.get("pretraining_dataset") or config.get("stage") == "pt":
        return "pretraining"
    other_stage = config.get("stage") not in (None, "sft")
    if other_stage or config.get("rl") or config.get("reward_model") or config.get("process_reward_model"):
        return "preferences, rewards or reinforcement"
    named = next((config[key] for key in DATA_KEYS[tool] if config.get(key)), None)
    if named is None or config.get("do_predict") or (tool == "llamafactory" and "preprocess" in name):
        return "no training"
    if isinstance(named, str) and re.search("dpo|kto", named):
        return "preferences, rewards or reinforcement"
    if any(config.get(key) for key in MEDIA_KEYS) or MEDIA_MODEL.search(f"{name} {named}"):
        return "images or audio"
    info = json.loads(dataset_info.read_text(encoding="utf-8")) if dataset_info and tool == "llamafactory" else {}
    for dataset in str(named).split(",") if info else ():
        if set(MEDIA_COLUMNS) & set(info.get(dataset.strip(), {}).get("columns", ())):
            return "images or audio"
    return ""


def count_file(tool: str, file: Path, name: str, spec_schema: Mapping[str, Any], folder: Path) -> Counted:
    """Import a file, and return what blocks it."""
    counted = Counted(tool, name)
    dataset_info = find_dataset_info(file) if tool == "llamafactory" else None
    try:
        counted.out_of_scope = why_out_of_scope(tool, read_config(file), name, dataset_info)
        if counted.out_of_scope:
            return counted
        imported = import_config(tool, file, dataset_info, folder)
        counted.blocking = list(imported.dropped)
        written = folder / "spec.json"
        written.write_text(json.dumps(imported.document), encoding="utf-8")
        spec.load_spec(written, spec_schema)
    except HarnessError as error:
        counted.blocking.append(("the file", error.what))
    return counted


def count_folder(tool: str, folder: Path) -> Iterator[Counted]:
    """Count the YAML files of a folder."""
    spec_schema = schema.compose_schema(discover_plugins())
    with tempfile.TemporaryDirectory() as specs:
        for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
            yield count_file(tool, file, file.relative_to(folder).as_posix(), spec_schema, Path(specs))


def key_of(entry: tuple[str, str]) -> str:
    """Return the key of an entry without the name of a data set; for a file, why it cannot be read."""
    key, why = entry
    if key == "the file":
        return why
    return re.sub(r"^(datasets?) \S+", r"\1", key)


def to_markdown(counted: list[Counted]) -> str:
    """Return a table of the trainers, one of what is out of scope, and one of the keys that block."""
    lines = ["| trainer | files | in scope | can be expressed | share |", "|---|---:|---:|---:|---:|"]
    tools = list(dict.fromkeys(file.tool for file in counted))
    for title, names in [(tool, [tool]) for tool in tools] + [("both", tools)] * (len(tools) > 1):
        files = [file for file in counted if file.tool in names]
        scope = [file for file in files if not file.out_of_scope]
        whole = sum(not file.blocking for file in scope)
        share = f"{whole / len(scope):.0%}" if scope else "-"
        lines.append(f"| {title} | {len(files)} | {len(scope)} | {whole} | {share} |")
    lines += ["", "| out of scope | files |", "|---|---:|"]
    reasons = Counter(file.out_of_scope for file in counted if file.out_of_scope)
    lines += [f"| {reason} | {number} |" for reason, number in reasons.most_common()]
    lines += ["", "| key that blocks | files | files that nothing else blocks |", "|---|---:|---:|"]
    blocked = [{key_of(entry) for entry in file.blocking} for file in counted if file.blocking]
    alone = Counter(key for keys in blocked if len(keys) == 1 for key in keys)
    for key, number in Counter(key for keys in blocked for key in sorted(keys)).most_common():
        lines.append(f"| `{key}` | {number} | {alone[key]} |")
    return "\n".join(lines)


def main() -> None:
    """Count the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="TRAINER FOLDER", help=f"{' or '.join(TOOLS)}, and a folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was counted for each file")
    arguments = parser.parse_args()
    tools, folders = arguments.folders[::2], arguments.folders[1::2]
    if len(tools) != len(folders) or set(tools) - set(TOOLS):
        parser.error(f"write {' or '.join(TOOLS)} before each folder")
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        parser.error(f"{missing[0]} is not a folder")
    counted = [file for tool, folder in zip(tools, folders, strict=True) for file in count_folder(tool, Path(folder))]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(file) for file in counted], indent=2) + "\n", encoding="utf-8")
    print(to_markdown(counted))


if __name__ == "__main__":
    main()
