"""Fine-tune language models from one JSON spec, and know what they forgot.

The Python interface (docs/python.md) and what a plugin needs (docs/plugins.md) are importable from here. Everything
else of the package is internal.
"""

from harness import events
from harness.api.commands import compare, evaluate, evaluate_tuned, resume, run, run_experiment
from harness.api.results import (
    ComparisonResult,
    EvaluationResult,
    ExperimentResult,
    RunResult,
    load_experiment,
    load_run,
)
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
    "ComparisonResult",
    "Component",
    "EvaluationResult",
    "Event",
    "Example",
    "ExperimentResult",
    "HarnessError",
    "InvalidRecord",
    "Item",
    "Message",
    "Metric",
    "Mitigation",
    "Mode",
    "Record",
    "RunResult",
    "Share",
    "Source",
    "Span",
    "Stage",
    "StageSource",
    "Template",
    "TokenizedExample",
    "ToolCall",
    "compare",
    "evaluate",
    "evaluate_tuned",
    "events",
    "hookimpl",
    "load_experiment",
    "load_run",
    "resume",
    "run",
    "run_experiment",
]
