"""Format text and numbers for display.

Model output and data are untrusted: pass them through `printable` before they reach a terminal.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

_LONG_WORD = re.compile(r"[^\s/]{401,}")

MISSING = "–"
"""Shown for a value that is missing or not a number."""


def printable(text: str) -> str:
    r"""Return the text with every character that could control a terminal made visible.

    Newlines and tabs stay. Control characters become their Unicode pictures (ESC is ␛). Characters that reorder or hide
    text, private-use characters and lone surrogates become `\uXXXX`. Joiners stay: scripts and emoji need them.
    """
    return "".join(map(_visible_character, text.replace("\r\n", "\n")))


def _visible_character(character: str) -> str:
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
    """Return at most `limit` characters of the text, followed by the number of characters left out."""
    omitted = len(text) - limit
    return text if omitted <= 0 else f"{text[:limit].rstrip()}… (+{omitted:,} characters)"


def shorten_words(text: str) -> str:
    """Return a text with each word of more than 400 characters without a slash cut to 200; paths stay whole.

    Remove secrets first: one that is cut is not recognized.
    """
    return _LONG_WORD.sub(lambda word: shorten_text(word[0], 200), text)


def one_line(text: str, limit: int = 300) -> str:
    """Return the text on one printable line of at most `limit` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def join_names(names: Iterable[str], *, quote: bool = False, last: str = ", ") -> str:
    """Return the names joined with commas, in the order given; "" for none.

    Args:
        names: The names.
        quote: Whether to put each name in quotes, as `repr` does.
        last: Separator before the last name, e.g. `" and "`.
    """
    labels = [repr(name) if quote else str(name) for name in names]
    return last.join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)


def decimal_places(values: Iterable[float], digits: int = 4) -> int:
    """Return the decimal places that show the largest of the values with `digits` significant digits.

    A largest value below 1 is shown with 3 significant digits. The result is between 0 and 8.
    """
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if largest == 0.0:
        return 2
    exponent = math.floor(math.log10(largest))
    return min(max((digits - 1 if exponent >= 0 else 2) - exponent, 0), 8)


def format_size(n: int, groups: int | None = None) -> str:
    """Return a number of items with the number of their groups, if there are any: `120 in 40 groups`."""
    return f"{n:,}" if groups is None else f"{n:,} in {groups:,} groups"


def format_number(value: float | None, places: int | None = None, *, sign: bool = False) -> str:
    """Return the value with a true minus sign, or `MISSING` for None and NaN.

    Args:
        value: The number.
        places: Decimal places; None: as `decimal_places` gives for this value alone.
        sign: Whether to write the sign of a positive value.
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    places = decimal_places([value]) if places is None else places
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if float(text.replace(",", "")) == 0.0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def format_cell(value: str | float | None) -> str:
    """Return the text of a table's cell: numbers as everywhere else, `MISSING` for None."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else format_number(value)


def format_p_value(p: float | None) -> str:
    """Return a p-value with three decimals, never as 0, or `MISSING` for None and NaN."""
    if p is None or math.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def round_up_share(fraction: float) -> str:
    """Return a share in [0, 1], rounded up to three decimals."""
    return f"{min(math.ceil(fraction * 1000) / 1000, 1.0):g}"


def format_efficiency(efficiency: float) -> str:
    """Say how many positions of batches hold text. efficiency: see `StageDataset`."""
    if efficiency == 1:
        return "batches without padding"
    return f"{100 * efficiency:.1f} % of the positions of padded batches hold text"


def format_duration(seconds: float) -> str:
    """Return seconds as `0.4 s`, `12 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_run_time(run_info: Mapping[str, object]) -> str:
    """Return how long a run took; of a resumed run, how long its last command took. "" if that is not known."""
    seconds = run_info.get("seconds")
    if not isinstance(seconds, int | float):
        return ""
    return (
        f"resumed, the last command took {format_duration(seconds)}"
        if run_info.get("resumed")
        else format_duration(seconds)
    )


def format_phases(seconds: Mapping[str, float]) -> str:
    """Return phase -> seconds as `prepare 2.1 s, train 3 min 05 s`."""
    return ", ".join(f"{phase} {format_duration(value)}" for phase, value in seconds.items())


def format_count(value: float, unit: str = "") -> str:
    """Return a count with its unit: `1,234 rows`; bytes (`B`) as `98.3 MB`."""
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
    r"""Return the text in ASCII: our own signs as their nearest match, others as escapes such as `\u263a`."""
    return text.translate(ASCII_REPLACEMENTS).encode("ascii", "backslashreplace").decode()


def encodable_segments(renderable: RenderableType, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
    """Yield the renderable as segments that the console's stream can encode.

    Without it, a stream that lacks Unicode ends a run with an encoding error while its results are printed.
    """
    from rich.segment import Segment

    for segment in console.render(renderable, options):
        yield Segment(to_ascii(segment.text), segment.style, segment.control) if options.ascii_only else segment
