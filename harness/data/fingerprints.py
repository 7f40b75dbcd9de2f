"""That the template of training is the template of evaluation, and of what the model was trained on before.

A model that a run saves carries the fingerprint of its template in `template.json`. Templates are compared by what they
render (`encode.fingerprint`), not by name: two that render alike are one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.contracts import Plan, Template
from harness.data.encode import fingerprint
from harness.errors import HarnessError

FILE = "template.json"
HINT = 'or say that this is meant: "checks": {"other_template": true}'


def record(folder: Path, plan: Plan, print_: str) -> None:
    """Write the template's name, options and fingerprint into the folder of a model that was trained with it."""
    name, options = plan.template
    text = json.dumps({"template": {name: dict(options)}, "fingerprint": print_}, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def recorded(folder: Path) -> tuple[str, str] | None:
    """The name and the fingerprint of the template that a model's folder was trained with; None where none is told.

    Raises HarnessError when there is a record that cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        told: Any = json.loads(file.read_text(encoding="utf-8"))
        (name,) = told["template"]
        return str(name), str(told["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the record of the model's template cannot be read ({type(error).__name__})"
        raise HarnessError(str(file), what, "restore the file; without it nobody knows the template") from error


def others(
    plan: Plan,
    template: Template,
    templates: Mapping[str, Template],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None,
    where: Callable[[tuple[str, ...]], str],
) -> Iterator[HarnessError]:
    """Each place where a template renders otherwise than that of training.

    templates: suite -> its own template. folder: of the model that is trained further; None: it is no local folder.
    where: path of a key -> where the spec has it.
    """
    own, name = fingerprint(template, tokenizer), plan.template[0]
    before = None if folder is None else recorded(folder)
    if before is not None and before[1] != own:
        what = f"the model was trained with the template {before[0]!r}, and {_named(name, before[0])} renders otherwise"
        yield HarnessError(where(("template",)), what, f"train on with the template that it knows, {HINT}")
    for suite in plan.suites:
        if suite.template is not None and fingerprint(templates[suite.name], tokenizer) != own:
            what = f"{_named(suite.template[0], name)} renders otherwise than {name!r}, with which the model is trained"
            yield HarnessError(where(("evaluate", suite.name, "template")), what, f"leave it out, {HINT}")


def _named(name: str, other: str) -> str:
    return f"this spec's {name!r}" if name == other else repr(name)
