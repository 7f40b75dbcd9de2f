"""What mkdocs adds to the site: pages made from the schema, the commands and the public names, and `llms.txt`.

The pages link to files of the repository beside `docs/`, which editors and code hosts follow. On the site, links to
`README.md` lead to the first page, and specs and notebooks are copied.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
COPIED_FOLDERS = ("specs", "examples")
LINK = re.compile(r"(\]\(|src=\")((?:\.\./)*)([^)#\":\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages, the specs and the notebooks."""
    pages = {
        "reference/keys.md": build_key_page(),
        "reference/commands.md": build_command_page(),
        "reference/python.md": build_python_page(),
        "reference/decisions.md": build_decision_page(),
        "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "zh/README.md": build_chinese_page(),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for folder in COPIED_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in (".json", ".ipynb", ".jsonl"):
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave `docs/` to their copy on the site."""
    depth = page.file.src_uri.count("/")

    def move(match: re.Match[str]) -> str:
        prefix, ups, target = match.groups()
        if len(ups) // 3 <= depth:
            return match.group(0)
        target = {"README.md": "index.md", "README.zh.md": "zh/README.md"}.get(target, target.removeprefix("docs/"))
        return prefix + "../" * depth + target

    if page.file.src_uri in ("CHANGELOG.md", "CONTRIBUTING.md"):
        return re.sub(r"\]\(docs/", "](", markdown).replace("](README.md", "](index.md")
    return LINK.sub(move, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Write `llms.txt`: the title and address of each page, and `llms-full.txt`: their text (https://llmstxt.org)."""
    docs = Path(config.docs_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    texts = []
    pages = {path.relative_to(docs): path.read_text(encoding="utf-8") for path in docs.rglob("*.md")}
    pages[Path("zh/README.md")] = build_chinese_page()
    for name, text in sorted(pages.items()):
        if name.parts[0] == "decisions":
            continue
        title = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), name.stem)
        address = name.with_suffix("").as_posix().removesuffix("README").removesuffix("index")
        lines.append(f"- [{title}]({address.rstrip('/')}/)")
        texts.append(text)
    Path(config.site_dir, "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path(config.site_dir, "llms-full.txt").write_text("\n\n".join(texts), encoding="utf-8")


def build_key_page() -> str:
    """Return a page with every key of a spec, from its schema."""
    schema = json.loads((ROOT / "specs" / "harness.schema.json").read_text(encoding="utf-8"))
    lines = [
        "# Every key of a spec",
        "",
        "This page is made from `specs/harness.schema.json`. [The spec](../spec.md) explains how keys work together.",
        "",
    ]
    for name, node in schema["properties"].items():
        if name == "$schema":
            continue
        lines += [f"## `{name}`", "", _describe(node), ""]
        rows = list(_list_keys(schema, node, name, depth=0))
        if rows:
            lines += ["| key | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = schema
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def _describe(node: dict[str, Any]) -> str:
    return str(node.get("description", "")).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def _list_keys(schema: dict[str, Any], node: dict[str, Any], path: str, depth: int) -> list[str]:
    """Return the table rows of the keys below a node, at most three levels deep."""
    node = _resolve(schema, node)
    rows = []
    branches = [
        node,
        *(_resolve(schema, branch) for key in ("anyOf", "oneOf", "allOf") for branch in node.get(key, ())),
    ]
    properties: dict[str, Any] = {}
    for branch in branches:
        properties |= branch.get("properties", {})
        if isinstance(branch.get("additionalProperties"), dict) and depth < 3:
            properties.setdefault("<name>", branch["additionalProperties"])
        if isinstance(branch.get("items"), dict) and depth < 3:
            properties.setdefault("[]", branch["items"])
    for name, child in properties.items():
        child = _resolve(schema, child)
        key = f"{path}{name}" if name == "[]" else f"{path}.{name}"
        default = f"`{json.dumps(child['default'], ensure_ascii=False)}`" if "default" in child else ""
        default = default if len(default) < 60 else "see the schema"
        if name not in ("<name>", "[]"):
            rows.append(f"| `{key}` | {default} | {_describe(child)} |")
        if depth < 3:
            rows += _list_keys(schema, child, key, depth + 1)
    return rows


def build_command_page() -> str:
    """Return a page with the help of every command."""
    from harness.cli.main import _build_parser

    os.environ["COLUMNS"] = "100"
    parser = _build_parser([])
    lines = ["# Every command", "", "This page is made from `harness --help`.", ""]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                lines += [f"## `harness {name}`", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def build_python_page() -> str:
    """Return a page with the docstrings of every public name."""
    import harness

    lines = [
        "# Every public name",
        "",
        "Everything that `from harness import …` gives. [From Python](../python.md) shows how to use functions, and",
        "[plugins](../plugins/README.md) how to use the base classes.",
        "",
    ]
    for name in sorted(harness.__all__):
        item = getattr(harness, name)
        if hasattr(item, "__module__") and hasattr(item, "__qualname__") and item.__module__.startswith("harness."):
            lines += [f"::: {item.__module__}.{item.__qualname__}", ""]
    return "\n".join(lines)


def build_chinese_page() -> str:
    """Return README.zh.md with links as they are from `zh/`."""
    text = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    return text.replace("](docs/zh/", "](").replace("](docs/", "](../")


def build_decision_page() -> str:
    """Return a page with a link to each decision, in order."""
    lines = ["# Decisions", "", "Why things are as they are. The newest decision is last.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}](../decisions/{path.name})")
    return "\n".join(lines) + "\n"
