"""An example of a component, with which the contract checks of `harness.testing` create and use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ComponentExample:
    """What the contract checks cannot derive from the declaration of a component.

    Attributes:
        options: The options that differ from the defaults, or a function that returns them. The function receives an
            empty folder and may write files there. The rows of the sources `given` and `chat` exist in the checks.
        files: File name -> text, written to that folder. A relative value of an option with `"format": "path"` is
            resolved against it.
        rows: For a source: how many rows it yields with these options; None: it is not read.
        better: For a metric: an answer with a better score than `worse`, for the reference `the cat sat on the mat`.
        worse: See `better`.
        data: For a metric or a mode: the columns that a source keeps with each row, `Item.data` and `Example.data`.
        row: For a row format: the columns of a valid row.
        flagged: For a data check: a text in which it has a finding.
        needs: Modules of optional packages. Where one is missing, checks that create the component are skipped.
        special_tokens: For a template: the special tokens of its format. The tokenizer of the checks has them.
    """

    options: Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    better: str = "the cat sat on the mat"
    worse: str = "dogs run"
    data: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] | None = None
    flagged: str | None = None
    needs: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
