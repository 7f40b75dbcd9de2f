"""One self-contained HTML file that asks the network for nothing.

Knows Jinja2. Every value that a template shows goes through `formatting.printable` and is then escaped, by the
templates' environment and not by the templates: there is none that could forget it. Only `Markup` made here is left as
it is.
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
from harness.report.html.plots.svg_canvas import DARK_COLORS, LIGHT_COLORS, Plot, css_variables
from harness.utils.formatting import decimal_places, format_duration, format_number, format_p_value, printable

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES_DIR = Path(__file__).with_name("templates")
MAX_ANSWER_CHARS = 8000


def render_template(template: str, **values: Any) -> str:
    """A page from a template of ours. values: what it shows, any of it hostile."""
    script = (TEMPLATES_DIR / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _jinja_environment().get_template(template).render(policy=policy, script=_safe_markup(script), **values)


def write_page_and_plots(page: str, plots: Iterable[Plot] | None, file: Path) -> Path:
    """Write the page, whole or not at all, and its plots into `plots/` beside it. Raises HarnessError.

    `plots/` is then the report's: drawings in it that this page does not have any more are taken away. None: the page
    is one without plots, and the folder is left alone.
    """
    try:
        if plots is not None:
            _write_plots(plots, file.parent / "plots")
        _write_atomically(file, page)
    except OSError as error:
        what = f"the report cannot be written: {error.strerror or error}"
        raise HarnessError(str(file), what, "free some space, or make the folder writable") from error
    return file


def _write_plots(plots: Iterable[Plot], folder: Path) -> None:
    drawn = {f"{plot.name}.svg": plot.to_svg_file() for plot in plots}
    if drawn:
        folder.mkdir(exist_ok=True)
    for name, text in drawn.items():
        _write_atomically(folder / name, text)
    for old in folder.glob("*.svg"):
        if old.name not in drawn:
            old.unlink()


def format_json(document: Any) -> str:
    """JSON to read and to copy: what is not seen in a text stands as an escape, so that it is the same document."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    return "".join(one if one == "\n" or printable(one) == one else json.dumps(one)[1:-1] for one in text)


def unique_slug(text: str, existing: Iterable[str] = ()) -> str:
    """A name that is safe in a file's name and as an id, and is none of those taken."""
    made = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "unnamed"
    number = 2
    unique = made
    while unique in existing:
        unique, number = f"{made}-{number}", number + 1
    return unique


def _write_atomically(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _jinja_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "num": format_number,
        "places": lambda values, digits=4: decimal_places([one for one in values if one is not None], digits),
        "places_of": lambda found: decimal_places([v for one in found for v in (one.value, one.low, one.high)], 3),
        "duration": format_duration,
        "p_value": format_p_value,
        "plot": lambda plot: _safe_markup(plot.to_inline_svg()),
        "pretty": format_json,
        "count": lambda value: f"{value:,}" if isinstance(value, int | float) else str(value),
        "exact": lambda value: "" if value is None or value != value else repr(float(value)),
        "answer": _truncate_answer,
        "broken": _with_line_breaks,
    }
    made.globals |= {
        "style": _safe_markup((TEMPLATES_DIR / "page.css").read_text(encoding="utf-8")),
        "light": _safe_markup(css_variables(LIGHT_COLORS)),
        "dark": _safe_markup(css_variables(DARK_COLORS)),
    }
    return made


def _finalize_value(value: Any) -> Any:
    """What a template shows of a value: safe markup as it is, any other text with nothing hidden in it."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else printable(str(value))


def _with_line_breaks(text: str, after: str = "_/.:=-") -> Any:
    """A name that may be broken after its own marks, where a line has no room for it; a number may not."""
    from markupsafe import Markup, escape

    place = rf"(?<=[{re.escape(after)}])(?=\w)(?!(?<=\.)\d)"
    return Markup(re.sub(place, "<wbr>", str(escape(printable(str(text))))))


def _truncate_answer(text: str) -> str:
    """A text of the model or the data, whose end is left out where a page could not bear its length."""
    left = len(text) - MAX_ANSWER_CHARS
    return text if left <= 0 else f"{text[:MAX_ANSWER_CHARS]}… (+{left:,} characters)"


def _safe_markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
