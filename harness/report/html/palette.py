"""The colours of a report, light and dark, each under the name that its CSS variable has.

The series follow Okabe and Ito (2008, jfly.uni-koeln.de/color), told apart by people who are colour-blind; the yellows
and the light blue are darkened on white. Better is blue and worse is orange, never green and red.
"""

from __future__ import annotations

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
