"""Text and numbers as a person may see them.

Model output and data are hostile: whatever of them reaches a terminal goes through `printable` first. Knows no room.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

MISSING = "–"


def printable(text: str) -> str:
    """The text with every character that could steer a terminal made visible; newlines and tabs stay.

    Control characters become their Unicode pictures (ESC is ␛), and what reorders or hides text, private characters
    and lone surrogates become `\\uXXXX`. Joiners stay: scripts and emoji need them.
    """
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t\u200c\u200d" or 32 <= code < 127:
        return character
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"\\u{code:04x}"
    return character


def shorten_text(text: str, limit: int) -> str:
    """At most `limit` characters of the text, and how many were left out."""
    left = len(text) - limit
    return text if left <= 0 else f"{text[:limit].rstrip()}… (+{left:,} characters)"


def one_line(text: str, limit: int = 300) -> str:
    """The text on one printable line of at most `limit` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def decimal_places(values: Iterable[float], digits: int = 4) -> int:
    """Places that show the largest of the values with `digits` significant digits, with 3 when it is below 1."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0.0:
        return 2
    exponent = math.floor(math.log10(largest))
    return min(max((digits - 1 if exponent >= 0 else 2) - exponent, 0), 8)


def format_number(value: float | None, places: int | None = None, *, sign: bool = False) -> str:
    """The value with `places` decimals (see `decimal_places`), a true minus sign, and – for what is no number."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = decimal_places([value]) if places is None else places
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if float(text.replace(",", "")) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def format_p_value(p: float | None) -> str:
    """A p-value with three decimals and never as 0, and – for what is no number."""
    if p is None or math.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def round_up_share(fraction: float) -> str:
    """A share in [0, 1] that is not below the one given, in few digits."""
    return f"{min(math.ceil(fraction * 1000) / 1000, 1.0):g}"


def format_duration(seconds: float) -> str:
    """Seconds as `0.4 s`, `12 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_count(value: float, unit: str = "") -> str:
    """A count with its unit: `1,234 rows`; bytes (`B`) as `98.3 MB`."""
    if unit != "B":
        return f"{value:,.0f} {unit}".rstrip()
    for name in ("B", "kB", "MB", "GB"):
        if value < 1000 or name == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {name}" if name == "B" else f"{value:,.1f} {name}"


ASCII_REPLACEMENTS = str.maketrans(
    {"→": "->", "−": "-", "–": "-", "…": "...", "▲": "^", "▼": "v", "↑": "^", "↓": "v", "✓": "+", "✗": "x", "·": "-"}
)


def to_ascii(text: str) -> str:
    """Our own signs in ASCII, for a terminal that has no others; anything else it lacks is written as `\\uXXXX`."""
    return text.translate(ASCII_REPLACEMENTS).encode("ascii", "backslashreplace").decode()


def encodable_segments(renderable: RenderableType, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
    """The page as segments that the console's stream can take.

    A stream without Unicode would otherwise end a run with an encoding error, at the moment when it shows its result.
    """
    from rich.segment import Segment

    for segment in console.render(renderable, options):
        yield Segment(to_ascii(segment.text), segment.style, segment.control) if options.ascii_only else segment
