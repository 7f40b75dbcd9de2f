"""Every word of code in the documentation exists in the code, and no function exists for the tests alone."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "docs" / "mitigations").glob("*.md")) + sorted((ROOT / "docs" / "plugins").glob("*.md"))
WORD = re.compile(r"[A-Za-z_][\w-]*")
CODE_SUFFIXES = (".py", ".json", ".template", ".jinja", ".css", ".js", ".yml", ".toml")

OF_OTHER_TOOLS = {
    *(
        "AWS_ENDPOINT_URL",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_USERNAME",
    ),
    *("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"),
    *("WANDB_API_KEY", "sync"),
    *("compareRunsMode", "CHART", "X-Amz-Signature", "secret_access_key"),
    *("dist", "twine"),
    *("embed_tokens", "initial_seed", "llama-server", "paired-ar", "q_proj", "reasoning_content", "serve", "vllm"),
}
"""Words of code that are names in other tools or in users' data."""
OF_EXAMPLES = {
    "csv_log",
    "dialogue",
    "separator",
    "answer-lengths",
    *("harness-archive", "harness-csv-log", "harness-dialogue", "harness-rms", "harness-stairs", "harness-too-short"),
    "harness_lengths",
    "too_short",
    "words",
    "shouting",
    "harness_l2",
    "harness-l2",
    "l2",
    "my_mitigation",
    "support-",
    "u202e",
}
OF_EXAMPLES |= {"harness-ini", "ini", "harness-play", "harness-short-answers", "harness-staircase", "short_answers"}
"""Words of code that only an example has."""

CALLED_BY_NAME = {"add_parser", "main", "COMPONENTS", "quantize_experts"}
"""Names that every command, every program, or every plugin module has by convention, or that a model's README has."""

FOR_TESTS = "harness.testing"
"""The package whose functions are for the tests of plugins."""


def words_of_code(page: Path) -> set[str]:
    """Return the words of the inline code of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in WORD.findall(code)}


def test_every_word_of_inline_code_exists_in_the_code_or_as_a_file():
    files = [
        file
        for folder in ("harness", "plugins", "specs", "benchmarks", ".ci", ".github", "docs/plugins")
        for file in (ROOT / folder).rglob("*")
    ]
    files += [ROOT / "Makefile", ROOT / "pyproject.toml"]
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for file in files
        if file.is_file() and (file.suffix in CODE_SUFFIXES or file.suffix == "")
    )
    known = {word for pattern in (r"[A-Za-z_]\w*", WORD) for word in re.findall(pattern, text)}
    for file in (*files, *(ROOT / "tests").rglob("*.py")):
        known |= {file.stem, *file.relative_to(ROOT).parts}
    unknown = {page.name: sorted(words_of_code(page) - known - OF_OTHER_TOOLS - OF_EXAMPLES) for page in PAGES}
    assert {page: words for page, words in unknown.items() if words} == {}


def module_name(file: Path, root: Path) -> str:
    """Return the dotted name of a Python file."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def names_used_from_elsewhere(tree: ast.Module) -> set[tuple[str, str]]:
    """Return (module, name) of the names that a file imports, reads from a module, or has as "module:name"."""
    imported: dict[str, str] = {}
    used: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            used |= {(node.module, alias.name) for alias in node.names}
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            module, _, name = node.value.partition(":")
            used.add((module, name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            used.add((imported[node.value.id], node.attr))
    return used


def test_every_function_class_and_constant_is_used_by_the_code_itself():
    trees: dict[str, ast.Module] = {}
    for root in (ROOT, ROOT / "plugins"):
        folders = [ROOT / "harness"] if root == ROOT else [root]
        for file in (file for folder in folders for file in folder.rglob("*.py")):
            trees[module_name(file, root)] = ast.parse(file.read_text(encoding="utf-8"))
    used = {pair for tree in trees.values() for pair in names_used_from_elsewhere(tree)}
    unused = []
    for module, tree in trees.items():
        own = Counter(
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        )
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        defined += [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        unused += [
            f"{module}.{name}"
            for name in defined
            if not own[name]
            and (module, name) not in used
            and name not in CALLED_BY_NAME
            and not name.startswith(("__", "harness_"))
            and not module.startswith(FOR_TESTS)
        ]
    assert len(trees) > 150
    assert unused == []
