"""Mutated specs, rows, run files and plugins: each must be accepted, or refused in lines that name place and remedy."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.results import Section

TEXTS = [
    *(
        "",
        " ",
        "a",
        "x" * 3000,
        "\ud800",
        "\u0000",
        "\u202e",
        "\x1b[2J\x1b]0;title\x07",
        "<|im_end|>",
        "</s>",
        "é" * 50,
    ),
    *(
        "👩‍👩‍👧" * 5,
        "\n\n",
        "\r",
        "\u2028",
        "\ufeff",
        "{{7*7}}",
        "{% for i in range(9) %}",
        "\\",
        "null",
        "NaN",
        "../..",
        "a.b",
    ),
]
VALUES: list[Any] = [
    *TEXTS,
    *(None, True, False, 0, -1, 1.5, 10**25, 1e308, -(10**9), [], {}, [[]], [{}], [None], {"a": {"b": {}}}, [1, 2]),
    *(
        {"role": "user"},
        [{"role": "user", "content": "x"}],
        {"lora": {}},
        {"steps": 0},
        "run:x",
        "pkg://json//etc/passwd",
    ),
]
RAW = [
    *(
        "NaN",
        "Infinity",
        "1e999",
        "9" * 5000,
        "[" * 5000 + "]" * 5000,
        "[" * 100_000,
        '{"a":' * 3000 + "1" + "}" * 3000,
    ),
    *('"\\ud800"', '"\\u0000"', "'x'", "undefined", "01", "{,}", '{"a":1,"a":2}'),
]
MAX_LINE = 2000
"""Characters of an error line; longer ones repeat too much of the input."""


def paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value in a document."""
    yield path
    elements = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in elements:
        yield from paths(element, (*path, key))


def mutate(document: Any, draw: random.Random, keys: list[str]) -> Any:
    """Return the document with one to three random changes of its structure."""
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        all_paths = [path for path in paths(document) if path]
        if not all_paths:
            break
        path = draw.choice(all_paths)
        node = document
        for step in path[:-1]:
            node = node[step]
        change = draw.randrange(5)
        if change == 0:
            del node[path[-1]]
        elif change <= 2:
            node[path[-1]] = copy.deepcopy(draw.choice(VALUES))
        elif isinstance(node, dict):
            node[draw.choice([*keys, *TEXTS])] = copy.deepcopy(draw.choice(VALUES))
        else:
            node.insert(0, copy.deepcopy(draw.choice(VALUES)))
    return document


def mutate_bytes(raw: bytes, draw: random.Random) -> bytes:
    """Return the bytes with one to three random changes."""
    content = bytearray(raw)
    for _ in range(draw.choice((1, 1, 3))):
        place = draw.randrange(len(content) + 1)
        change = draw.randrange(6)
        if change == 0 and place < len(content):
            content[place] ^= 1 << draw.randrange(8)
        elif change == 1:
            junk = [b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"{", b"[" * 3000, b"\x1b[31m"]
            content[place:place] = draw.choice([*junk, draw.randbytes(20)])
        elif change == 2:
            del content[place : place + draw.choice((1, 5, 100))]
        elif change == 3:
            del content[place:]
        elif change == 4:
            content[place:place] = content[:place]
        else:
            text = content.decode("utf-8", "replace")
            colons = [index for index, character in enumerate(text) if character == ":"]
            if colons:
                cut = draw.choice(colons) + 1
                content = bytearray((text[:cut] + draw.choice(RAW) + text[cut + 2 :]).encode("utf-8", "surrogatepass"))
    return bytes(content)


class InputRound:
    """Mutated inputs in this process."""

    def __init__(self, bench: Path, work: Path, draw: random.Random) -> None:
        from harness import registry
        from harness.spec import schema

        self.bench, self.work, self.draw = bench, work / "inputs", draw
        self.work.mkdir(parents=True, exist_ok=True)
        self.registry = registry.discover_plugins()
        self.schema = schema.compose_schema(self.registry)
        self.specs = [json.loads(file.read_text()) for file in sorted(bench.glob("[!.]*.json"))]
        self.keys = sorted({str(step) for spec in self.specs for path in paths(spec) for step in path})

    def spec(self, section: Section) -> None:
        """Load and plan a mutated spec."""
        from harness.runner.bounded_plan import build_bounded_plan
        from harness.spec import preflight
        from harness.spec.spec import load_spec

        document = self.draw.choice(self.specs)
        raw = json.dumps(mutate(document, self.draw, self.keys)).encode("utf-8", "surrogatepass")
        if self.draw.random() < 0.3:
            raw = mutate_bytes(json.dumps(document).encode(), self.draw)
        file = self.bench / ".mutated.json"
        file.write_bytes(raw)
        overrides = []
        if self.draw.random() < 0.2:
            value = self.draw.choice(VALUES)
            text = value if isinstance(value, str) else json.dumps(value)
            overrides = [f"{self.draw.choice(self.keys)}.{self.draw.choice(self.keys)}={text}"]

        def act() -> None:
            spec = load_spec(str(file), self.schema, overrides, self.registry.broken_plugins)
            plan = build_bounded_plan(spec, self.registry)
            if spec.document["arms"] is None:
                preflight.preflight(spec, plan, self.registry, will_train=True)

        self._judge(section, act, lambda: f"{raw[:300]!r} {overrides}")

    def rows(self, section: Section) -> None:
        """Read a mutated file of rows, as a run does."""
        from harness.data.reading.rejected_rows import InvalidRowLog
        from harness.data.reading.source_reader import SourceReader
        from harness.spec.schema import fill_defaults
        from harness.types import no_progress

        kind = self.draw.choice(("jsonl", "jsonl", "json", "csv", "text", "parquet", "arrow"))
        file = self.work / f"rows.{kind}"
        raw = self._rows_file(kind)
        file.write_bytes(raw)
        options = {"path": str(file), "rejected": self.draw.choice((0, 0.99))}
        schema = self.schema["properties"]["sources"]["additionalProperties"]["properties"][kind]
        options = fill_defaults(options, schema, self.schema)

        def act() -> None:
            source = self.registry.create("sources", kind, options)
            log = InvalidRowLog(None)
            reader = SourceReader(source, options, "s", log, no_progress)
            for _ in reader.iter_examples():
                pass
            reader.raise_if_unusable()

        self._judge(section, act, lambda: f"{kind}: {raw[:300]!r}")

    def _rows_file(self, kind: str) -> bytes:
        rows = [
            json.loads(line)
            for line in (self.bench / "domain.jsonl").read_text().splitlines()[: self.draw.choice((1, 3, 12))]
        ]
        rows = [mutate(row, self.draw, self.keys) if self.draw.random() < 0.4 else row for row in rows]
        if kind == "csv":
            raw = ("instruction,output\n" + "\n".join(f'"{self.draw.choice(TEXTS)}",b' for _ in rows)).encode(
                "utf-8", "surrogatepass"
            )
        elif kind in ("parquet", "arrow"):
            raw = _arrow_bytes(rows, kind, self.draw)
        elif kind == "json":
            raw = json.dumps(rows).encode("utf-8", "surrogatepass")
        else:
            raw = "\n".join(json.dumps(row) for row in rows).encode("utf-8", "surrogatepass")
        if self.draw.random() < 0.5:
            raw = mutate_bytes(raw, self.draw)
        if self.draw.random() < 0.05:
            raw = gzip.compress(raw)
            raw = mutate_bytes(raw, self.draw) if self.draw.random() < 0.5 else raw
        return raw

    def run_file(self, run: Path, section: Section) -> None:
        """Read a finished run of which one file is mutated, with the commands that read runs."""
        from harness.cli.main import main

        files = [
            file
            for file in sorted(run.rglob("*"))
            if file.suffix in (".json", ".jsonl", ".txt")
            and "model" not in file.parts
            and "checkpoints" not in file.parts
        ]
        file = self.draw.choice(files)
        original = file.read_bytes()
        try:
            if file.suffix == ".json" and self.draw.random() < 0.6:
                mutated = mutate(json.loads(original), self.draw, self.keys)
                file.write_bytes(json.dumps(mutated).encode("utf-8", "surrogatepass"))
            else:
                file.write_bytes(mutate_bytes(original, self.draw))
            folder = str(run)
            commands = [
                ["runs", str(run.parent)],
                ["runs", str(run.parent), "--json"],
                ["report", folder],
                ["report", folder, "--markdown", "-"],
                ["compare", folder, folder],
                ["score", folder],
                ["run", "--resume", folder],
            ]
            command = self.draw.choice(commands)
            self._judge_command(section, main, command, f"{file.relative_to(run)}: {file.read_bytes()[:200]!r}")
        finally:
            file.write_bytes(original)

    def plugin(self, section: Section) -> None:
        """Use a plugin whose declaration, module or methods fail."""
        from harness import registry
        from harness.spec import schema

        entry = _BrokenEntryPoint(self.draw)

        def act() -> None:
            found = registry.discover_plugins([*registry.installed_entry_points(), ("harness-mutated", entry)])
            schema.compose_schema(found)
            for broken in found.broken_plugins:
                if len(str(broken)) > MAX_LINE:
                    raise AssertionError(f"a line of {len(str(broken))} characters")
            if "mutated" in found.components["metrics"]:
                found.create("metrics", "mutated", {"option": self.draw.choice(VALUES)})

        self._judge(section, act, lambda: f"plugin: {entry.describe()}")

    def _judge(self, section: Section, act: Callable[[], None], describe: Callable[[], str]) -> None:
        from harness.errors import HarnessError
        from harness.utils.formatting import shorten_words
        from harness.utils.redaction import redact_text

        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                act()
        except HarnessError as error:
            long = max(len(shorten_words(redact_text(line))) for line in error.lines())  # as the command prints it
            section.add("refused", f"a line of {long} characters: {describe()}" if long > MAX_LINE else "")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            section.add(
                "traceback", f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}: {describe()}"[:900]
            )
        else:
            section.add("accepted")

    def _judge_command(self, section: Section, main: Callable, command: list[str], label: str) -> None:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                try:
                    code = main(command)
                except SystemExit as exit_:
                    code = int(exit_.code or 0)
        except Exception as error:
            section.add("traceback", f"{type(error).__name__}: {error}: {command[0]} after {label}"[:900])
            return
        text = printed.getvalue()
        if "this is a fault of harness" in text or "Traceback (most" in text:
            section.add("traceback", f"{text[-500:]}: {command} after {label}"[:1200])
        else:
            section.add("accepted" if code == 0 else "refused")


class _BrokenEntryPoint:
    """An entry point whose module is a random broken plugin."""

    value = "harness_mutated"

    def __init__(self, draw: random.Random) -> None:
        self._kind = draw.choice(
            ("import", "exit", "recursion", "returns", "component", "option", "factory", "name", "hook")
        )
        self._value = draw.choice(VALUES)
        self._draw = draw

    def describe(self) -> str:
        return f"{self._kind} {self._value!r}"

    def load(self) -> Any:
        import types

        from harness import Component, hookimpl

        if self._kind == "import":
            raise self._draw.choice((ImportError, SyntaxError, OSError, UnicodeError, MemoryError))(
                "\x1b[31m" + "x" * 300
            )
        if self._kind == "exit":
            raise SystemExit(3)
        if self._kind == "recursion":
            return self.load()
        module, value = types.ModuleType(self.value), self._value
        options: Any = {"option": {"description": "An option.", "default": 1}}
        component: Any = Component("A metric.", "harness_mutated_missing:Metric", options)
        if self._kind == "component":
            component = value
        elif self._kind == "option":
            component = Component("A metric.", "json:loads", mutate(options, self._draw, ["type", "enum", "default"]))
        elif self._kind == "factory":
            component = Component("A metric.", value if isinstance(value, str) else "json:nothing", options)
        name = self._draw.choice(TEXTS) if self._kind == "name" else "mutated"

        @hookimpl
        def harness_metrics() -> Any:
            if self._kind == "hook":
                raise ValueError(str(value)[:50])
            return value if self._kind == "returns" else {name: component}

        module.harness_metrics = harness_metrics  # type: ignore[attr-defined]
        return module


def _arrow_bytes(rows: list[dict], kind: str, draw: random.Random) -> bytes:
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist(rows)
    except Exception:  # rows that Arrow cannot hold
        table = pyarrow.table({"prompt": ["a", "b"], "completion": ["c", "d"]})
    if kind == "parquet":
        try:
            parquet.write_table(table, buffer)
        except Exception:
            buffer = io.BytesIO()
            parquet.write_table(pyarrow.table({"prompt": ["a"], "completion": ["b"]}), buffer)
        return buffer.getvalue()
    new = pyarrow.ipc.new_stream if draw.random() < 0.5 else pyarrow.ipc.new_file
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def copy_run(run: Path, target: Path) -> Path:
    """Copy a finished run to a folder of its own, and return it."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(run, target / run.name)
    return target / run.name
