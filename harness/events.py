"""The events of a run and of an experiment: one frozen dataclass a kind.

The order of the events of one run:

    RunStarted
    TrackingStarted                              if the run is tracked
    DataPrepared
    RowsWritten                                  for each source that the base model answers
    SuitesEvaluated                              stage_index 0: the model before training
    for each stage:
        RowsWritten                              for each source that the stage's first model answers
        StageStarted
        StepLogged, MidStageEvaluated            repeatedly, while the stage trains
        BestWeightsRestored                      if early stopping restores an earlier step
        SuitesEvaluated
        VariantEvaluated                         once for each variant that a mitigation offers
        StageFinished
    RunFinished | RunFailed

An experiment wraps the runs of its arms:

    (ArmPreparing, ArmPrepared) for each arm, ArmsPrepared
    (ArmStarted, the events of the run, ArmFinished) for each arm
    ArmsFinished

Arms that run side by side (`--on`) are started and finished in any order. The events of a run are then emitted in the
process of its arm, and in the main process only its warnings, and `RunFailed` if it fails.

`ProgressUpdated` and `WarningRaised` occur at any time. `InterruptedRunCompleted` follows when `--resume` adds what
an otherwise finished run lacks.

A listener implements the hook `harness_on_event(event)` and selects events by class, with `isinstance`, `match` or
`functools.singledispatchmethod`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.types import Evaluation, Plan, Stage

SharesBySource = Mapping[str, Mapping[str, float]]
"""Source -> unit -> realized share, in [0, 1]."""


class StageTotals(Protocol):
    """The totals of a trained stage; `harness.training.train_stage.StageResult` satisfies it."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def loss(self) -> float:
        """Mean loss of the last tenth of the steps, in nats per trained token."""

    @property
    def seconds(self) -> float:
        """Wall time of the training."""

    @property
    def tokens(self) -> int:
        """Tokens of prompts and responses, without padding, over all epochs and processes."""

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of `weights`, `gradients`, `optimizer` and `mitigations`, and the `peak` of process or device."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of all events.

    Attributes:
        stage_index: Index of the current stage, from 1; 0 before the first stage.
    """

    stage_index: int = 0


# -- at any time ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProgressUpdated(Event):
    """A long phase advanced.

    Attributes:
        phase: Name of the phase.
        done: Units that are done.
        total: Units in all; 0 while that is unknown.
        note: One line of detail.
        unit: Unit of `done` and `total`, e.g. `rows` or `B`.
    """

    phase: str
    done: int
    total: int
    note: str = ""
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class WarningRaised(Event):
    """The user should know something that does not stop the run.

    Attributes:
        text: The warning, one line.
        rows: The rows that it is about, one line each.
    """

    text: str
    rows: Sequence[str] = ()


# -- a run ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """A run started or was resumed.

    Attributes:
        name: Name in the spec.
        id: Name of the run's folder.
        folder: Path of the run's folder.
        spec: The spec with every default filled in.
        plan: The plan that is built from the spec.
        environment: Content of `environment.json`.
        resuming: Whether the run continues an interrupted one.
        arm: `name` and `changes` of the experiment's arm; None outside an experiment.
        changed: The values of the spec that differ from the schema's defaults; None: not known.
    """

    name: str
    id: str
    folder: str
    spec: Mapping[str, Any]
    plan: Plan
    environment: Mapping[str, Any]
    resuming: bool = False
    arm: Mapping[str, Any] | None = None
    changed: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TrackingStarted(Event):
    """The run or experiment can be watched in MLflow.

    Attributes:
        url: Address of its page.
        command: The command that serves the page, if the tracking store is a database without a server.
    """

    url: str
    command: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataPrepared(Event):
    """The rows of all stages and suites are ready. The fields are the keys of `data.json`.

    Attributes:
        counts: Source -> what happened to its rows -> number of rows.
        stages: The stages, in order.
        shares: For each stage, the realized shares.
        epoch_shares: For each stage, the realized shares of each epoch.
        efficiency: For each stage, the fraction of token positions that hold text.
        digests: Source -> digest of its rows.
        template: Fingerprint of the chat template.
        lengths: Source -> histogram of token lengths.
        facts: Source -> metadata of its files, e.g. a commit.
        unread: Source -> column or message key that is not read -> number of rows or messages that have it.
        warnings: Warnings of plan and data, each followed by the lines of its rows.
        checks: Findings of the data checks.
    """

    counts: Mapping[str, Mapping[str, int]]
    stages: Sequence[Stage]
    shares: Sequence[SharesBySource]
    epoch_shares: Sequence[Sequence[SharesBySource]] = ()
    efficiency: Sequence[float] = ()
    digests: Mapping[str, str]
    template: str
    lengths: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    unread: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    checks: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SuitesEvaluated(Event):
    """The suites were evaluated after a stage, or before the first one.

    Attributes:
        evaluations: One evaluation for each suite.
    """

    evaluations: Sequence[Evaluation]


@dataclass(frozen=True, kw_only=True)
class RowsWritten(Event):
    """A model has written rows of a stage's source, see `Mitigation.generate_rows`.

    Attributes:
        mitigation: The mitigation that had them written.
        source: The source whose rows they replace.
        model: `base`, or `current` for the model with which the stage begins.
        prompts: Rows that the model was asked to answer, or prompts that it wrote.
        rows: Rows that are used.
        rejected: Why others are not used -> how many.
        cached: Whether they are those of an earlier run.
        unchanged: How many of `rows` are rows of the data, because what the model wrote instead was not used.
        shares: The realized shares of the stage with these rows; empty if the mitigation keeps the rows for itself.
        epoch_shares: The same for each epoch.
        efficiency: The fraction of token positions of the stage that hold text; None without shares.
    """

    mitigation: str
    source: str
    model: str
    prompts: int
    rows: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    cached: bool = False
    unchanged: int = 0
    shares: SharesBySource = field(default_factory=dict)
    epoch_shares: Sequence[SharesBySource] = ()
    efficiency: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage started.

    Attributes:
        stage: The stage.
        steps: Planned optimizer steps.
        reused: Whether the stage was trained before, so that its stored result is loaded.
    """

    stage: Stage
    steps: int
    reused: bool = False


@dataclass(frozen=True, kw_only=True)
class StepLogged(Event):
    """An optimizer step was logged.

    Attributes:
        step: Index of the step within the stage, from 1.
        metrics: Name -> value, e.g. `loss`, `learning_rate`, `penalty/<mitigation>`.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MidStageEvaluated(Event):
    """The model was evaluated within a stage. The fields are the keys of a line of `evaluations.jsonl`.

    Attributes:
        step: Optimizer step after which the model was evaluated.
        scores: `suite/score` -> value.
        combined: Combined score of early stopping; None without early stopping.
        best: Whether this is the best combined score so far.
        kept: Whether the weights were saved, to be restored later.
        over: Whether early stopping ends the stage here.
        mitigations: `<mitigation>/<key>` -> a value that `Mitigation.on_evaluation` returned. It may have changed the
            weights that the scores are of.
    """

    step: int
    scores: Mapping[str, float]
    combined: float | None = None
    best: bool = False
    kept: bool = False
    over: bool = False
    mitigations: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BestWeightsRestored(Event):
    """Early stopping restored the best weights.

    Attributes:
        step: Step of the restored weights.
        of: Last step that was trained.
    """

    step: int
    of: int


@dataclass(frozen=True, kw_only=True)
class VariantEvaluated(Event):
    """Other weights that a mitigation offers were evaluated, e.g. an interpolation between two models.

    Attributes:
        mitigation: Name of the mitigation.
        variant: Name of the variant.
        evaluations: One evaluation for each suite.
    """

    mitigation: str
    variant: str
    evaluations: Sequence[Evaluation]


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """A stage was trained, evaluated and saved.

    Attributes:
        stage: The stage.
        trained: Totals of the training.
        folder: Path of the run's folder.
    """

    stage: Stage
    trained: StageTotals
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """A run finished: its report is written.

    Attributes:
        report: The `harness.report.run_report.Report`. Typed `Any`: reports are built on a higher layer.
        seconds: Wall time of the run; None if it is not known.
    """

    report: Any
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunFailed(Event):
    """A run failed or was interrupted.

    Attributes:
        error: The error, one line.
        folder: Path of the run's folder.
        interrupted: Whether Ctrl-C or a signal stopped the run.
    """

    error: str
    folder: str | None = None
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True)
class InterruptedRunCompleted(Event):
    """A run that was killed after its report was completed.

    Attributes:
        folder: Path of the run's folder.
        completed: What was missing: `page` (report.html), `disk` (snapshots to delete), `tracking` (MLflow).
        report: The `harness.report.run_report.Report`.
    """

    folder: str
    completed: Sequence[str]
    report: Any


# -- an experiment ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArmPreparing(Event):
    """The data of an arm is about to be prepared.

    Attributes:
        arm: Name of the arm.
        number: Position of the arm, from 1.
        of: Number of arms.
        method: Name of the arm without its seed.
    """

    arm: str
    number: int
    of: int
    method: str = ""


@dataclass(frozen=True, kw_only=True)
class ArmPrepared(Event):
    """The data of an arm is prepared and checked.

    Attributes:
        arm: Name of the arm.
        number: Position of the arm, from 1.
        of: Number of arms.
        used: Rows to train on.
        evaluated: Rows to evaluate.
        seconds: Wall time of the preparation.
    """

    arm: str
    number: int
    of: int
    used: int
    evaluated: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ArmsPrepared(Event):
    """The data of all arms is prepared and checked."""


@dataclass(frozen=True, kw_only=True)
class ArmStarted(Event):
    """An arm is about to run.

    Attributes:
        arm: Name of the arm.
        number: Position of the arm, from 1.
        of: Number of arms.
    """

    arm: str
    number: int
    of: int


@dataclass(frozen=True, kw_only=True)
class ArmFinished(Event):
    """An arm has a result.

    Attributes:
        arm: Name of the arm.
        reused: Whether the result existed before.
    """

    arm: str
    reused: bool


@dataclass(frozen=True, kw_only=True)
class ArmsFinished(Event):
    """All arms ran and are compared.

    Attributes:
        experiment: The `harness.report.arm_comparison.ArmComparison`.
        folder: Path of the experiment's folder.
        view: Address of the table of all runs in MLflow; None if the experiment is not tracked.
        view_command: The command that serves this page, if the tracking store is a database without a server.
    """

    experiment: Any
    folder: str
    view: str | None = None
    view_command: str | None = None
