"""Fine-tune language models from one JSON spec, and know what they forgot.

What a plugin needs is importable from here; everything else of the package is internal.
"""

from harness import events
from harness.errors import HarnessError
from harness.events import Event
from harness.hookspecs import hookimpl
from harness.interfaces.component import Component
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.types import (
    Example,
    InvalidRecord,
    Item,
    Message,
    Record,
    Share,
    Span,
    Stage,
    StageSource,
    TokenizedExample,
    ToolCall,
)

__all__ = [
    "Component",
    "Event",
    "Example",
    "HarnessError",
    "InvalidRecord",
    "Item",
    "Message",
    "Metric",
    "Mitigation",
    "Mode",
    "Record",
    "Share",
    "Source",
    "Span",
    "Stage",
    "StageSource",
    "Template",
    "TokenizedExample",
    "ToolCall",
    "events",
    "hookimpl",
]
