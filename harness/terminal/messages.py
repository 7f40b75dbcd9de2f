"""Lines and tables for the events of a run. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness import events
from harness.events import SharesBySource
from harness.spec import shares
from harness.types import Evaluation, Plan, ShareUnit, Stage
from harness.utils.formatting import format_duration, format_efficiency, format_number, one_line
from harness.utils.shell_commands import resume_command

MAX_ADDRESS_CHARS = 2000
MAX_NAMED_ARMS = 4
"""Arms that a warning names; of the others it gives the number."""

EmitWarning = Callable[[str, str, Sequence[str]], None]
"""(the arms that it concerns, empty for all; the text; the rows that it is about)."""


class WarningBuffer:
    """Shows each distinct warning once.

    While the arms of an experiment are prepared, warnings are held back: only afterwards it is known which arms have
    them.
    """

    def __init__(self, emit: EmitWarning) -> None:
        """Create an empty buffer. emit: shows a warning."""
        self._emit = emit
        self._emitted: set[str] = set()
        self._held_back: dict[str, tuple[list[str], Sequence[str]]] = {}  # text -> (arms, rows)
        self._arms: list[str] = []
        self._methods: dict[str, str] = {}  # arm -> its name without the seed

    def set_arm(self, name: str, method: str) -> None:
        """Hold back the warnings from here to the next `flush`; they concern this arm, a run of this method."""
        self._arms.append(name)
        self._methods[name] = method

    def add(self, text: str, rows: Sequence[str] = ()) -> None:
        """Show a warning, or hold it back while arms are prepared."""
        if self._arms:
            arms, _ = self._held_back.setdefault(text, ([], rows))
            if self._arms[-1] not in arms:
                arms.append(self._arms[-1])
        elif text not in self._emitted:
            self._emitted.add(text)
            self._emit("", text, rows)

    def flush(self) -> None:
        """Show the warnings that were held back, in their order, with the arms that they concern."""
        held_back, arm_count = self._held_back, len(self._arms)
        self._held_back, self._arms = {}, []
        for text, (arms, rows) in held_back.items():
            if text not in self._emitted:
                self._emitted.add(text)
                self._emit("" if len(arms) == arm_count else _format_arms(self._without_seeds(arms)), text, rows)

    def _without_seeds(self, arms: Sequence[str]) -> list[str]:
        """Return the arms, with one name for all seeds of a method if all have the warning."""
        complete = {
            method
            for method in self._methods.values()
            if all(name in arms for name, other in self._methods.items() if other == method)
        }
        methods = (self._methods[name] for name in arms)
        return list(
            dict.fromkeys(method if method in complete else name for name, method in zip(arms, methods, strict=True))
        )


def _format_arms(arms: Sequence[str]) -> str:
    named, more = arms[:MAX_NAMED_ARMS], len(arms) - MAX_NAMED_ARMS
    names = ", ".join(named) + (f" and {more} more" if more > 0 else "")
    return f"{'arm' if len(arms) == 1 else 'arms'} {names}"


UNIT_NAMES: Mapping[ShareUnit, str] = {"rows": "rows", "tokens": "tokens", "loss_tokens": "loss tokens"}
MAX_LISTED_EPOCHS = 8
"""Epochs whose shares are listed one by one."""


# -- a run ------------------------------------------------------------------------------------------------------------


def format_run_start(event: events.RunStarted) -> Text:
    """Return the line for the start of a run: name, stages, mitigations and folder."""
    stages = len(event.plan.stages)
    summary = f"{stages} {'stage' if stages == 1 else 'stages'}, {', '.join(event.plan.mitigations) or 'no mitigation'}"
    return Text.assemble((one_line(event.plan.name), "bold"), f": {summary} → ", (one_line(event.folder), "cyan"))


def format_tracking_start(event: events.TrackingStarted) -> Text:
    """Return the line that says where the curves of the run are, while it runs."""
    return _format_address("live curves", event.url, event.command)


def format_data(event: events.DataPrepared) -> Iterator[RenderableType]:
    """Yield a table of the rows of each source, and the realized shares of each stage with the requested ones."""
    columns = list(dict.fromkeys(key for counts in event.counts.values() for key, count in counts.items() if count))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("source")
    for column in columns:
        table.add_column(Text(column.replace("_", " ")), justify="right")
    for source, counts in event.counts.items():
        table.add_row(Text(one_line(source)), *(f"{counts[key]:,}" if key in counts else "" for key in columns))
    yield table
    epoch_shares = event.epoch_shares or [()] * len(event.stages)
    for stage, stage_shares, efficiency, by_epoch in zip(
        event.stages, event.shares, event.efficiency, epoch_shares, strict=True
    ):
        yield from _format_shares(stage, stage_shares, efficiency, by_epoch)


def format_written_rows(event: events.RowsWritten, plan: Plan | None) -> Iterator[Text]:
    """Yield the line for rows that a model has written, and the shares of the stage that trains on them."""
    writer = "the base model" if event.model == "base" else "the model"
    reasons = "".join(f", {count:,} {one_line(what)}" for what, count in event.rejected.items())
    used = f"{event.rows - event.unchanged:,} of {event.prompts:,} responses of {one_line(event.source)}"
    cached = " (by an earlier run)" if event.cached else ""
    kept = f", {event.unchanged:,} rows of the data are kept" if event.unchanged else ""
    yield Text(f"{writer} wrote {used}{cached}{kept}{reasons}")
    if event.shares and event.efficiency is not None and plan is not None:
        stage = plan.stages[event.stage_index - 1]
        yield from _format_shares(stage, event.shares, event.efficiency, event.epoch_shares)


def format_scores(stage_index: int, evaluations: Sequence[Evaluation]) -> Iterator[Text]:
    """Yield one line for each suite. stage_index: 0 for the base model."""
    for evaluation in evaluations:
        yield Text.assemble(
            ("base" if stage_index == 0 else f"stage {stage_index}", "dim"),
            f"  {one_line(evaluation.suite)}  {_format_values(evaluation)}",
            ("  (measured by an earlier run)" if evaluation.is_from_cache else "", "dim"),
        )


def format_stop(event: events.RunFailed, *, is_arm: bool) -> str:
    """Return where the files of a stopped run are, or the command that resumes it.

    An experiment continues after an arm that failed. A run with a report is not resumed: its scores violate a limit.
    """
    folder = Path(event.folder or "")
    if is_arm or (folder / "report.json").exists():
        return f"stopped; the files are kept in {one_line(str(folder))}"
    return f"stopped; to resume: {one_line(resume_command(folder))}"


def format_run_completed(event: events.InterruptedRunCompleted) -> Text:
    """Return the line for an interrupted run that was completed."""
    actions = {
        "page": "wrote report.html",
        "disk": "deleted the stage snapshots",
        "tracking": "finished the MLflow run",
    }
    done = ", ".join(actions[name] for name in event.completed)
    return Text(f"completed the interrupted run: {done}; {one_line(event.folder)}")


def format_view(event: events.ArmsFinished) -> Text:
    """Return the line that says where MLflow shows all runs of a tracked experiment side by side."""
    return _format_address("all runs in MLflow", str(event.view), event.view_command)


# -- a stage ----------------------------------------------------------------------------------------------------------


def format_stage_start(event: events.StageStarted, plan: Plan | None) -> Text:
    """Return the line for the start of a stage. plan: of the run, for the number of stages."""
    of = f" of {len(plan.stages)}" if plan is not None else ""
    return Text.assemble(
        (f"stage {event.stage_index}{of}: {one_line(event.stage.name)}", "bold"), f", {event.steps:,} steps"
    )


def format_mid_stage_scores(event: events.MidStageEvaluated) -> Text:
    """Return the line for an evaluation within a stage."""
    scores = "  ".join(f"{one_line(name)} {format_number(value)}" for name, value in event.scores.items())
    combined = "" if event.combined is None else f"  combined {format_number(event.combined)}"
    mark = "  best so far" if event.best else ""
    stats = "".join(f"  {one_line(name)} {value:.4g}" for name, value in event.mitigations.items())
    end = "; no improvement: stopping the stage early" if event.over else ""
    return Text.assemble((f"step {event.step:,}", "dim"), f"  {scores}{combined}{mark}{stats}{end}")


def format_stage_end(event: events.StageFinished) -> Text:
    """Return the line for the end of a stage: steps, time, loss and speed."""
    totals = event.trained
    speed = f", {totals.tokens / totals.seconds:,.0f} tokens/s" if totals.seconds > 0 else ""
    return Text(
        f"{one_line(event.stage.name)}: {totals.steps:,} steps in {format_duration(totals.seconds)}, "
        f"loss {format_number(totals.loss)}, {totals.tokens:,} tokens{speed}"
    )


def format_variant(event: events.VariantEvaluated) -> Iterator[Text]:
    """Yield one line for each suite of a weight variant."""
    for evaluation in event.evaluations:
        name = f"{one_line(event.mitigation)} {one_line(event.variant)}"
        yield Text.assemble(
            (f"stage {event.stage_index}, {name}", "dim"),
            f"  {one_line(evaluation.suite)}  {_format_values(evaluation)}",
        )


# -- an experiment ----------------------------------------------------------------------------------------------------


def format_arm_prepared(event: events.ArmPrepared) -> Text:
    """Return the line for an arm whose data is prepared."""
    head = f"arm {event.number} of {event.of} prepared: "
    rows = f"{event.used:,} rows to train on, {event.evaluated:,} to evaluate"
    return Text.assemble((head, "dim"), one_line(event.arm), (f", {rows}, in {format_duration(event.seconds)}", "dim"))


def format_arm_end(start: events.ArmStarted, event: events.ArmFinished, seconds: float) -> Text:
    """Return the one line of an arm that has a result.

    Args:
        start: The start of the arm.
        event: Its end.
        seconds: Time between the two.
    """
    end = "already has a result" if event.reused else f"finished in {format_duration(seconds)}"
    head = f"arm {start.number} of {start.of}: "
    return Text.assemble((head, "dim"), (one_line(event.arm), "bold cyan"), (f", {end}", "dim"))


# -- parts of lines ---------------------------------------------------------------------------------------------------


def _format_address(label: str, url: str, command: str | None) -> Text:
    server = f"{command}, then " if command else ""
    return Text(f"{label}: {one_line(f'{server}{url}', MAX_ADDRESS_CHARS)}")


def _format_values(evaluation: Evaluation) -> str:
    return "  ".join(f"{one_line(score.name)} {format_number(score.value)}" for score in evaluation.scores)


def _format_shares(
    stage: Stage, stage_shares: SharesBySource, efficiency: float, epoch_shares: Sequence[SharesBySource]
) -> Iterator[Text]:
    # First the shares that the spec asks for: they are what a reader checks.
    sentences = [
        f"{_format_sources(share.sources, stage_shares, share.unit)} (asked {100 * share.amount:g} %)"
        for share in stage.shares
    ]
    shared_sources = {source for share in stage.shares for source in share.sources}
    sentences += [
        _format_sources([part.source], stage_shares, "loss_tokens")
        for part in stage.sources
        if part.source not in shared_sources
    ]
    name = one_line(stage.name)
    yield Text(f"{name}: {', '.join(sentences)}; {format_efficiency(efficiency)}")
    for share in stage.shares if len(epoch_shares) > 1 else ():
        realized = [_format_percent(shares.realized_share(share, epoch)) for epoch in epoch_shares]
        values = f"{', '.join(realized[:MAX_LISTED_EPOCHS])} of {UNIT_NAMES[share.unit]}"
        if len(set(realized)) == 1:
            values = f"{realized[0]} of {UNIT_NAMES[share.unit]} in each of {len(realized)} epochs"
        elif len(realized) > MAX_LISTED_EPOCHS:
            values += f", and {len(realized) - MAX_LISTED_EPOCHS} more epochs"
        yield Text(f"{name} by epoch: {' + '.join(map(one_line, share.sources))} {values}")


def _format_sources(sources: Sequence[str], stage_shares: SharesBySource, unit: ShareUnit) -> str:
    realized = [(one_line(source), stage_shares.get(source, {}).get(unit, 0.0)) for source in sources]
    terms = " + ".join(
        f"{name} {_format_percent(share)}" if share else f"{name} without any row" for name, share in realized
    )
    return f"{terms} of {UNIT_NAMES[unit]}" if any(share for _, share in realized) else terms


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"
