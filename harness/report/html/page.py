"""One self-contained HTML file that asks the network for nothing.

Knows Jinja2. Every value that a template shows goes through `legible.printable` and is then escaped, by the templates'
environment and not by the templates: there is none that could forget it. Only `Markup` made here is left as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.report.html.plots.svg_canvas import DARK, LIGHT, Plot, variables
from harness.utils.formatting import decimals, duration, number, p_value, printable

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
LONGEST_ANSWER = 8000


def render(template: str, **values: Any) -> str:
    """A page from a template of ours. values: what it shows, any of it hostile."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template(template).render(policy=policy, script=_markup(script), **values)


def write(page: str, plots: Iterable[Plot] | None, file: Path) -> Path:
    """Write the page, whole or not at all, and its plots into `plots/` beside it. Raises HarnessError.

    `plots/` is then the report's: drawings in it that this page does not have any more are taken away. None: the page
    is one without plots, and the folder is left alone.
    """
    try:
        if plots is not None:
            _write_plots(plots, file.parent / "plots")
        _replace(file, page)
    except OSError as error:
        what = f"the report cannot be written: {error.strerror or error}"
        raise HarnessError(str(file), what, "free some space, or make the folder writable") from error
    return file


def _write_plots(plots: Iterable[Plot], folder: Path) -> None:
    drawn = {f"{plot.name}.svg": plot.file() for plot in plots}
    if drawn:
        folder.mkdir(exist_ok=True)
    for name, text in drawn.items():
        _replace(folder / name, text)
    for old in folder.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()


def pretty(document: Any) -> str:
    """JSON to read and to copy: what is not seen in a text stands as an escape, so that it is the same document."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    return "".join(one if one == "\n" or printable(one) == one else json.dumps(one)[1:-1] for one in text)


def slug(text: str, taken: Iterable[str] = ()) -> str:
    """A name that is safe in a file's name and as an id, and is none of those taken."""
    made = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "unnamed"
    number = 2
    unique = made
    while unique in taken:
        unique, number = f"{made}-{number}", number + 1
    return unique


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "num": number,
        "places": lambda values, digits=4: decimals([one for one in values if one is not None], digits),
        "places_of": lambda found: decimals([v for one in found for v in (one.value, one.low, one.high)], 3),
        "duration": duration,
        "p_value": p_value,
        "plot": lambda plot: _markup(plot.inline()),
        "pretty": pretty,
        "count": lambda value: f"{value:,}" if isinstance(value, int | float) else str(value),
        "exact": lambda value: "" if value is None or value != value else repr(float(value)),
        "answer": _answer,
        "broken": _broken,
    }
    made.globals |= {
        "style": _markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "light": _markup(variables(LIGHT)),
        "dark": _markup(variables(DARK)),
    }
    return made


def _visible(value: Any) -> Any:
    """What a template shows of a value: safe markup as it is, any other text with nothing hidden in it."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else printable(str(value))


def _broken(text: str, after: str = "_/.:=-") -> Any:
    """A name that may be broken after its own marks, where a line has no room for it; a number may not."""
    from markupsafe import Markup, escape

    place = rf"(?<=[{re.escape(after)}])(?=\w)(?!(?<=\.)\d)"
    return Markup(re.sub(place, "<wbr>", str(escape(printable(str(text))))))


def _answer(text: str) -> str:
    """A text of the model or the data, whose end is left out where a page could not bear its length."""
    left = len(text) - LONGEST_ANSWER
    return text if left <= 0 else f"{text[:LONGEST_ANSWER]}… (+{left:,} characters)"


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
