"""Render one self-contained HTML file that requests nothing from the network.

Every value that a template shows goes through `formatting.printable` and is then escaped. The Jinja environment does
both, so no template can forget it. Only `Markup` that is made in this module is not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.report.html.plots.svg_canvas import DARK_COLORS, LIGHT_COLORS, Plot, css_variables
from harness.report.slices import SliceChange
from harness.utils.atomic_write import atomic_write
from harness.utils.formatting import (
    decimal_places,
    format_cell,
    format_duration,
    format_number,
    format_p_value,
    printable,
    shorten_text,
)

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES_DIR = Path(__file__).with_name("templates")
SCRIPTS = ("page.js", "item_browser.js")
MAX_ANSWER_CHARS = 8000


def render_template(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: File name of the template.
        **values: What the template shows; any text of it may be hostile.
    """
    script = "".join((TEMPLATES_DIR / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _jinja_environment().get_template(template).render(policy=policy, script=_safe_markup(script), **values)


def write_page_and_plots(page: str, plots: Iterable[Plot] | None, file: Path) -> Path:
    """Write a page atomically, and its plots into the folder `plots/` next to it.

    Args:
        page: The HTML.
        plots: The plots; other SVG files in `plots/` are deleted. None: the page has no plots, and the folder is
            left alone.
        file: Path of the page.

    Returns:
        The path of the page.

    Raises:
        HarnessError: If a file cannot be written.
    """
    try:
        if plots is not None:
            _write_plots(plots, file.parent / "plots")
        _write_atomically(file, page)
    except OSError as error:
        what = f"cannot write the report: {error.strerror or error}"
        raise HarnessError(str(file), what, "free disk space, or make the folder writable") from error
    return file


def _write_plots(plots: Iterable[Plot], folder: Path) -> None:
    svg_by_name = {f"{plot.name}.svg": plot.to_svg_file() for plot in plots}
    if svg_by_name:
        folder.mkdir(exist_ok=True)
    for name, svg in svg_by_name.items():
        _write_atomically(folder / name, svg)
    for file in folder.glob("*.svg"):
        if file.name not in svg_by_name:
            file.unlink()


def format_json(document: Any) -> str:
    """Format a document as JSON to read and to copy; invisible characters are escaped, so it is the same document."""
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    return "".join(char if char == "\n" or printable(char) == char else json.dumps(char)[1:-1] for char in text)


def unique_slug(text: str, existing: Iterable[str] = ()) -> str:
    """Return a name that is safe as a file name and as an id, and that is not in `existing`."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "unnamed"
    number = 2
    unique = slug
    while unique in existing:
        unique, number = f"{slug}-{number}", number + 1
    return unique


def _write_atomically(file: Path, text: str) -> None:
    with atomic_write(file) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def _jinja_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize_value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": format_number,
        "places": lambda values, digits=4: decimal_places([value for value in values if value is not None], digits),
        "interval_places": lambda estimates: decimal_places(
            [bound for estimate in estimates for bound in (estimate.value, estimate.low, estimate.high)], 3
        ),
        "duration": format_duration,
        "p_value": format_p_value,
        "cell": format_cell,
        "svg_data": lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
        "plot": lambda plot: _safe_markup(plot.to_inline_svg()),
        "pretty": format_json,
        "count": lambda value: f"{value:,}" if isinstance(value, int | float) else str(value),
        "exact": lambda value: "" if value is None or value != value else repr(float(value)),
        "answer": lambda text: shorten_text(text, MAX_ANSWER_CHARS),
        "breakable": _with_line_breaks,
        "groupby_heading": _group_slices,
        "json_data": _safe_markup,
    }
    environment.globals |= {
        "style": _safe_markup((TEMPLATES_DIR / "page.css").read_text(encoding="utf-8")),
        "light": _safe_markup(css_variables(LIGHT_COLORS)),
        "dark": _safe_markup(css_variables(DARK_COLORS)),
    }
    return environment


def _group_slices(slices: Iterable[SliceChange]) -> list[tuple[str, list[SliceChange]]]:
    """Return (heading, slices) for each suite and column."""
    groups = groupby(slices, key=lambda each: f"{each.suite} by {each.column}: {each.score}")
    return [(heading, list(group)) for heading, group in groups]


def _finalize_value(value: Any) -> Any:
    """Return markup unchanged, and any other value as text in which nothing is hidden."""
    from markupsafe import Markup

    return value if isinstance(value, Markup) else printable(str(value))


def _with_line_breaks(text: str, after: str = "_/.:=-") -> Any:
    """Allow a line break after each of the characters `after`, but not within a number."""
    from markupsafe import Markup, escape

    position = rf"(?<=[{re.escape(after)}])(?=\w)(?!(?<=\.)\d)"
    return Markup(re.sub(position, "<wbr>", str(escape(printable(str(text))))))


def _safe_markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
