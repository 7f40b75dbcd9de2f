"""Write `types.md`: the fields of every public data class and event, from the code.

Run it after a change of one of them: `python docs/plugins/generate_types.py`. A test verifies that the page is current.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import harness
from harness import events, result_types, types
from harness.spec_keys.evaluation import SUITE_KEYS

PAGE = Path(__file__).with_name("types.md")

INTRODUCTION = """# Data classes and events

Everything that a component or listener receives or returns, with its fields. The classes are imported from `harness`,
plan and results from `harness.types`, events from `harness.events`. `python docs/plugins/generate_types.py` writes this
page.
"""


def public_classes() -> dict[str, list[type]]:
    """Return heading -> data classes, in the order of the code."""
    exported = [value for name in harness.__all__ if dataclasses.is_dataclass(value := getattr(harness, name))]
    declarations = [cls for cls in exported if cls.__module__.startswith("harness.interfaces")]
    values = [cls for cls in exported if cls.__module__ in (types.__name__, result_types.__name__)]
    results = [types.Item, types.Suite, types.Plan, types.Score, types.Evaluation]
    emitted = [cls for cls in vars(events).values() if inspect.isclass(cls) and issubclass(cls, events.Event)]
    by_line = {
        "Declarations": declarations,
        "Rows, conversations and stages": [cls for cls in values if cls not in results],
        "Plan and results": results,
        "Events": emitted,
    }
    return {
        heading: sorted(classes, key=lambda cls: (cls.__module__, inspect.getsourcelines(cls)[1]))
        for heading, classes in by_line.items()
    }


def describe_fields(cls: type) -> dict[str, str]:
    """Return field -> description, from the section `Attributes` of the class's docstring."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    fields = {}
    for entry in re.split(r"\n(?=    \w+: )", section.rstrip()):
        name, _, text = entry.strip().partition(": ")
        fields[name] = " ".join(text.split())
    return fields


def summarize(cls: type) -> str:
    """Return the docstring of a class before its fields, in one line."""
    return " ".join((inspect.getdoc(cls) or "").partition("Attributes:")[0].split())


def describe_default(field: dataclasses.Field[object]) -> str:
    """Return the default of a field as code; `required` without one."""
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
        return f"`{type(default).__name__}()`" if dataclasses.is_dataclass(default) else f"`{default!r}`"
    return "required"


def field_table(cls: type) -> list[str]:
    """Return a table of the fields that a class adds to those of its base class."""
    inherited = {
        field.name for base in cls.__bases__ if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    of_keys = {name: key["description"] for name, key in SUITE_KEYS.items()} if cls is types.Suite else {}
    descriptions = of_keys | {
        name: text for base in reversed(cls.__mro__) for name, text in describe_fields(base).items()
    }
    rows = [
        f"| `{field.name}` | `{str(field.type).replace('|', chr(92) + '|')}` | {describe_default(field)} "
        f"| {descriptions[field.name].replace('|', chr(92) + '|')} |"
        for field in dataclasses.fields(cls)
        if field.name not in inherited
    ]
    return ["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def write_page() -> str:
    """Return the text of the page."""
    lines = [INTRODUCTION]
    for heading, classes in public_classes().items():
        lines += [f"## {heading}", ""]
        if heading == "Events":
            lines += ["Every event also has the fields of `Event`.", ""]
        for cls in classes:
            lines += [f"### {cls.__name__}", "", summarize(cls), "", *field_table(cls)]
    return "\n".join(lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
