"""The model card of a run: README.md beside its model, with front matter as model hubs read it.

It has the base model, the data by digest, the method, the scores with intervals, what was forgotten, and the spec. The
lines that load the model are those that were saved with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from harness.interfaces.exporter import LOADING_HEADING
from harness.model.model_config import cached_hub_folder
from harness.report.html.run_files import RunFiles, load_run_files
from harness.report.markdown import scores_table
from harness.report.verdict import build_verdict
from harness.utils.atomic_write import atomic_write
from harness.utils.find_run import RUN_SCHEME
from harness.utils.formatting import format_count
from harness.utils.markdown import escape_markdown, markdown_table
from harness.utils.redaction import redact
from harness.utils.shell_commands import harness_command

LICENSE_FIELDS = ("license", "license_name", "license_link")
"""Fields of a model card's front matter, as the hub reads them; the last two belong to the license `other`."""

FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
TEMPLATE_WARNING = "> **Warning**: "
DIGEST_LENGTH = 16
"""Hexadecimal digits of a digest that the card shows; data.json has all."""


def write_model_card(run: Path) -> Path | None:
    """Write `model/README.md` of a finished run again, with its results.

    Args:
        run: The folder of the run.

    Returns:
        The file; None if the run has no model.
    """
    file = run / "model" / "README.md"
    if not file.is_file():
        return None
    loading = _loading_section(file.read_text(encoding="utf-8"))
    text = "\n".join(_parts(load_run_files(run), run / "model", loading)).rstrip() + "\n"
    with atomic_write(file) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    return file


def _loading_section(text: str) -> str:
    """Return the lines that load the model, from the README that was saved with it or from an earlier card."""
    _, heading, rest = text.partition(LOADING_HEADING)
    if not heading:  # of an earlier version
        rest = f"\n\n{text.partition('Load the model:')[2].strip()}"
    lines = rest.partition("\n## ")[0].rstrip().splitlines()
    return "\n".join([LOADING_HEADING, *(line for line in lines[1:] if not line.startswith(TEMPLATE_WARNING))]).rstrip()


def _template_warning(run: RunFiles, model: Path) -> Iterator[str]:
    """Yield a warning if the saved tokenizer's chat template is not the one of the run.

    It is below the lines that load the model, which an export replaces: an export has the template of the run.
    """
    saved = _read_json(model / "template.json").get("chat_template")
    if saved not in ("other", "none"):
        return
    has = "keeps the chat template of the base model" if saved == "other" else "has no chat template"
    name = _code(", ".join(run.spec.get("template", {})))
    command = harness_command("export", run.folder.name, "--to", "merged")
    yield (
        f"{TEMPLATE_WARNING}the tokenizer in this folder {has}, and the run trained with {name}. "
        f"`apply_chat_template` does not render the prompts of the training. `{command}` writes a model with the chat "
        "template of the run.\n"
    )


def _parts(run: RunFiles, model: Path, loading: str) -> Iterator[str]:
    adapter = _read_json(model / "adapter_config.json")
    yield from _front_matter(run, adapter)
    yield f"# {escape_markdown(run.name)}\n"
    verdict = build_verdict(run.changes, run.gate, run.leaked_words)
    yield f"{escape_markdown(verdict.headline)}\n"
    if description := run.spec.get("description"):
        yield f"{escape_markdown(description)}\n"
    yield markdown_table(["", ""], list(_method_rows(run, adapter)), numbers_from=2)
    yield loading + "\n"
    yield from _template_warning(run, model)
    yield "## Scores\n"
    yield scores_table(run) if run.changes else "The run evaluated nothing.\n"
    yield "Intervals have 95 % confidence and are paired over the items. The base model answered the same items.\n"
    yield "## What was forgotten\n"
    for statement in verdict.statements:
        yield f"- {escape_markdown(statement.text)}"
    if run.leaked_words:
        words = ", ".join(f"{escape_markdown(word.word)} ({word.count:,})" for word in run.leaked_words)
        yield f"- words of the domain in general answers, which the base model did not use there: {words}"
    if not any(change.role == "general" for change in run.changes):
        yield "- not measured: the run has no suite with the role general"
    yield "\n## Data\n"
    header = ["source", "rows trained", "rows held out", "SHA-256"]
    yield markdown_table(header, list(_data_rows(run)), numbers_from=1)
    yield "## Licences\n"
    yield f"- base model: {_describe_license(_base_license(run, adapter))}"
    yield "- data: not known to the run; add the licences of the sources above\n"
    yield "## Spec\n"
    spec = json.dumps(redact(_without_folders(run.spec)), indent=2, ensure_ascii=False)
    yield f"<details><summary>The spec of the run, with defaults</summary>\n\n```json\n{spec}\n```\n\n</details>\n"
    versions = ", ".join(f"{name} {version}" for name, version in _versions(run))
    yield f"Made with {versions}."


def _front_matter(run: RunFiles, adapter: Mapping[str, Any]) -> Iterator[str]:
    base = _base_model(run)
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "harness-sft", *(["lora"] if adapter else [])],
    }
    if HUB_ID.fullmatch(base):
        fields["base_model"] = base
    fields |= _base_license(run, adapter)
    yield "---"
    for name in sorted(fields):
        yield f"{name}: {json.dumps(fields[name], ensure_ascii=False)}"
    yield "---\n"


def _method_rows(run: RunFiles, adapter: Mapping[str, Any]) -> Iterator[list[str]]:
    spec, train = run.spec, run.spec.get("train", {})
    digest = str(run.environment.get("model", {}).get("digest", ""))
    yield ["base model", f"{_code(_base_model(run))} {_code(_short_digest(digest))}"]
    yield ["result", "adapter of the base model" if adapter else "complete model"]
    yield ["template", _code(_compact(_without_nulls(spec.get("template", {}))))]
    yield ["mode", _code(", ".join(spec.get("mode", {})))]
    mitigations = spec.get("mitigations") or {}
    yield ["mitigations", _code(_compact(_without_nulls(mitigations))) if mitigations else "none"]
    settings = ("epochs", "steps", "learning_rate", "batch_size", "max_length", "precision")
    values = {key: train[key] for key in settings if train.get(key) is not None}
    if train.get("tf32") and run.environment.get("device", {}).get("kind") == "cuda":  # a CPU does not round
        values["precision"] = f"{train.get('precision', '')} with tf32"
    yield ["training", _code(_compact(values))]
    yield ["seed", str(spec.get("seed", ""))]


def _data_rows(run: RunFiles) -> Iterator[list[str]]:
    digests = run.data.get("digests", {})
    for name, counts in run.data.get("counts", {}).items():
        digest = digests.get(name)
        shown = f"`{str(digest)[:DIGEST_LENGTH]}…`" if digest else ""
        cells = [format_count(counts.get(key, 0)) for key in ("used", "held_out")]
        yield [escape_markdown(name), *cells, shown]


def _versions(run: RunFiles) -> Iterator[tuple[str, str]]:
    yield "harness-sft", str(run.environment.get("harness", ""))
    packages = run.environment.get("packages", {})
    for name in ("torch", "transformers", "peft"):
        if packages.get(name):
            yield name, packages[name]


def _base_model(run: RunFiles) -> str:
    """Return what the spec names as the model: a folder's or a file's name, or a hub id."""
    path = str(run.spec.get("model", {}).get("path", ""))
    return Path(path).name if path.startswith(("/", "~", ".")) else path.partition("#")[0]


def _base_license(run: RunFiles, adapter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `license` fields in the front matter of the base model's card; empty if it is not on this machine.

    The base model is what the spec names: the model of an earlier run, a local folder, or a model of the hub in the
    cache. A converted model (`pypi:`, `.gguf`) has no card.
    """
    settings = run.spec.get("model", {})
    path, revision = str(settings.get("path", "")), settings.get("revision")
    if path.startswith(RUN_SCHEME):
        folder = Path(path.removeprefix(RUN_SCHEME)) / "model"
    elif path.startswith(("/", "~")):
        folder = Path(path).expanduser()
    elif HUB_ID.fullmatch(path):
        folder = cached_hub_folder(path, adapter.get("revision") or revision)
    else:
        return {}
    front_matter = _read_front_matter(folder / "README.md")
    if not _is_text(front_matter.get("license")):
        return {}
    return {key: front_matter[key] for key in LICENSE_FIELDS if _is_text(front_matter.get(key))}


def _read_front_matter(file: Path) -> dict[str, Any]:
    """Return the YAML front matter of a Markdown file; empty if it has none or cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        match = FRONT_MATTER.match(text)
        fields = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_text(value: Any) -> bool:
    """Return whether a value of the front matter is a text or several; YAML also has dates, which JSON has not."""
    texts = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(text, str) for text in texts)


def _describe_license(fields: Mapping[str, Any]) -> str:
    """Return the license of the base model as text; `other` with its name."""
    if not fields:
        return "see the page of the base model"
    names = fields["license"] if isinstance(fields["license"], list) else [fields["license"]]
    more = [str(fields[key]) for key in LICENSE_FIELDS[1:] if key in fields]
    return escape_markdown(", ".join(map(str, names))) + (f" ({escape_markdown(', '.join(more))})" if more else "")


def _without_folders(value: Any) -> Any:
    """Return a value of a spec with absolute paths shortened to their names: a card may be published."""
    if isinstance(value, Mapping):
        return {key: _without_folders(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_folders(child) for child in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") and "\n" not in value else value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace('"', "")


def _code(text: str) -> str:
    """Return a text as code in the cell of a table."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`" if text.strip() else ""


def _short_digest(digest: str) -> str:
    return f"sha256 {digest[:DIGEST_LENGTH]}…" if re.fullmatch(r"[0-9a-f]{64}", digest) else digest


def _read_json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
