"""A canvas for plots, and its conversion to SVG: inline for the page, and as a file.

Plots are drawn in placeholder colors, one for each name of the palette. In the page a placeholder becomes a CSS
variable, so that the plot follows the light or dark theme. In a file it becomes the light color. The same numbers give
the same bytes.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Return the colors as declarations of CSS variables."""
    return " ".join(f"--{name}: {value};" for name, value in colors.items())


PLOT_WIDTH = 360.0
"""Width of a plot in CSS pixels: about that of a phone, so that text keeps its size there."""
TEXT_SIZE = 11.0
FONT_FAMILY = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

PLACEHOLDER_COLORS = {name: f"#0102{number:02x}" for number, name in enumerate(LIGHT_COLORS, start=1)}
_NAME_OF_PLACEHOLDER = {value: name for name, value in PLACEHOLDER_COLORS.items()}
_SVG_NAMESPACE, _HREF_ATTRIBUTE = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_PLACEHOLDER_PATTERN = re.compile("|".join(_NAME_OF_PLACEHOLDER))
_INVALID_XML_CHARS = re.compile(r"[\ufffe\uffff]|[\U0001fffe-\U0001ffff]")


@dataclass(frozen=True)
class Plot:
    """A finished plot.

    Attributes:
        name: File name without `.svg`; prefix of the ids in the page.
        title: Title of the plot, also for screen readers.
        description: What the plot shows, for screen readers.
        width: Natural width in CSS pixels.
        svg: The SVG in placeholder colors.
    """

    name: str
    title: str
    description: str
    width: float
    svg: ElementTree.Element = field(repr=False, compare=False)

    def to_inline_svg(self) -> str:
        """Return the plot for an HTML page: without XML namespaces, with CSS variables and unique ids."""
        root = _copy_svg(self.svg, lambda name: f"var(--{name})", f"{self.name}-")
        root.set("class", "plot")
        # A small screen shrinks the plot down to 85 %; below that it scrolls in its box.
        root.set("style", f"min-width: {0.85 * self.width:.0f}px; max-width: {1.5 * self.width:.0f}px")
        return self._with_description(root)

    def to_svg_file(self) -> str:
        """Return the plot as the text of an SVG file, in light colors."""
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
    """The figure of a plot.

    Attributes:
        figure: The figure of matplotlib.
        tooltips: Id of a group in the SVG -> its tooltip.
    """

    figure: Figure
    tooltips: dict[str, str] = field(default_factory=dict)

    def add_axes(self, rows: int = 1, **options: Any) -> list[Axes]:
        """Add axes below one another, with a light horizontal grid and without a frame.

        Args:
            rows: Number of axes.
            **options: Options of `Figure.subplots`.
        """
        all_axes = [*self.figure.subplots(rows, 1, squeeze=False, **options)[:, 0]]
        for axes in all_axes:
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.grid(axis="y", color=PLACEHOLDER_COLORS["line"], linewidth=0.7)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, labelsize=TEXT_SIZE - 1)
        return all_axes

    def add_tooltip(self, artist: Any, key: str, text: str) -> None:
        """Show a text when the pointer is over the artist.

        Args:
            artist: What is drawn.
            key: Id of the artist, unique in the plot.
            text: The tooltip.
        """
        artist.set_gid(key)
        self.tooltips[key] = text


@contextmanager
def open_canvas(width: float, height: float, *, manual_layout: bool = False) -> Iterator[Canvas]:
    """Open a canvas; within the context matplotlib has the settings of these plots, and ignores those of the user.

    Args:
        width: Width in CSS pixels.
        height: Height in CSS pixels.
        manual_layout: Whether the plot positions its axes itself.
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
    """Silence messages about the font cache, and about characters that only the fonts of the page have."""
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
        "text.parse_math": False,  # a name may contain `$`
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
    """Convert the canvas to a plot.

    Args:
        canvas: The canvas.
        name: File name of the plot, unique in the page.
        title: Title of the plot.
        description: What the plot shows, for screen readers.
    """
    stream = io.StringIO()
    canvas.figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # A style sheet in the SVG would apply to the complete page.
            if child.tag in (f"{_SVG_NAMESPACE}metadata", f"{_SVG_NAMESPACE}style"):
                parent.remove(child)
        tooltip = canvas.tooltips.get(parent.get("id", ""))
        if tooltip is not None:
            ElementTree.SubElement(parent, f"{_SVG_NAMESPACE}title").text = _xml_safe(tooltip)
            parent.insert(0, parent[-1])
            del parent[-1]
    root.set("stroke-linejoin", "round")
    return Plot(name, title, description, float(canvas.figure.get_figwidth() * 72), root)


def plot_label(text: str, limit: int = 40) -> str:
    """Format a name for a plot: on one line, nothing hidden, only characters that XML allows."""
    return _xml_safe(one_line(text, limit))


def legend_label(text: str) -> str:
    """Format a name for a legend; matplotlib would omit one that begins with `_`."""
    name = plot_label(text, 24)
    return f" {name}" if name.startswith("_") else name


def series_color(series_index: int) -> str:
    """Return the placeholder color of a series; indices start at 0."""
    return PLACEHOLDER_COLORS[SERIES_NAMES[series_index % len(SERIES_NAMES)]]


def series_dash(series_index: int) -> str:
    """Return a line style that distinguishes series of the same color, and neighboring series without color."""
    return ("-", "--", "-.", ":")[series_index % 4]


def add_label(
    axes: Any,
    text: str,
    position: tuple[float, float],
    offset: tuple[float, float],
    *,
    coords: Any = "data",
    boxed: bool = False,
    **style: Any,
) -> None:
    """Write a small text next to a position.

    Args:
        axes: The axes.
        text: The text.
        position: The position.
        offset: Distance from the position to the text in pixels, to the right and up.
        coords: Coordinates of the position, see `Axes.annotate`.
        boxed: Whether the text has a background, for readability on lines.
        **style: Alignment (`ha`, `va`) and other options of `Axes.annotate`.
    """
    if boxed:
        style["bbox"] = {"boxstyle": "round,pad=0.15", "fc": PLACEHOLDER_COLORS["surface"], "ec": "none", "alpha": 0.8}
    axes.annotate(
        text, position, offset, coords, "offset points", fontsize=TEXT_SIZE - 1, annotation_clip=False, **style
    )


def axis_limits(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Return limits of an axis that leave a margin around the values, as a fraction of their range."""
    low, high = min(values), max(values)
    padding = (high - low) * margin or abs(high) * margin or 1.0
    return low - padding, high + padding


def _xml_safe(text: str) -> str:
    return _INVALID_XML_CHARS.sub("\ufffd", printable(text))


def _copy_svg(root: ElementTree.Element, color_of: Callable[[str], str], prefix: str) -> ElementTree.Element:
    """Copy an element without namespaces. color_of: name of a color -> its value; prefix: of all ids."""
    tag = root.tag.removeprefix(_SVG_NAMESPACE)
    copy = ElementTree.Element(tag, dict(_copy_attributes(root.attrib, color_of, prefix)))
    copy.text = root.text if tag in ("text", "tspan", "title", "desc") else None
    for child in root:
        copy.append(_copy_svg(child, color_of, prefix))
        if copy[-1].tag == "tspan":
            copy[-1].tail = child.tail
    return copy


def _copy_attributes(
    attributes: Mapping[str, str], color_of: Callable[[str], str], prefix: str
) -> Iterator[tuple[str, str]]:
    def resolve_colors(text: str) -> str:
        return _PLACEHOLDER_PATTERN.sub(lambda match: color_of(_NAME_OF_PLACEHOLDER[match[0]]), text)

    for key, value in attributes.items():
        if key == _HREF_ATTRIBUTE:
            yield "href", f"#{prefix}{value[1:]}"
        elif key == "id":
            yield key, prefix + value
        elif key in ("width", "height") and value.endswith("pt"):
            continue  # the viewBox has the size
        elif value.startswith("url(#"):
            yield key, f"url(#{prefix}{value[5:]}"
        elif key == "style":
            # The page has its own fonts; those in the style were only used to measure the text.
            value = re.sub(r"\s*font-family:[^;]*;?", "", value).replace("url(#", f"url(#{prefix}")
            yield key, resolve_colors(value)
        elif key in ("fill", "stroke"):
            yield key, resolve_colors(value)
        elif key == "d":
            yield key, " ".join(value.split())
        else:
            yield key, value
