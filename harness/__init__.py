"""Fine-tune language models from one JSON spec, and know what they forgot.

What a plugin needs is importable from here; everything else of the package is internal.
"""

from harness.errors import HarnessError
from harness.hookspecs import hookimpl
from harness.interfaces.component import Component
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.types import Bad, Event, Example, Item, Message, Part, Record, Row, Share, Span, Stage, ToolCall

__all__ = [
    "Bad",
    "Component",
    "Event",
    "Example",
    "HarnessError",
    "Item",
    "Message",
    "Metric",
    "Mitigation",
    "Mode",
    "Part",
    "Record",
    "Row",
    "Share",
    "Source",
    "Span",
    "Stage",
    "Template",
    "ToolCall",
    "hookimpl",
]
