"""Fine-tune language models from one JSON spec, and know what they forgot.

The Python interface (docs/python.md) and what a plugin needs (docs/plugins/README.md) are importable from here.
Everything else of the package is internal.
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
from harness.errors import HarnessError, InvalidRow
from harness.events import Event
from harness.hookspecs import hookimpl
from harness.interfaces.check import Check
from harness.interfaces.command import Command
from harness.interfaces.component import Component
from harness.interfaces.component_example import ComponentExample
from harness.interfaces.exporter import ExportedModel, Exporter, ExportSource, TurnSeparators
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.optimizer import Optimizer
from harness.interfaces.preset import Preset, PresetSuite
from harness.interfaces.prompt_rows import PromptRows
from harness.interfaces.report_section import ReportPlot, ReportSection, ReportTable
from harness.interfaces.row_format import RowFormat
from harness.interfaces.scheduler import Scheduler
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.interfaces.tracker import Tracker
from harness.types import (
    Example,
    Finding,
    InvalidRecord,
    Item,
    Message,
    Record,
    Share,
    SourceRows,
    Span,
    Stage,
    StageSource,
    SuiteScores,
    TokenizedExample,
    ToolCall,
    WrittenPrompt,
    WrittenResponse,
)

__all__ = [
    "Check",
    "Command",
    "ComparisonResult",
    "Component",
    "ComponentExample",
    "EvaluationResult",
    "Event",
    "Example",
    "ExperimentResult",
    "ExportSource",
    "ExportedModel",
    "Exporter",
    "Finding",
    "HarnessError",
    "InvalidRecord",
    "InvalidRow",
    "Item",
    "Message",
    "Metric",
    "Mitigation",
    "Mode",
    "Optimizer",
    "Preset",
    "PresetSuite",
    "PromptRows",
    "Record",
    "ReportPlot",
    "ReportSection",
    "ReportTable",
    "RowFormat",
    "RunResult",
    "Scheduler",
    "Share",
    "Source",
    "SourceRows",
    "Span",
    "Stage",
    "StageSource",
    "SuiteScores",
    "Template",
    "TokenizedExample",
    "ToolCall",
    "Tracker",
    "TurnSeparators",
    "WrittenPrompt",
    "WrittenResponse",
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
