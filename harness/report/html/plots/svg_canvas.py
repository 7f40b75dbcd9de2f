"""A drawing surface for plots, and what becomes of it: SVG for the page, SVG as a file.

Colours are drawn under stand-ins, one for each name of the palette. In the page a stand-in becomes a CSS variable, so
that the plot follows light and dark; in a file it becomes the light colour. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from harness.utils.formatting import one_line, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LIGHT_COLORS = {
    "paper": "#fafaf9",
    "surface": "#ffffff",
    "ink": "#1b1d21",
    "muted": "#5a616c",
    "line": "#dfe1e5",
    "accent": "#0b5cad",
    "gain": "#0067ad",
    "loss": "#b54708",
    "series-1": "#0072b2",
    "series-2": "#d55e00",
    "series-3": "#00845f",
    "series-4": "#b8578f",
    "series-5": "#3b8fc4",
    "series-6": "#9a7400",
}

DARK_COLORS = {
    "paper": "#131518",
    "surface": "#1a1d21",
    "ink": "#e7e9ec",
    "muted": "#9ba4b0",
    "line": "#343a42",
    "accent": "#84bcff",
    "gain": "#62b8f5",
    "loss": "#ff9f5f",
    "series-1": "#56b4e9",
    "series-2": "#ff8a57",
    "series-3": "#45cba0",
    "series-4": "#e79dc6",
    "series-5": "#a9c1ff",
    "series-6": "#f0c04a",
}

SERIES_NAMES = tuple(name for name in LIGHT_COLORS if name.startswith("series-"))


def css_variables(colors: dict[str, str]) -> str:
    """The colours as declarations of CSS variables."""
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


PLOT_WIDTH = 360.0
"""Of a plot, in CSS pixels at its own size: that of a phone, so that 11 px of text are nearly that there."""
TEXT_SIZE = 11.0
FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

PLACEHOLDER_COLORS = {name: f"#0102{number:02x}" for number, name in enumerate(LIGHT_COLORS, start=1)}
_NAME_OF_PLACEHOLDER = {value: name for name, value in PLACEHOLDER_COLORS.items()}
_SVG_NAMESPACE, _HREF_ATTRIBUTE = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDER_PATTERN = re.compile("|".join(_NAME_OF_PLACEHOLDER))
_INVALID_XML_CHARS = re.compile(r"[\ufffe\uffff]|[\U0001fffe-\U0001ffff]")


@dataclass(frozen=True)
class Plot:
    """A finished plot. name: of its file. title, description: what a reader who cannot see it is told.

    width: in CSS pixels at its own size. svg: the SVG with stand-ins for colours.
    """

    name: str
    title: str
    description: str
    width: float
    svg: ElementTree.Element = field(repr=False, compare=False)

    def to_inline_svg(self) -> str:
        """The plot for an HTML page: no names of XML, colours by CSS variables, ids that no other plot has."""
        root = _copy_svg(self.svg, lambda name: f"var(--{name})", f"{self.name}-")
        root.set("class", "plot")
        # Small screens may shrink it a little; below that it scrolls in its box.
        root.set("style", f"min-width: {0.85 * self.width:.0f}px; max-width: {1.5 * self.width:.0f}px")
        return self._with_description(root)

    def to_svg_file(self) -> str:
        """The plot as a file of its own, in light colours."""
        root = _copy_svg(self.svg, LIGHT_COLORS.__getitem__, "")
        root.set("xmlns", "http://www.w3.org/2000/svg")
        root.set("width", f"{1.5 * self.width:.0f}")
        root.set("style", f"background: {LIGHT_COLORS['surface']}")
        root.set("font-family", FONT_FAMILY)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + self._with_description(root) + "\n"

    def _with_description(self, root: ElementTree.Element) -> str:
        title, description = (ElementTree.Element(tag, {"id": f"{self.name}-{tag}"}) for tag in ("title", "desc"))
        title.text, description.text = _xml_safe(self.title), _xml_safe(self.description)
        root[:0] = [title, description]
        root.set("role", "img")
        root.set("aria-labelledby", f"{self.name}-title {self.name}-desc")
        return ElementTree.tostring(root, encoding="unicode")


@dataclass
class Canvas:
    """What a plot is drawn on. tooltips: id of a group in the drawing -> what a pointer over it is told."""

    figure: Figure
    tooltips: dict[str, str] = field(default_factory=dict)

    def add_axes(self, rows: int = 1, **options: Any) -> list[Axes]:
        """One column of axes below one another, with a quiet grid along the values and no box."""
        made = [*self.figure.subplots(rows, 1, squeeze=False, **options)[:, 0]]
        for one in made:
            for side in ("top", "right"):
                one.spines[side].set_visible(False)
            one.grid(axis="y", color=PLACEHOLDER_COLORS["line"], linewidth=0.7)
            one.set_axisbelow(True)
            one.tick_params(length=0, labelsize=TEXT_SIZE - 1)
        return made

    def add_tooltip(self, artist: Any, key: str, text: str) -> None:
        """Tell whoever points at the artist this text."""
        artist.set_gid(key)
        self.tooltips[key] = text


@contextmanager
def open_canvas(width: float, height: float, *, manual_layout: bool = False) -> Iterator[Canvas]:
    """A surface of this size in CSS pixels. Within the context matplotlib has the settings of our plots.

    manual_layout: the plot places its axes itself. Nothing of the user's own settings of matplotlib shows, and names
    that look like formulas are none.
    """
    with _silence_matplotlib():
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_rc_params())
            figure = Figure(figsize=(width / 72, height / 72), layout=None if manual_layout else "constrained")
            FigureCanvasSVG(figure)
            yield Canvas(figure)


@contextmanager
def _silence_matplotlib() -> Iterator[None]:
    """No word of the font cache, nor of signs that the font measured with lacks: the page's fonts have them."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            yield
    finally:
        log.setLevel(level)


def _rc_params() -> Any:
    ink, muted = PLACEHOLDER_COLORS["ink"], PLACEHOLDER_COLORS["muted"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "harness",
        "text.parse_math": False,
        "font.size": TEXT_SIZE,
        "figure.dpi": 72,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.edgecolor": PLACEHOLDER_COLORS["line"],
        "axes.labelcolor": muted,
        "axes.titlecolor": ink,
        "axes.titlesize": TEXT_SIZE,
        "axes.labelsize": TEXT_SIZE,
        "axes.unicode_minus": True,
        "text.color": ink,
        "xtick.color": muted,
        "ytick.color": muted,
        "legend.frameon": False,
        "legend.fontsize": TEXT_SIZE,
    }


def finish_plot(canvas: Canvas, name: str, title: str, description: str) -> Plot:
    """The plot that was drawn on the sheet. name: of its file, and unlike any other in the page."""
    stream = io.StringIO()
    canvas.figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # A style sheet in the drawing would be one for the whole page.
            if child.tag in (f"{_SVG_NAMESPACE}metadata", f"{_SVG_NAMESPACE}style"):
                parent.remove(child)
        said = canvas.tooltips.get(parent.get("id", ""))
        if said is not None:
            ElementTree.SubElement(parent, f"{_SVG_NAMESPACE}title").text = _xml_safe(said)
            parent.insert(0, parent[-1])
            del parent[-1]
    root.set("stroke-linejoin", "round")
    return Plot(name, title, description, float(canvas.figure.get_figwidth() * 72), root)


def plot_label(text: str, limit: int = 40) -> str:
    """A name as it may stand in a plot: on one line, nothing hidden, nothing that XML has no word for."""
    return _xml_safe(one_line(text, limit))


def legend_label(text: str) -> str:
    """A name as it may stand in a legend, in which matplotlib would leave out one that begins with `_`."""
    name = plot_label(text, 24)
    return f" {name}" if name.startswith("_") else name


def series_color(series_index: int) -> str:
    """The stand-in of the colour of the series with this number, from 0."""
    return PLACEHOLDER_COLORS[SERIES_NAMES[series_index % len(SERIES_NAMES)]]


def series_dash(series_index: int) -> str:
    """A line style that tells a series from those of the same colour, and neighbours apart without any colour."""
    return ("-", "--", "-.", ":")[series_index % 4]


def axis_limits(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Limits of an axis that leave some room around the values."""
    low, high = min(values), max(values)
    room = (high - low) * margin or abs(high) * margin or 1.0
    return low - room, high + room


def _xml_safe(text: str) -> str:
    return _INVALID_XML_CHARS.sub("\ufffd", printable(text))


def _copy_svg(root: ElementTree.Element, color_of: Any, prefix: str) -> ElementTree.Element:
    tag = root.tag.removeprefix(_SVG_NAMESPACE)
    made = ElementTree.Element(tag, dict(_copy_attributes(root.attrib, color_of, prefix)))
    made.text = root.text if tag in ("text", "tspan", "title", "desc") else None
    for child in root:
        made.append(_copy_svg(child, color_of, prefix))
        if made[-1].tag == "tspan":
            made[-1].tail = child.tail
    return made


def _copy_attributes(attributes: Mapping[str, str], color_of: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if key == _HREF_ATTRIBUTE:
            yield "href", f"#{prefix}{value[1:]}"
        elif key == "id":
            yield key, prefix + value
        elif key in ("width", "height") and value.endswith("pt"):
            continue  # its box says how large it is
        elif value.startswith("url(#"):
            yield key, f"url(#{prefix}{value[5:]}"
        elif key == "style":
            # The page's fonts, not those that the text was measured with.
            value = re.sub(r"\s*font-family:[^;]*;?", "", value).replace("url(#", f"url(#{prefix}")
            yield key, _PLACEHOLDER_PATTERN.sub(lambda hit: color_of(_NAME_OF_PLACEHOLDER[hit[0]]), value)
        elif key in ("fill", "stroke"):
            yield key, _PLACEHOLDER_PATTERN.sub(lambda hit: color_of(_NAME_OF_PLACEHOLDER[hit[0]]), value)
        elif key == "d":
            yield key, " ".join(value.split())
        else:
            yield key, value
