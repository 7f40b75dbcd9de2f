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

from harness.interfaces.exporter import LOADING_HEADING
from harness.report.html.run_files import RunFiles, load_run_files
from harness.report.markdown import scores_table
from harness.report.verdict import build_verdict
from harness.utils.atomic_write import atomic_write
from harness.utils.formatting import format_count
from harness.utils.markdown import escape_markdown, markdown_table
from harness.utils.redaction import redact

LICENSE_FIELD = re.compile(r"^license: *([\w.+-]+) *$", re.MULTILINE)
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
        draft.write_text(text, encoding="utf-8")
    return file


def _loading_section(text: str) -> str:
    """Return the lines that load the model, from the README that was saved with it or from an earlier card."""
    _, heading, rest = text.partition(LOADING_HEADING)
    if not heading:  # of an earlier version
        rest = f"\n\n{text.partition('Load the model:')[2].strip()}"
    return (LOADING_HEADING + rest.partition("\n## ")[0]).rstrip()


def _parts(run: RunFiles, model: Path, loading: str) -> Iterator[str]:
    adapter = _read_json(model / "adapter_config.json")
    yield from _front_matter(run, model, adapter)
    yield f"# {escape_markdown(run.name)}\n"
    verdict = build_verdict(run.changes, run.gate, run.leaked_words)
    yield f"{escape_markdown(verdict.headline)}\n"
    if description := run.spec.get("description"):
        yield f"{escape_markdown(description)}\n"
    yield markdown_table(["", ""], list(_method_rows(run, adapter)), numbers_from=2)
    yield loading + "\n"
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
    yield f"- base model: {_base_license(adapter, model) or 'see the page of the base model'}"
    yield "- data: not known to the run; add the licences of the sources above\n"
    yield "## Spec\n"
    spec = json.dumps(redact(_without_folders(run.spec)), indent=2, ensure_ascii=False)
    yield f"<details><summary>The spec of the run, with defaults</summary>\n\n```json\n{spec}\n```\n\n</details>\n"
    versions = ", ".join(f"{name} {version}" for name, version in _versions(run))
    yield f"Made with {versions}."


def _front_matter(run: RunFiles, model: Path, adapter: Mapping[str, Any]) -> Iterator[str]:
    base = _base_model(run)
    fields: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sft", "harness-sft", *(["lora"] if adapter else [])],
    }
    if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", base):
        fields["base_model"] = base
    if license_name := _base_license(adapter, model):
        fields["license"] = license_name
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
    yield ["training", _code(_compact({key: train[key] for key in settings if train.get(key) is not None}))]
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


def _base_license(adapter: Mapping[str, Any], model: Path) -> str | None:
    """Return the license that the model card of the base model names, if that is on this machine."""
    folder = Path(str(adapter.get("base_model_name_or_path", ""))) if adapter else model
    try:
        front_matter = (folder / "README.md").read_text(encoding="utf-8").partition("\n---")[0]
    except (OSError, UnicodeDecodeError):
        return None
    match = LICENSE_FIELD.search(front_matter) if front_matter.startswith("---") else None
    return match[1] if match else None


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
