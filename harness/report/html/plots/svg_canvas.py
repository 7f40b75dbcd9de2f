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


LIGHT = {
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

DARK = {
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

SERIES = tuple(name for name in LIGHT if name.startswith("series-"))


def variables(colours: dict[str, str]) -> str:
    """The colours as declarations of CSS variables."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


WIDTH = 360.0
"""Of a plot, in CSS pixels at its own size: that of a phone, so that 11 px of text are nearly that there."""
TEXT = 11.0
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

STAND_INS = {name: f"#0102{number:02x}" for number, name in enumerate(LIGHT, start=1)}
_NAMES = {value: name for name, value in STAND_INS.items()}
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile("|".join(_NAMES))
_NO_XML = re.compile(r"[\ufffe\uffff]|[\U0001fffe-\U0001ffff]")


@dataclass(frozen=True)
class Plot:
    """A finished plot. name: of its file. title, description: what a reader who cannot see it is told.

    width: in CSS pixels at its own size. drawn: the SVG with stand-ins for colours.
    """

    name: str
    title: str
    description: str
    width: float
    drawn: ElementTree.Element = field(repr=False, compare=False)

    def inline(self) -> str:
        """The plot for an HTML page: no names of XML, colours by CSS variables, ids that no other plot has."""
        root = _copy(self.drawn, lambda name: f"var(--{name})", f"{self.name}-")
        root.set("class", "plot")
        # Small screens may shrink it a little; below that it scrolls in its box.
        root.set("style", f"min-width: {0.85 * self.width:.0f}px; max-width: {1.5 * self.width:.0f}px")
        return self._told(root)

    def file(self) -> str:
        """The plot as a file of its own, in light colours."""
        root = _copy(self.drawn, LIGHT.__getitem__, "")
        root.set("xmlns", "http://www.w3.org/2000/svg")
        root.set("width", f"{1.5 * self.width:.0f}")
        root.set("style", f"background: {LIGHT['surface']}")
        root.set("font-family", FONTS)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + self._told(root) + "\n"

    def _told(self, root: ElementTree.Element) -> str:
        title, description = (ElementTree.Element(tag, {"id": f"{self.name}-{tag}"}) for tag in ("title", "desc"))
        title.text, description.text = _told(self.title), _told(self.description)
        root[:0] = [title, description]
        root.set("role", "img")
        root.set("aria-labelledby", f"{self.name}-title {self.name}-desc")
        return ElementTree.tostring(root, encoding="unicode")


@dataclass
class Sheet:
    """What a plot is drawn on. titles: id of a group in the drawing -> what a pointer over it is told."""

    figure: Figure
    titles: dict[str, str] = field(default_factory=dict)

    def axes(self, rows: int = 1, **options: Any) -> list[Axes]:
        """One column of axes below one another, with a quiet grid along the values and no box."""
        made = [*self.figure.subplots(rows, 1, squeeze=False, **options)[:, 0]]
        for one in made:
            for side in ("top", "right"):
                one.spines[side].set_visible(False)
            one.grid(axis="y", color=STAND_INS["line"], linewidth=0.7)
            one.set_axisbelow(True)
            one.tick_params(length=0, labelsize=TEXT - 1)
        return made

    def say(self, artist: Any, key: str, text: str) -> None:
        """Tell whoever points at the artist this text."""
        artist.set_gid(key)
        self.titles[key] = text


@contextmanager
def sheet(width: float, height: float, *, bare: bool = False) -> Iterator[Sheet]:
    """A surface of this size in CSS pixels. Within the context matplotlib has the settings of our plots.

    bare: the plot places its axes itself. Nothing of the user's own settings of matplotlib shows, and names that look
    like formulas are none.
    """
    with _quiet():
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_settings())
            figure = Figure(figsize=(width / 72, height / 72), layout=None if bare else "constrained")
            FigureCanvasSVG(figure)
            yield Sheet(figure)


@contextmanager
def _quiet() -> Iterator[None]:
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


def _settings() -> Any:
    ink, muted = STAND_INS["ink"], STAND_INS["muted"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "harness",
        "text.parse_math": False,
        "font.size": TEXT,
        "figure.dpi": 72,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.edgecolor": STAND_INS["line"],
        "axes.labelcolor": muted,
        "axes.titlecolor": ink,
        "axes.titlesize": TEXT,
        "axes.labelsize": TEXT,
        "axes.unicode_minus": True,
        "text.color": ink,
        "xtick.color": muted,
        "ytick.color": muted,
        "legend.frameon": False,
        "legend.fontsize": TEXT,
    }


def finish(sheet: Sheet, name: str, title: str, description: str) -> Plot:
    """The plot that was drawn on the sheet. name: of its file, and unlike any other in the page."""
    stream = io.StringIO()
    sheet.figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        for child in list(parent):
            # A style sheet in the drawing would be one for the whole page.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
        said = sheet.titles.get(parent.get("id", ""))
        if said is not None:
            ElementTree.SubElement(parent, f"{_SVG}title").text = _told(said)
            parent.insert(0, parent[-1])
            del parent[-1]
    root.set("stroke-linejoin", "round")
    return Plot(name, title, description, float(sheet.figure.get_figwidth() * 72), root)


def label(text: str, limit: int = 40) -> str:
    """A name as it may stand in a plot: on one line, nothing hidden, nothing that XML has no word for."""
    return _told(one_line(text, limit))


def entry(text: str) -> str:
    """A name as it may stand in a legend, in which matplotlib would leave out one that begins with `_`."""
    name = label(text, 24)
    return f" {name}" if name.startswith("_") else name


def colour(number: int) -> str:
    """The stand-in of the colour of the series with this number, from 0."""
    return STAND_INS[SERIES[number % len(SERIES)]]


def dash(number: int) -> str:
    """A line style that tells a series from those of the same colour, and neighbours apart without any colour."""
    return ("-", "--", "-.", ":")[number % 4]


def spread(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Limits of an axis that leave some room around the values."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def _told(text: str) -> str:
    return _NO_XML.sub("\ufffd", printable(text))


def _copy(root: ElementTree.Element, coloured: Any, prefix: str) -> ElementTree.Element:
    tag = root.tag.removeprefix(_SVG)
    made = ElementTree.Element(tag, dict(_attributes(root.attrib, coloured, prefix)))
    made.text = root.text if tag in ("text", "tspan", "title", "desc") else None
    for child in root:
        made.append(_copy(child, coloured, prefix))
        if made[-1].tag == "tspan":
            made[-1].tail = child.tail
    return made


def _attributes(given: Mapping[str, str], coloured: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in given.items():
        if key == _LINK:
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
            yield key, _COLOUR.sub(lambda hit: coloured(_NAMES[hit[0]]), value)
        elif key in ("fill", "stroke"):
            yield key, _COLOUR.sub(lambda hit: coloured(_NAMES[hit[0]]), value)
        elif key == "d":
            yield key, " ".join(value.split())
        else:
            yield key, value
