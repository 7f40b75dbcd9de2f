"""Fine-tune language models from one JSON spec, and know what they forgot.

What a plugin needs is importable from here; everything else of the package is internal.
"""

from harness.contracts import (
    Bad,
    Component,
    Event,
    Example,
    Item,
    Message,
    Metric,
    Mitigation,
    Mode,
    Part,
    Record,
    Row,
    Share,
    Source,
    Span,
    Stage,
    Template,
    ToolCall,
)
from harness.errors import HarnessError
from harness.hooks import hookimpl

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
